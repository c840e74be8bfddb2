"""A manifest is judged once, by the same rules in the same order, uploaded or arrived."""

import shutil
from pathlib import Path

import pytest
from federation import Federation, forge_manifest, move_to_plan

from coordinator.inbox import manifest as judging
from coordinator.inbox.admission import admit_arrivals
from coordinator.inbox.upload import Uploads
from ddm_fed.bundle import submission
from ddm_fed.bundle.verify import ENVELOPE_FILE
from ddm_fed.errors import RefusedError
from ddm_fed.records import Statement

A = "hospital-a"
OTHER = "0" * 64


def expired(fields) -> None:
    fields |= {"issued_at": "2020-01-01T00:00:00Z", "expires_at": "2020-02-01T00:00:00Z"}


def skipped_and_expired(fields) -> None:
    fields["sequence"] = 5000
    expired(fields)


def other_log_and_other_plan(fields) -> None:
    fields["seen_checkpoint"] = {"size": 1, "root": OTHER}
    move_to_plan(fields, OTHER)


FAULTS = {
    "another plan": lambda fields: move_to_plan(fields, OTHER),
    "expired": expired,
    "skipped and expired": skipped_and_expired,
    "another log and another plan": other_log_and_other_plan,
    "another roster": lambda fields: fields["roster"].update(sha256=OTHER),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_upload_and_admission_refuse_a_manifest_for_the_same_reason(copy_of, fault: str):
    fed: Federation = copy_of("submitted", A)
    bundle = fed.arrival(A)
    forge_manifest(bundle, FAULTS[fault], fed.key(A))
    held = fed.path / "held"
    shutil.move(bundle, held)
    with pytest.raises(RefusedError) as offered:
        Uploads(fed.home).begin((held / ENVELOPE_FILE).read_bytes(), carrier="grpc", site=A)
    shutil.move(held, fed.home.incoming / "offered")
    verdicts = {item.name: item for item in admit_arrivals(fed.home, fed.trust)}
    assert verdicts["offered"].error.code == offered.value.code


def test_two_stories_are_evidence_under_whatever_plan_they_were_told(copy_of):
    fed: Federation = copy_of("admitted", A)
    released = next((fed.path / A / "outbox" / "released").iterdir())
    bundle = Path(shutil.copytree(released, fed.home.incoming / "second"))
    forge_manifest(bundle, lambda fields: move_to_plan(fields, OTHER), fed.key(A))
    with pytest.raises(RefusedError) as offered:
        Uploads(fed.home).begin((bundle / ENVELOPE_FILE).read_bytes(), carrier="grpc", site=A)
    (verdict,) = admit_arrivals(fed.home, fed.trust)
    assert (verdict.error.code, offered.value.code) == ("DDM213", "DDM213")
    assert len(list(next(fed.home.evidence.iterdir()).iterdir())) == 2


def test_manifest_of_an_arrival_is_parsed_once(copy_of, monkeypatch):
    fed: Federation = copy_of("submitted", A)
    arrival, parsed, real = fed.arrival(A), [], Statement.from_json.__func__

    def counting(cls, data, *, what):
        if arrival.name[:16] in what:
            parsed.append(what)
        return real(cls, data, what=what)

    monkeypatch.setattr(submission.Statement, "from_json", classmethod(counting))
    (verdict,) = admit_arrivals(fed.home, fed.trust, only=arrival.name)
    assert verdict.error is None
    assert len(parsed) == 1


def test_judgement_takes_a_read_manifest_and_reads_none(stages, monkeypatch):
    fed = stages.submitted
    envelope = (fed.arrival(A) / ENVELOPE_FILE).read_bytes()
    trust, log = fed.trust, fed.log
    read = submission.read_submission(envelope, trust.chain, log.size, what="it")
    monkeypatch.setattr(judging, "read_submission", None)
    digests = judging.judge_manifest(fed.home, trust, log, read, what="it")
    assert digests == {item.name: item.digest.sha256 for item in read.statement.subject}
