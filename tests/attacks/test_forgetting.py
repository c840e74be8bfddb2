"""A site that spends twice and tells once: its ledger cut, its folder restored from a backup."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from federation import (
    PLAN_TOML,
    PRIVATE,
    Federation,
    chain,
    create_federation,
    forge_manifest,
    manifest,
    move_to_plan,
)

from coordinator.ensembles.assemble import assemble
from coordinator.inbox.admission import admit, admit_arrivals, recover
from coordinator.roster import proposals
from ddm_fed.bundle.verify import verify_bundle
from ddm_fed.ensemble.folder import verify_ensemble
from ddm_fed.errors import PolicyError
from ddm_fed.records import GaussianEvent, now, read_plan_toml
from sites.privacy.ledger import open_ledger

A = "hospital-a"
PRIVATE_AT_8 = PRIVATE.replace("max_epsilon = 10", "max_epsilon = 8")


@pytest.fixture
def fed(copy_of) -> Federation:
    """A coordinator that has admitted the site's bundle, and the site."""
    return copy_of("admitted", A)


@pytest.fixture
def other_images(scratch: Path) -> Path:
    path = scratch / "other.npz"
    rng = np.random.default_rng(7)
    np.savez(path, images=rng.integers(0, 255, (24, 8, 8), dtype=np.uint8))
    return path


def ledger_file(fed: Federation) -> Path:
    return fed.path / A / "ledger.jsonl"


def cut(path: Path, keep: int) -> bytes:
    """Cuts the file to its first `keep` lines; returns what it was."""
    before = path.read_bytes()
    path.write_bytes(b"".join(before.splitlines(keepends=True)[:keep]))
    return before


def restore_old_backup(fed: Federation, keep: int) -> None:
    """Makes the site's whole folder one of a time when its ledger had `keep` entries."""
    cut(ledger_file(fed), keep)
    cut(fed.path / A / "keys" / "ledger.jsonl", keep)
    for folder in ("outbox/released", "outbox/reviews", "outbox/draft", "receipts", "seen"):
        shutil.rmtree(fed.path / A / folder)
        (fed.path / A / folder).mkdir()
    for work in (fed.path / A / "private").iterdir():
        if work.is_dir():
            shutil.rmtree(work)


def train_again(run, fed: Federation, data: Path):
    return run(
        *("ddm-site", "train", "--site", fed.path / A, "--plan", fed.published),
        *("--data", data, "--restart", "--precision", "float32"),
    )


def forgetful_bundle(fed: Federation, folder: Path, entries=None, plan_sha256=None) -> Path:
    """A bundle with number 2, signed by the site's own people, whose ledger is another one."""
    released = next((fed.path / A / "outbox" / "released").iterdir())
    bundle = Path(shutil.copytree(released, folder))
    newest = fed.log.newest(A)

    def edit(fields):
        fields |= {"sequence": 2, "supersedes": newest.submission_sha256}
        fields["seen_checkpoint"] = json.loads(fed.log.head.to_json())
        fields["roster"] = json.loads(fed.trust.chain.reference.to_json())
        ledger = fields["privacy"]["ledger"]
        if entries is None:  # spent again, and told once
            for number, entry in enumerate(ledger):
                entry["nonce"] = f"{number:016x}"
        else:
            ledger = entries(ledger)
        fields["privacy"]["ledger"] = chain(ledger)
        if plan_sha256 is not None:
            move_to_plan(fields, plan_sha256)

    forge_manifest(bundle, edit, fed.key(A))
    return bundle


def offer(fed: Federation, bundle: Path):
    shutil.move(bundle, fed.home.incoming / bundle.name)
    (verdict,) = admit_arrivals(fed.home, fed.trust)
    return verdict


def test_ledger_cut_after_it_was_signed_trains_nothing_and_is_named(run, fed, other_images):
    before = cut(ledger_file(fed), 1)
    code, _, err = train_again(run, fed, other_images)
    assert code == 1
    assert "error[DDM210]" in err
    assert "the ledger has 1 entries and does not go on from the 3" in err
    assert "ddm-site ledger --recover" in err
    assert len(ledger_file(fed).read_bytes().splitlines()) == 1
    code, out, err = run("ddm-site", "ledger", "--site", fed.path / A)
    assert code == 1
    assert "Ledger of hospital-a" in out
    assert "it was cut, exchanged, or restored from a backup" in err
    assert run("ddm-site", "ledger", "--site", fed.path / A, "--recover")[0] == 0
    assert ledger_file(fed).read_bytes() == before


def test_ledger_and_its_copy_cut_is_refused_by_what_the_site_signed(run, fed, other_images):
    before = cut(ledger_file(fed), 2)
    cut(fed.path / A / "keys" / "ledger.jsonl", 2)
    code, _, err = train_again(run, fed, other_images)
    assert (code, "error[DDM210]" in err) == (1, True)
    assert "that the signed bundle" in err
    assert run("ddm-site", "ledger", "--site", fed.path / A, "--recover")[0] == 0
    assert ledger_file(fed).read_bytes() == before


def test_site_restored_from_an_old_backup_trains_nothing_until_its_ledger_is_back(
    run, fed, other_images, scratch
):
    before = ledger_file(fed).read_bytes()
    restore_old_backup(fed, 0)
    code, _, err = train_again(run, fed, other_images)
    assert (code, "error[DDM210]" in err) == (1, True)
    assert f"that entry {fed.log.newest(A).index} of the log knows" in err
    assert ledger_file(fed).read_bytes() == b""
    # nothing here holds it: it has to come from who has it
    code, _, err = run("ddm-site", "ledger", "--site", fed.path / A, "--recover")
    assert (code, "error[DDM104]" in err) == (1, True)
    assert "sites/NAME/" in err
    (manifest_file,) = [
        path
        for path in fed.home.manifests.iterdir()
        if path.name.startswith(fed.log.newest(A).submission_sha256)
    ]
    code, _, err = run(
        *("ddm-site", "ledger", "--site", fed.path / A, "--recover", "--from", manifest_file)
    )
    assert (code, "3 entries are back at their place" in err) == (0, True)
    assert ledger_file(fed).read_bytes() == before
    # what was spent counts: a second and a third release are within the plan, and no fourth is
    code, _, err = train_again(run, fed, other_images)
    assert code == 0, err
    assert len(open_ledger(fed.site(A)).entries()) == 6


def test_manifest_of_another_site_restores_nothing(run, fed, stages):
    restore_old_backup(fed, 0)
    run("ddm-site", "ledger", "--site", fed.path / A)
    other = stages.admitted.log.newest("hospital-b").submission_sha256
    code, _, err = run(
        *("ddm-site", "ledger", "--site", fed.path / A, "--recover"),
        *("--from", fed.home.manifests / f"{other}.dsse.json"),
    )
    assert (code, "error[DDM203]" in err) == (1, True)
    assert ledger_file(fed).read_bytes() == b""


def test_two_histories_of_one_ledger_are_both_counted(run, fed, other_images):
    # an earlier version trained on top of a cut ledger: two runs, each told in another ledger
    whole = cut(ledger_file(fed), 1)
    (fed.path / A / "keys" / "ledger.jsonl").unlink()
    released = fed.path / A / "outbox" / "released"
    aside = released.rename(fed.path / A / "aside")
    released.mkdir()
    ledger = open_ledger(fed.site(A))
    event = open_ledger(fed.site(A)).entries()
    assert len(event) == 1
    lines = [json.loads(line) for line in whole.splitlines()]
    ledger.append(
        lines[1]["plan_sha256"], "router-location", lines[1]["mechanism"],
        GaussianEvent.model_validate_json(json.dumps(lines[1]["event"])),
    )  # fmt: skip
    released.rmdir()
    aside.rename(released)
    assert run("ddm-site", "ledger", "--site", fed.path / A)[0] == 1
    code, _, err = run("ddm-site", "ledger", "--site", fed.path / A, "--recover")
    assert (code, "1 of another history are carried on at the end" in err) == (0, True)
    entries = open_ledger(fed.site(A)).entries()
    assert [entry.purpose for entry in entries] == [
        *("expert", "router-location", "router-shape", "router-location")
    ]
    assert b"".join(entry.to_json() + b"\n" for entry in entries[:3]) == whole
    # once is enough
    code, _, err = run("ddm-site", "ledger", "--site", fed.path / A, "--recover")
    assert (code, "nothing is missing: the ledger has 4 entries" in err) == (0, True)


def test_run_that_was_lost_with_its_disk_is_counted_as_spent(run, fed):
    code, _, err = run(
        *("ddm-site", "ledger", "--site", fed.path / A, "--lost", "--plan", fed.published)
    )
    assert (code, "3 entries say now" in err) == (0, True)
    found = json.loads(run("ddm-site", "ledger", "--site", fed.path / A, "--json")[1])
    assert [entry["purpose"] for entry in found["entries"]][3:] == ["lost"] * 3
    assert float(found["releases_epsilon"]) > 2.5
    assert found["cut"] is None


def test_coordinator_refuses_a_ledger_that_forgets_what_it_admitted(fed, scratch):
    place = fed.log.newest(A).index
    verdict = offer(fed, forgetful_bundle(fed, scratch / "forgets"))
    assert verdict.error is not None
    assert verdict.error.code == "DDM210"
    assert f"its submission at entry {place} of the log has 3 entries" in verdict.error.message
    assert "agrees with 0 of them" in verdict.error.message


def test_coordinator_refuses_a_ledger_cut_and_spent_on_again(fed, scratch):
    def again(ledger):
        return [*ledger[:2], ledger[2] | {"nonce": "f" * 16}]

    verdict = offer(fed, forgetful_bundle(fed, scratch / "forgets", again))
    assert verdict.error is not None
    assert verdict.error.code == "DDM210"
    assert "agrees with 2 of them" in verdict.error.message


def test_coordinator_takes_a_ledger_that_goes_on(fed, scratch):
    verdict = offer(fed, forgetful_bundle(fed, scratch / "goes-on", lambda ledger: ledger))
    assert verdict.error is None
    assert fed.log.newest(A).receipt.ledger.entries == 3


def test_coordinator_refuses_a_forgetful_ledger_under_a_new_key(run, fed, scratch):
    assert run("ddm-site", "rotate", "--site", fed.path / A, "--plan", fed.published)[0] == 0
    request = fed.path / A / "rotation.dsse.json"
    code, _, err = run("ddm-coord", "roster", "rotate", request, "--coordinator", fed.home.path)
    assert code == 0, err
    verdict = offer(fed, forgetful_bundle(fed, scratch / "forgets"))
    assert verdict.error is not None
    assert verdict.error.code == "DDM210"


def test_coordinator_refuses_a_forgetful_ledger_under_a_new_plan(fed, scratch):
    proposals.publish_plan(
        fed.home, read_plan_toml(PLAN_TOML.replace("batch_size = 16", "batch_size = 8"))
    )
    verdict = offer(
        fed, forgetful_bundle(fed, scratch / "forgets", plan_sha256=fed.trust.plan_sha256)
    )
    assert verdict.error is not None
    assert verdict.error.code == "DDM210"
    (refused,) = fed.home.refused.iterdir()
    assert manifest(refused)["predicate"]["plan_sha256"] == fed.trust.plan_sha256


def test_ensemble_says_when_a_members_ledger_forgets(stages, scratch):
    """Whoever checks an ensemble needs no word of the coordinator for it."""
    fed = stages.admitted.copy(scratch / "lying", "consortium", A)
    bundle = forgetful_bundle(fed, scratch / "forgets")

    found = verify_bundle(bundle, fed.trust, now(), store=fed.home.blobs)
    admit(fed.home, fed.trust, recover(fed.home, fed.trust), found)  # a coordinator that looks away
    with pytest.raises(PolicyError, match="the ledger of the member `hospital-a` forgets"):
        assemble(fed.home, scratch / "ensemble", router=None, without=())
    assert not (scratch / "ensemble").exists()
    verify_ensemble(stages.ensemble, fed.root)


@pytest.mark.processes  # the budget of private training takes its time
def test_private_training_repeated_after_a_cut_is_refused_with_the_true_sum(run, scratch):
    """As it was found: both bundles were admitted at epsilon 7.9995, the true sum was 10.60."""
    fed = create_federation(scratch / "fed", sites=(A,))
    site = ("--site", fed.path / A, "--plan", fed.published)
    proposals.publish_plan(
        fed.home, read_plan_toml(PLAN_TOML.replace("max_epsilon = 3", PRIVATE_AT_8))
    )
    data = scratch / "images.npz"
    rng = np.random.default_rng(1)
    np.savez(data, images=rng.integers(0, 255, (32, 8, 8), dtype=np.uint8))
    train = ("train", *site, "--data", data, "--precision", "float32", "--gradients", "functional")
    for words in (
        train,
        ("review", *site),
        ("release", *site),
        ("submit", *site, "--to", fed.inbox),
    ):
        code, _, err = run("ddm-site", *words)
        assert code == 0, err
    assert run("ddm-coord", "admit", "--coordinator", fed.home.path)[0] == 0
    whole = cut(ledger_file(fed), 2)
    code, _, err = run("ddm-site", *train, "--restart")
    assert (code, "error[DDM210]" in err) == (1, True)
    assert run("ddm-site", "ledger", "--site", fed.path / A, "--recover")[0] == 0
    assert ledger_file(fed).read_bytes() == whole
    code, _, err = run("ddm-site", *train, "--restart")
    assert (code, "error[DDM301]" in err) == (1, True)
    assert "this would bring the site to epsilon 1" in err  # 10 and more
    # a site that tells it as if it had happened once is found out by the coordinator
    verdict = offer(fed, forgetful_bundle(fed, scratch / "forgets"))
    assert verdict.error is not None
    assert verdict.error.code == "DDM210"
