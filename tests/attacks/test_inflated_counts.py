"""A member that wants more of the samples than its images are worth writes its own statistics."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from federation import (
    PLAN_TOML,
    SITES,
    Federation,
    create_federation,
    forge_manifest,
    random_images,
    sign_files,
    train,
)
from safetensors.numpy import load_file, save

from coordinator.ensembles.image_counts import count_members
from coordinator.inbox.admission import current_members
from coordinator.roster import proposals
from ddm_fed.ensemble.folder import verify_ensemble
from ddm_fed.ensemble.load import load_releases
from ddm_fed.mixture import release_statistics, released_weights
from ddm_fed.records import read_plan_toml
from sites.outbox import stages
from sites.transport import submit
from sites.transport.base import FolderTransport

A = "hospital-a"


@pytest.fixture
def fed(copy_of) -> Federation:
    return copy_of("admitted", A)


def rewrite(fed: Federation, edit, folder: Path) -> None:
    """Puts the site's next bundle into the inbox, with other statistics and a true signature."""
    released = next((fed.path / A / "outbox" / "released").iterdir())
    bundle = Path(shutil.copytree(released, folder))
    vectors = edit(load_file(bundle / "router.safetensors"))
    sign_files(bundle, fed.key(A), router=save(vectors))
    newest, last = fed.log.newest(A), fed.log.last_sequence(A)

    def follow(fields):
        fields |= {"sequence": last + 1, "supersedes": newest.submission_sha256}
        fields["seen_checkpoint"] = json.loads(fed.log.head.to_json())

    forge_manifest(bundle, follow, fed.key(A))
    shutil.move(bundle, fed.home.incoming / "next")


def verify(run, fed: Federation):
    return run("ddm-coord", "admit", "--coordinator", fed.home.path)


def assemble(run, fed: Federation, target: Path, *words):
    return run("ddm-coord", "assemble", "--coordinator", fed.home.path, target, *words)


def release_of(fed: Federation, count: int):
    """The statistics that an honest site of `count` images releases."""
    found = release_statistics(random_images(5, count), fed.trust.plan, lambda *_: None)
    return {name: item.value for name, item in found.items()}


@pytest.mark.parametrize("factor", [1000, 10**6, 10**9])
def test_statistics_times_a_large_number_are_refused(run, fed, scratch, factor):
    rewrite(fed, lambda found: {name: item * factor for name, item in found.items()}, scratch / "b")
    code, _, err = verify(run, fed)
    assert (code, "error[DDM218]" in err) == (1, True)
    assert "clipping and noise of the plan allow" in err


@pytest.mark.parametrize("extreme", [np.iinfo(np.int64).min, np.iinfo(np.int64).max])
@pytest.mark.parametrize(("message", "place"), [("location", 0), ("location", 2), ("shape", -1)])
def test_extreme_integer_is_refused(run, fed, scratch, extreme, message, place):
    def edit(found):
        found[message][place] = extreme
        return found

    rewrite(fed, edit, scratch / "b")
    code, _, err = verify(run, fed)
    assert (code, "error[DDM218]" in err) == (1, True)
    assert f"{message}: one of its integers" in err


def test_count_alone_times_a_thousand_is_refused(run, fed, scratch):
    def edit(found):
        found["location"][0] *= 1000
        return found

    rewrite(fed, edit, scratch / "b")
    code, _, err = verify(run, fed)
    assert (code, "error[DDM218]" in err) == (1, True)


def test_honest_release_of_a_larger_site_is_shown_for_a_decision(run, fed, scratch):
    rewrite(fed, lambda _: release_of(fed, 3000), scratch / "b")
    code, _, err = verify(run, fed)
    assert code == 0, err
    assert "WARNING: `hospital-a` says it has" in err
    code, _, err = assemble(run, fed, scratch / "ensemble")
    assert (code, "error[DDM104]" in err) == (1, True)
    assert "its bundle before said" in err
    assert "--accept hospital-a" in err
    assert not (scratch / "ensemble").exists()
    code, _, err = assemble(run, fed, scratch / "without", "--without", A)
    assert code == 0, err
    code, _, err = assemble(run, fed, scratch / "ensemble", "--accept", A)
    assert code == 0, err
    # the decision stands, and is written down
    assert assemble(run, fed, scratch / "again")[0] == 0
    noted = [json.loads(line) for line in fed.home.audit.read_bytes().splitlines()]
    (decision,) = [event for event in noted if event["event"] == "count-accepted"]
    assert (decision["site"], int(decision["units"]) > 2900) == (A, True)
    # and another jump is another decision
    rewrite(fed, lambda _: release_of(fed, 9000), scratch / "c")
    assert verify(run, fed)[0] == 0
    assert assemble(run, fed, scratch / "third")[0] == 1


def test_count_that_moves_within_the_noise_needs_no_decision(run, fed, scratch):
    rewrite(fed, lambda _: release_of(fed, 30), scratch / "b")
    code, _, err = verify(run, fed)
    assert (code, "WARNING" in err) == (0, False)
    assert assemble(run, fed, scratch / "ensemble")[0] == 0


@pytest.mark.slow
def test_share_of_one_member_is_capped_by_the_plan(run, scratch):
    fed = create_federation(scratch / "fed")
    capped = PLAN_TOML.replace("radius = 3", 'radius = 3\nmax_share = "0.4"')
    proposals.publish_plan(fed.home, read_plan_toml(capped))
    for seed, name in enumerate(SITES):
        fed.look(name)
        train(fed.site(name), fed.trust, random_images(seed, 3000 if name == A else 400))
        stages.review(fed.site(name), fed.trust)
        stages.release(fed.site(name), fed.trust)
        submit.submit(fed.site(name), fed.trust, FolderTransport(fed.inbox))
    assert verify(run, fed)[0] == 0
    code, _, err = assemble(run, fed, scratch / "ensemble")
    assert code == 0, err
    assert "WARNING: `hospital-a` says it has" in err
    assert "the plan's `router.max_share` lets it weigh 40%" in err
    verified = verify_ensemble(scratch / "ensemble", fed.root)
    weights = released_weights(fed.trust.plan, load_releases(verified)).sum(1)
    assert float(weights[0] / weights.sum()) == pytest.approx(0.4)
    counted = {item.site: item for item in count_members(fed.home, fed.trust, fed.log, _all(fed))}
    assert counted[A].share > 0.7
    assert counted[A].weighs == pytest.approx(0.4)


def _all(fed: Federation):
    return current_members(fed.home, fed.trust, fed.log)
