"""`ddm-site train --extend`: a finished run goes on under a plan of more steps, or says why not."""

import shutil

import commands
import numpy as np
import pytest
from federation import (
    PLAN_TOML,
    PRIVATE,
    Federation,
    create_federation,
    manifest,
    random_images,
)
from typer.testing import CliRunner

from coordinator.roster import proposals
from ddm_fed.bundle.verify import EXPERT_FILE
from ddm_fed.errors import CheckpointError, DdmFedError, OptionError
from ddm_fed.progress import Watch
from ddm_fed.records import read_plan_toml
from ddm_fed.training import RunOptions, read_identity, steps_done
from sites.cli.main import app
from sites.outbox import stages
from sites.train.expert import CHECKPOINT_FILE, TrainingOptions
from sites.train.pipeline import run_plan

pytestmark = pytest.mark.slow

SITE = "hospital-a"
ROOM = PLAN_TOML.replace("max_epsilon = 3", "max_epsilon = 10")  # the statistics leave twice
TRAINING = 'steps = {steps}\nschedule = "constant"\nwarmup_steps = 2\nema_half_lives = [4, 2]'
SHORT, LONG = 5, 9


def plan_of(steps, **replaced):
    text = ROOM.replace("steps = 3", TRAINING.format(steps=steps))
    for old, new in replaced.values():
        assert old in text
        text = text.replace(old, new)
    return read_plan_toml(text)


def publish(fed, plan):
    proposals.publish_plan(fed.home, plan)
    return fed.trust.plan_sha256


def words(fed, *more, data="images.npz"):
    given = ("--site", fed.path / SITE, "--plan", fed.published, "--data", fed.path / data)
    return ["train", *map(str, given), "--precision", "float32", "--yes", *more]


def refused(fed, *more, **options):
    """Runs the command in this process; returns the error it must end with."""
    ended = CliRunner().invoke(app, words(fed, *more, **options))
    assert isinstance(ended.exception, DdmFedError), ended.output
    return ended.exception


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A site whose run of a constant learning rate is finished."""
    fed = create_federation(tmp_path_factory.mktemp("extend"), sites=(SITE,))
    for seed, name in enumerate(("images.npz", "others.npz")):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 8, 8), np.uint8)
        np.savez(fed.path / name, images=pixels)
    publish(fed, plan_of(SHORT))
    commands.done("ddm-site", *words(fed, "--seed", "3"))
    return fed


@pytest.fixture
def fed(trained, tmp_path):
    shutil.copytree(trained.path, tmp_path / "fed", symlinks=True)
    return Federation(tmp_path / "fed")


def test_run_that_is_extended_is_bit_for_bit_the_run_in_one_go(fed, tmp_path):
    (earlier,) = (fed.path / SITE / "private").glob("*/checkpoint.safetensors")
    before, old = earlier.read_bytes(), fed.trust.plan_sha256
    new = publish(fed, plan_of(LONG))
    shutil.copytree(fed.path, tmp_path / "whole", symlinks=True)
    whole = Federation(tmp_path / "whole")
    said = commands.done("ddm-site", *words(fed, "--extend")).err
    assert f"goes on from step {SHORT} of an earlier plan, to step {LONG}" in said
    commands.done("ddm-site", *words(whole, "--seed", "3"))
    found, expected = (each.site(SITE).work(new) for each in (fed, whole))
    assert steps_done(found / CHECKPOINT_FILE) == LONG
    assert (found / EXPERT_FILE).read_bytes() == (expected / EXPERT_FILE).read_bytes()
    assert (found / EXPERT_FILE).read_bytes() != (earlier.parent / EXPERT_FILE).read_bytes()
    assert earlier.read_bytes() == before
    assert read_identity(found / CHECKPOINT_FILE).extends_sha256 == old
    assert read_identity(expected / CHECKPOINT_FILE).extends_sha256 == ""
    # what leaves names the plan it is of, and says nothing of another
    drafts = [manifest(bundle) for bundle in stages.find_bundles(fed.site(SITE).drafts)]
    (draft,) = [each for each in drafts if each["predicate"]["plan_sha256"] == new]
    assert draft["predicate"]["training"]["steps"] == LONG
    assert old not in str(draft["predicate"]["training"])
    # the same command again, and without the word, finds it finished
    for more in (("--extend",), ()):
        assert "trained already" in commands.done("ddm-site", *words(fed, *more)).err
    # the other run of this plan began with its first step, and is not taken for an extended one
    assert "began with its first step" in refused(whole, "--extend").message


def test_extended_run_can_be_extended_again_and_the_longest_is_taken(fed):
    for steps in (7, LONG):
        publish(fed, plan_of(steps))
        said = commands.done("ddm-site", *words(fed, "--extend")).err
    assert f"goes on from step 7 of an earlier plan, to step {LONG}" in said


@pytest.mark.parametrize(
    ("steps", "replaced", "message"),
    [
        (LONG, {"a": ("batch_size = 16", "batch_size = 8")}, "differs in `training.batch_size`"),
        (LONG, {"a": ("epsilon = 2", "epsilon = 1")}, "differs in `router.epsilon`"),
        (LONG, {"a": ('"constant"', '"cosine"')}, '`training.schedule` is "cosine"'),
        (LONG, {"a": ("max_epsilon = 10\n", PRIVATE)}, "trained with noise"),
        (LONG, {"a": ('"DiT-Nano/2"', '"mixture+DiT-Nano/2"')}, "mixture of the site's release"),
        (SHORT - 1, {}, f"it has {SHORT} steps already, and {SHORT - 1} are due"),
    ],
)
def test_plan_that_is_not_the_same_but_for_more_steps_is_refused(fed, steps, replaced, message):
    new = publish(fed, plan_of(steps, **replaced))
    spent = (fed.path / SITE / "ledger.jsonl").read_bytes()
    error = refused(fed, "--extend")
    assert isinstance(error, OptionError)
    assert "--extend" in error.message
    assert message in error.message
    assert not (fed.site(SITE).work(new) / CHECKPOINT_FILE).exists()
    assert (fed.path / SITE / "ledger.jsonl").read_bytes() == spent


def test_run_of_other_images_or_another_seed_is_not_extended(fed):
    new = publish(fed, plan_of(LONG))
    for more, options, kind, message in (
        ((), {"data": "others.npz"}, OptionError, "other images"),
        (("--seed", "4"), {}, CheckpointError, "another seed"),
    ):
        error = refused(fed, "--extend", *more, **options)
        assert isinstance(error, kind)
        assert message in error.message
        assert not (fed.site(SITE).work(new) / CHECKPOINT_FILE).exists()


def test_run_that_was_stopped_half_way_is_passed_over(fed):
    stopped = publish(fed, plan_of(7))

    def stop(report):
        if report.step == 2:
            raise KeyboardInterrupt

    run, site = RunOptions(precision="float32", checkpoint_every_s=0), fed.site(SITE)
    log = fed.look(SITE).log
    with pytest.raises(CheckpointError, match="interrupted"):
        run_plan(site, fed.trust, log, random_images(0), TrainingOptions(run), Watch(stop))
    work = fed.site(SITE).work(stopped)
    assert steps_done(work / CHECKPOINT_FILE) == 2
    new = publish(fed, plan_of(LONG))
    commands.done("ddm-site", *words(fed, "--extend"))
    assert steps_done(fed.site(SITE).work(new) / CHECKPOINT_FILE) == LONG
    shutil.rmtree(fed.site(SITE).work(new))
    for folder in (fed.path / SITE / "private").glob("*"):
        if (folder / CHECKPOINT_FILE).exists() and folder != work:
            (folder / CHECKPOINT_FILE).unlink()
    assert f"{work.name}: its training is not finished" in refused(fed, "--extend").message


def test_damaged_run_and_a_longer_one_of_other_images_hinder_no_run_that_fits(fed):
    longer = publish(fed, plan_of(7))
    commands.done("ddm-site", *words(fed, data="others.npz"))
    assert steps_done(fed.site(SITE).work(longer) / CHECKPOINT_FILE) == 7
    damaged = fed.site(SITE).work("d" * 64)
    damaged.mkdir(exist_ok=True)
    (damaged / "plan.json").write_bytes(b"{")
    (damaged / CHECKPOINT_FILE).write_bytes(b"no checkpoint")
    new = publish(fed, plan_of(LONG))
    commands.done("ddm-site", *words(fed, "--extend"))
    assert steps_done(fed.site(SITE).work(new) / CHECKPOINT_FILE) == LONG


def test_plan_with_more_room_for_the_statistics_extends_as_well(fed):
    new = publish(fed, plan_of(LONG, a=("max_epsilon = 10", "max_epsilon = 11")))
    commands.done("ddm-site", *words(fed, "--extend"))
    assert steps_done(fed.site(SITE).work(new) / CHECKPOINT_FILE) == LONG


def test_run_whose_checkpoint_and_plan_are_of_two_plans_is_not_extended(fed):
    work = fed.site(SITE).work(fed.trust.plan_sha256)
    other = plan_of(SHORT).model_copy(update={"description": "of another day"})
    (work / "plan.json").write_bytes(other.to_json())
    publish(fed, plan_of(LONG))
    assert "not of one plan" in refused(fed, "--extend").message


def test_run_under_a_cosine_keeps_no_plan_and_is_named_when_none_fits(fed):
    work = fed.site(SITE).work(fed.trust.plan_sha256)
    assert (work / "plan.json").is_file()
    (work / "plan.json").unlink()
    publish(fed, plan_of(LONG))
    assert "it has none that was trained without noise" in refused(fed, "--extend").message
