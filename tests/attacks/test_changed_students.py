"""Attacks on a student: an outsider with folder and fingerprint finds every change by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from federation import (
    SITES,
    Federation,
    Json,
    flip,
    forge,
    make_odd_file,
    payload_of,
    random_images,
    snapshot,
    train,
)
from students import OPTIONS

from coordinator.ensembles.distill import distill
from coordinator.ensembles.remove import remove
from coordinator.inbox.admission import admit_arrivals
from coordinator.roster import changes
from ddm_fed.bundle.verify import ENVELOPE_FILE
from ddm_fed.distillation.folder import (
    STUDENT_FILE,
    WEIGHTS_FILE,
    VerifiedStudent,
    verify_student,
)
from ddm_fed.distillation.opening import is_student, require_ensemble, verify_either
from ddm_fed.distillation.sampling import load_student
from ddm_fed.ensemble.folder import STATEMENT_FILE, verify_ensemble
from ddm_fed.ensemble.staleness import find_staleness
from ddm_fed.errors import (
    DdmFedError,
    DigestError,
    FileSetError,
    LogError,
    MalformedError,
    PlanMismatchError,
    RosterError,
    SignatureError,
    StateError,
    UnknownSignerError,
    ValuesError,
    WeightsError,
)
from ddm_fed.records import sha256_hex
from ddm_fed.trust.log import CHECKPOINT_FILE, LEAVES_FILE
from ddm_fed.trust.published import read_seen
from sites.outbox import stages as outbox
from sites.transport import submit
from sites.transport.base import FolderTransport

A, B, C = SITES
FILES = {
    STUDENT_FILE: "the student",
    "plan.dsse.json": "the plan",
    "roster-0001.dsse.json": "roster 1",
    "roster-0002.dsse.json": "roster 2",
    LEAVES_FILE: f"`{LEAVES_FILE}` is not what the student was signed with",
    CHECKPOINT_FILE: f"`{CHECKPOINT_FILE}` is not what the student was signed with",
    WEIGHTS_FILE: f"`{WEIGHTS_FILE}` is not what was signed",
}
for _site in SITES:
    FILES[f"sites/{_site}/{ENVELOPE_FILE}"] = f"`sites/{_site}/{ENVELOPE_FILE}` is not what the"


@pytest.fixture
def student(distilled, scratch: Path) -> Path:
    """A copy of the valid student, alone in a folder."""
    return Path(shutil.copytree(distilled[1], scratch / "student"))


@pytest.fixture
def root(distilled) -> str:
    return distilled[0].root


@pytest.fixture
def key(distilled):
    """The coordinator's own: what its program would never sign, its people still could."""
    return distilled[0].coordinator_key()


def restate(student: Path, key, edit: Callable[[Json], None] = lambda _: None) -> None:
    """Makes the statement true of what the folder holds now, and signs it with `key`."""

    def edit_all(statement: Json) -> None:
        held = [item for item in statement["subject"] if (student / item["name"]).exists()]
        statement["subject"] = held
        for subject in held:
            subject["digest"]["sha256"] = sha256_hex((student / subject["name"]).read_bytes())
        statement["predicate"]["size_bytes"] = (student / WEIGHTS_FILE).stat().st_size
        edit(statement["predicate"])

    forge(student / STUDENT_FILE, edit_all, key)


def weights_of(student: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(student / WEIGHTS_FILE)


def test_listed_files_are_those_of_the_student(distilled):
    assert set(snapshot(distilled[1])) == set(FILES)


def test_student_verifies_elsewhere_with_nothing_but_the_fingerprint(student, root, monkeypatch):
    monkeypatch.chdir(student)
    verified = verify_student(Path(), root)
    assert [item.site for item in verified.submissions] == list(SITES)
    assert verified.record.privacy.post_processing
    assert not verified.record.privacy.experts_are_private
    assert verified.record.privacy.epsilon == "2.0000"


def test_statement_decides_which_of_both_a_folder_is(student, root, ensemble, distilled):
    assert isinstance(verify_either(student, root), VerifiedStudent)
    assert (
        verify_either(ensemble, root).sha256 == verify_student(student, root).record.ensemble_sha256
    )
    with pytest.raises(StateError, match="is a student: one network"):
        require_ensemble(student)
    shutil.copyfile(ensemble / STATEMENT_FILE, student / STATEMENT_FILE)
    assert not is_student(student)
    with pytest.raises(FileSetError):
        verify_either(student, root)
    with pytest.raises(FileSetError):
        verify_student(student, root)


def test_student_under_another_fingerprint_is_refused(student, root):
    with pytest.raises(RosterError, match=f"roster 1 has the digest {root}"):
        verify_student(student, "sha256:" + "0" * 64)


@pytest.mark.parametrize(("name", "named"), FILES.items(), ids=FILES)
def test_flipped_byte_of_a_file_is_refused_and_the_file_named(student, root, name, named):
    flip(student / name, (student / name).stat().st_size // 2)
    with pytest.raises(DdmFedError) as caught:
        verify_student(student, root)
    assert caught.value.code.startswith("DDM2")
    assert named in caught.value.message


@pytest.mark.parametrize("position", [0, -1, 9000])
def test_flipped_bit_of_the_weights_is_refused(student, root, position):
    flip(student / WEIGHTS_FILE, position)
    with pytest.raises(DigestError, match=f"`{WEIGHTS_FILE}` is not what was signed"):
        verify_student(student, root)


@pytest.mark.parametrize("name", sorted(FILES))
def test_removed_file_is_refused(student, root, name):
    (student / name).unlink()
    with pytest.raises(DdmFedError):
        verify_student(student, root)


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", f"sites/{A}/expert.safetensors"])
def test_extra_file_is_refused(student, root, name):
    (student / name).write_bytes(b"")
    with pytest.raises(FileSetError, match=f"the student is refused: `{name}` does not belong"):
        verify_student(student, root)


def test_link_to_the_right_weights_is_refused(student, root):
    (student / WEIGHTS_FILE).rename(student.parent / "elsewhere")
    (student / WEIGHTS_FILE).symlink_to(student.parent / "elsewhere")
    with pytest.raises(FileSetError, match=f"`{WEIGHTS_FILE}` is a symbolic link"):
        verify_student(student, root)


def test_fifo_in_place_of_the_weights_is_refused_without_blocking(student, root):
    (student / WEIGHTS_FILE).unlink()
    make_odd_file(student / WEIGHTS_FILE, "fifo")
    with pytest.raises(FileSetError, match=f"`{WEIGHTS_FILE}` is not a regular file"):
        verify_student(student, root)


# Who signed it


@pytest.mark.parametrize("signer", ["root", A])
def test_statement_signed_by_another_key_of_the_roster_is_refused(student, root, stages, signer):
    fed: Federation = stages.admitted
    other = fed.root_key() if signer == "root" else fed.key(signer)
    restate(student, other)
    with pytest.raises(UnknownSignerError, match="the student is signed by"):
        verify_student(student, root)


def test_edited_statement_with_the_old_signature_is_refused(student, root, key):
    document = json.loads((student / STUDENT_FILE).read_bytes())
    signatures = document["signatures"]
    restate(student, key, lambda record: record.update(ensemble_sha256="0" * 64))
    edited = json.loads((student / STUDENT_FILE).read_bytes())
    (student / STUDENT_FILE).write_text(json.dumps(edited | {"signatures": signatures}))
    with pytest.raises(SignatureError):
        verify_student(student, root)


@pytest.mark.parametrize("other", [STATEMENT_FILE, f"sites/{A}/{ENVELOPE_FILE}"])
def test_another_statement_of_the_federation_is_refused(student, root, ensemble, other):
    shutil.copyfile(ensemble / other, student / STUDENT_FILE)
    with pytest.raises((MalformedError, UnknownSignerError)):
        verify_student(student, root)


# What the coordinator's key itself cannot make true


def drop_member(record: Json) -> None:
    del record["members"][1]
    record["distillation"]["start"] = record["members"][0]["site"]  # no trace of it is left


def leave_out(record: Json) -> None:
    record["left_out"] = [record["members"].pop()["site"]]
    record["distillation"]["start"] = record["members"][0]["site"]  # it may have been that one


def claim_another_submission(record: Json) -> None:
    record["members"][0]["submission_sha256"] = "0" * 64


def swap_members(record: Json) -> None:
    one, other = record["members"][:2]
    one["submission_sha256"], other["submission_sha256"] = (
        other["submission_sha256"],
        one["submission_sha256"],
    )


@pytest.mark.parametrize(
    ("edit", "refusal"),
    [
        (drop_member, PlanMismatchError),
        (claim_another_submission, LogError),
        (swap_members, LogError),
        (leave_out, PlanMismatchError),
        (lambda record: record.update(plan_sha256="0" * 64), PlanMismatchError),
        (lambda record: record.update(federation="other"), PlanMismatchError),
        (lambda record: record["log"].update(size=99), PlanMismatchError),
        (lambda record: record["log"].update(root="0" * 64), PlanMismatchError),
        (lambda record: record["roster"].update(sha256="0" * 64), PlanMismatchError),
        (lambda record: record.update(class_units=["3"]), PlanMismatchError),
        (lambda record: record["privacy"].update(epsilon="1.0000"), PlanMismatchError),
        (lambda record: record["privacy"].update(experts_are_private=True), PlanMismatchError),
        (lambda record: record["privacy"].update(post_processing=False), MalformedError),
        (lambda record: record["distillation"].update(source="data"), MalformedError),
        (lambda record: record["distillation"].update(start="stranger"), MalformedError),
        (lambda record: record["design"].update(architecture="DiT-Micro/2"), WeightsError),
        (lambda record: record["design"].update(architecture="DiT-Nano/4"), WeightsError),
        (lambda record: record["design"].update(architecture="mixture+DiT-Nano/2"), MalformedError),
        (lambda record: record.update(remark="trust me"), MalformedError),
    ],
)
def test_claims_that_the_folder_contradicts_are_refused(student, root, key, edit, refusal):
    restate(student, key, edit)
    with pytest.raises(refusal):
        verify_student(student, root)


def test_dropped_member_is_refused_also_without_its_manifest(student, root, key):
    shutil.rmtree(student / "sites" / B)
    restate(student, key, drop_member)
    with pytest.raises(LogError, match=f"admitted at entry [0-2] of `{B}` for .*; the student"):
        verify_student(student, root)


def test_manifest_of_another_member_is_refused(student, root, key):
    shutil.copyfile(student / "sites" / A / ENVELOPE_FILE, student / "sites" / B / ENVELOPE_FILE)
    restate(student, key)
    with pytest.raises(PlanMismatchError, match=f"the submission of `{B}` names the site `{A}`"):
        verify_student(student, root)


def test_manifest_that_its_site_did_not_sign_is_refused(student, root, key):
    forge(student / "sites" / A / ENVELOPE_FILE, lambda _: None, key)
    restate(student, key)
    with pytest.raises(UnknownSignerError):
        verify_student(student, root)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_weights_that_are_not_finite_or_too_large_are_refused(student, root, key, value):
    weights = weights_of(student)
    next(iter(weights.values())).flat[0] = value
    safetensors.numpy.save_file(weights, student / WEIGHTS_FILE)
    restate(student, key)
    with pytest.raises(ValuesError):
        verify_student(student, root)


def test_weights_of_other_shapes_or_names_are_refused(student, root, key):
    weights = weights_of(student)
    name = next(name for name, value in weights.items() if value.ndim == 2)
    for changed in (
        weights | {name: weights[name].T.copy()[:, :-1]},
        weights | {"more": np.zeros(1, np.float32)},
        {other: value for other, value in weights.items() if other != name},
    ):
        safetensors.numpy.save_file(changed, student / WEIGHTS_FILE)
        restate(student, key)
        with pytest.raises(WeightsError):
            verify_student(student, root)


def test_weights_that_change_after_verification_are_never_loaded(student, root):
    verified = verify_student(student, root)
    flip(student / WEIGHTS_FILE, -1)
    with pytest.raises(DigestError, match="changed after it was verified"):
        load_student(verified)


# The same command, and what came later


def test_same_ensemble_and_options_make_the_same_bytes(distilled, stages, scratch):
    fed, student = distilled
    verified = verify_ensemble(stages.ensemble, fed.root)
    distill(fed.home, verified, scratch / "again", OPTIONS)
    assert snapshot(scratch / "again") == snapshot(student)
    with pytest.raises(StateError, match="exists already"):
        distill(fed.home, verified, scratch / "again", OPTIONS)


def test_student_that_was_whole_when_the_run_was_killed_is_taken_for_it(distilled, stages, scratch):
    fed, student = distilled
    verified = verify_ensemble(stages.ensemble, fed.root)
    shutil.copytree(student, scratch / "student")
    (scratch / "student.unfinished").mkdir()  # a kill before this was removed
    found = distill(fed.home, verified, scratch / "student", OPTIONS)
    assert found.sha256 == verify_student(student, fed.root).sha256
    assert not (scratch / "student.unfinished").exists()


def test_student_of_a_member_that_was_removed_is_stale(distilled, scratch):
    fed, student = distilled
    later = fed.copy(scratch / "later", "consortium")
    verified = verify_student(student, fed.root)
    before = find_staleness(verified, *read_seen(later.published, fed.root))
    assert (before.stale, before.newer) == ((), ())
    removed = remove(later.home, B, reason="consent withdrawn", delete_weights=False)
    assert list(removed.students) == [verified.sha256]
    found = find_staleness(verified, *read_seen(later.published, fed.root))
    assert [reason.partition(" on ")[0] for reason in found.stale] == [f"`{B}` was removed"]


@pytest.mark.slow
def test_student_of_a_member_that_sent_another_expert_is_called_old(copy_of, distilled, scratch):
    fed, (_, student) = copy_of("admitted", A), distilled
    fed.look(A)
    train(fed.site(A), fed.trust, random_images(7), seed=7, restart=True)
    outbox.review(fed.site(A), fed.trust)
    outbox.release(fed.site(A), fed.trust)
    submit.submit(fed.site(A), fed.trust, FolderTransport(fed.inbox))
    admit_arrivals(fed.home, fed.trust)
    found = find_staleness(verify_student(student, fed.root), *read_seen(fed.published, fed.root))
    assert found.stale == ()
    assert found.newer == (f"`{A}` has a newer submission, at entry 3",)


def test_ensemble_that_became_stale_meanwhile_makes_no_student(distilled, stages, scratch):
    fed, _ = distilled

    def gone() -> None:
        raise StateError("stale", hint="")

    verified = verify_ensemble(stages.ensemble, fed.root)
    with pytest.raises(StateError, match="stale"):
        distill(fed.home, verified, scratch / "late", OPTIONS, require_current=gone)
    assert not (scratch / "late").exists()


def test_replaced_key_of_the_coordinator_signs_no_student_of_an_older_ensemble(
    distilled, stages, scratch
):
    later = distilled[0].copy(scratch / "later", "consortium")
    verified = verify_ensemble(stages.ensemble, later.root)
    assert changes.rotate_coordinator(later.home).published
    with pytest.raises(StateError, match="key was replaced since the ensemble was assembled"):
        distill(later.home, verified, scratch / "late", OPTIONS)
    assert not (scratch / "late").exists()
    # what it signed before holds as before
    found = find_staleness(
        verify_student(distilled[1], later.root), *read_seen(later.published, later.root)
    )
    assert found.stale == ()


def test_statement_names_ensemble_members_and_work(distilled, stages):
    record = payload_of(distilled[1] / STUDENT_FILE)["predicate"]
    ensemble = payload_of(stages.ensemble / STATEMENT_FILE)["predicate"]
    assert record["members"] == ensemble["members"]
    assert record["log"] == ensemble["log"]
    work = record["distillation"]
    assert (work["source"], work["teacher"], work["images"]) == ("samples", "own", 24)
    assert work["start"] in {member["site"] for member in record["members"]}
    assert all(float(work["gigaflops"][part]) > 0 for part in ("drawing", "teacher", "student"))


# What people see


@pytest.mark.parametrize(
    "option",
    [
        ("--strategy", "sticky"),
        ("--router", "mixture"),
        ("--router-temperature", "2"),
        ("--attribution",),
        ("--embedder-weights", "weights.safetensors"),
        ("--resident", "1"),
        ("--offload",),
    ],
    ids=lambda option: option[0],
)
def test_options_of_experts_and_routers_are_refused_for_a_student(run, student, root, option):
    out = student.parent / "samples"
    ended = run("ddm-coord", "sample", student, "--root", root, "--out", out, *option)
    assert ended.code == 2
    assert f"{option[0]}: a student is one network" in ended.err
    assert not out.exists()


def test_verify_says_what_a_student_is_and_what_it_promises(run, student, root):
    ended = run("ddm-coord", "verify", student, "--root", root)
    assert ended.code == 0
    assert "what its members promise, the student keeps" in ended.err
    assert "each taught by its own expert" in ended.err
    assert all(site in ended.out for site in SITES)


def test_commands_for_ensembles_say_that_this_is_a_student(run, student, distilled):
    home = distilled[0].home.path
    for words in (
        ("router", "build", student, "--out", student.parent / "router"),
        ("distill", student, "--out", student.parent / "again"),
    ):
        ended = run("ddm-coord", *words, "--coordinator", home)
        assert ended.code == 1
        assert "is a student: one network, without experts" in ended.err


def test_signature_for_other_tools_is_put_on_a_student_too(run, student, distilled, root):
    ended = run("ddm-coord", "sign-model", student, "--coordinator", distilled[0].home.path)
    assert ended.code == 0, ended.err
    assert (student / "model.sig").exists()
    assert verify_student(student, root).record.federation == "test"


def test_statement_that_says_it_is_of_another_kind_is_refused(student, root, key):
    forge(
        student / STUDENT_FILE,
        lambda statement: statement.update(predicateType="urn:ddm-fed:other:v1"),
        key,
    )
    with pytest.raises(PlanMismatchError, match="names the predicate type `urn:ddm-fed:other:v1`"):
        verify_student(student, root)


def test_statement_about_another_version_of_the_roster_is_refused(student, root, key):
    restate(student, key, lambda record: record["roster"].update(version=9))
    with pytest.raises(PlanMismatchError, match="names the roster version `9`"):
        verify_student(student, root)
