"""`ddm-coord plan new`: five questions, and a plan that is published as it was written."""

import os
import re
import tomllib
from pathlib import Path

import pytest
from captions import write_clip
from commands import Started, environment
from federation import SITES, Federation, create_federation

from ddm_fed.privacy import epsilon
from ddm_fed.records import read_plan_file
from ddm_fed.storage.digests import sha256_of
from ddm_fed.training.plan_cost import planned_events

ANSWERS = {
    "--federation": "test",
    "--size": "28",
    "--channels": "1",
    "--classes": "none",
    "--sites": "3",
    "--epsilon": "8",
    "--machine": "cpu",
    "--hours": "8",
}


@pytest.fixture(scope="module")
def fed(tmp_path_factory) -> Federation:
    return create_federation(tmp_path_factory.mktemp("new"), sites=SITES[:1])


@pytest.fixture
def new(run, tmp_path):
    """Returns how `plan new` ends, with some of the answers replaced or left out, and its file."""

    def asked(program="ddm-coord", **replaced):
        answers = ANSWERS | {f"--{name.replace('_', '-')}": is_ for name, is_ in replaced.items()}
        words = [word for pair in answers.items() if pair[1] is not None for word in pair]
        return run(program, "plan", "new", "--out", tmp_path / "plan.toml", *words)

    return asked


CASES = {
    "private": {},
    "private classes": {"classes": "healthy, ill", "size": "64x48", "channels": "3"},
    "many classes": {"classes": ",".join(f"class {n}" for n in range(200)), "size": "256"},
    "little epsilon": {"epsilon": "0.5", "units": "90"},
    "many units": {"units": "3000000"},
    "without noise": {"epsilon": "none"},
    "minutes": {"epsilon": "none", "hours": "0.01"},
    "gpu": {"epsilon": "none", "machine": "h100", "hours": "48", "size": "64", "channels": "3"},
    "odd size": {"epsilon": "none", "size": "29x31"},
    "quotes": {"classes": 'a "b", c\\d, é'},
    "smallest": {"size": "4", "epsilon": "none"},
}


@pytest.mark.parametrize("case", CASES)
def test_plan_is_shown_and_published_as_it_was_written(run, new, fed, tmp_path, case):
    ended = new(**CASES[case])
    assert ended.code == 0, ended.err
    text = (tmp_path / "plan.toml").read_text("utf-8")
    assert text.count("#") > 5
    assert run("ddm-coord", "plan", "show", tmp_path / "plan.toml").code == 0
    ended = run("ddm-coord", "publish", tmp_path / "plan.toml", "--coordinator", fed.home.path)
    assert ended.code == 0, ended.err
    written = read_plan_file(tmp_path / "plan.toml")
    assert fed.trust.plan == written.model_copy(update={"version": fed.trust.plan.version})
    assert float(written.privacy.delta) * 3_000_000 <= 0.3 or case != "many units"


def test_epsilon_of_a_private_plan_is_what_was_asked_and_nothing_leaves_without_noise(
    new, tmp_path
):
    assert new(epsilon="4").code == 0
    plan = read_plan_file(tmp_path / "plan.toml")
    events = planned_events(plan)
    assert epsilon(events.all, float(plan.privacy.delta)) <= 4
    assert plan.privacy.max_epsilon == 4
    assert set(plan.privacy.must_be_private) == {"router", "expert"}
    assert plan.expert.architecture == ("mixture",)


def test_plan_without_noise_says_so_in_words(new, tmp_path):
    assert new(epsilon="none").code == 0
    assert "WITHOUT noise" in (tmp_path / "plan.toml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("bound", ["8", "none"])
def test_plan_of_captions_names_their_encoder(new, tmp_path, bound):
    weights = write_clip(tmp_path / "clip.safetensors")
    ended = new(classes=None, text_encoder=str(weights), epsilon=bound)
    assert ended.code == 0, ended.err
    plan = read_plan_file(tmp_path / "plan.toml")
    assert plan.data.text is not None
    assert plan.data.text.sha256 == sha256_of(weights)
    assert (plan.privacy.sgd is not None) == (bound == "8")
    if plan.privacy.sgd is not None:
        found = epsilon(planned_events(plan).all, float(plan.privacy.delta))
        assert 7 < found <= 8


@pytest.mark.slow
def test_more_hours_give_more_steps_or_a_larger_network(new, tmp_path):
    def planned(hours):
        (tmp_path / "plan.toml").unlink(missing_ok=True)
        assert new(epsilon="none", hours=hours).code == 0
        found = tomllib.loads((tmp_path / "plan.toml").read_text())
        return found["expert"]["architecture"], found["training"]["steps"]

    short, longer, longest = planned("0.1"), planned("1"), planned("200")
    assert short[0] == longer[0] == "DiT-Nano/2"
    assert short[1] < longer[1]
    assert longest[0] not in (short[0], longest)


def test_exact_guess_of_units_is_not_published(new, tmp_path):
    assert new(units="1797").code == 0
    text = (tmp_path / "plan.toml").read_text()
    assert "1797" not in text
    assert "2000" in text


@pytest.mark.parametrize("option", [*ANSWERS])
def test_answer_that_is_missing_without_a_terminal_is_named(new, tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    ended = new(**{option.removeprefix("--"): None})
    assert (ended.code, ended.out) == (2, "")
    assert f"error[DDM107]: {option} is missing" in ended.err
    assert not (tmp_path / "plan.toml").exists()


BAD = [
    *(("--size", bad) for bad in ("3", "2000", "8x8x8", "a", "x", "-8")),
    *(("--channels", bad) for bad in ("2", "x")),
    *(("--classes", bad) for bad in ("a,,b", "a,a", ",", "a" * 90, "10")),
    *(("--sites", bad) for bad in ("0", "-1", "x", "1.5")),
    *(("--epsilon", bad) for bad in ("0", "-1", "nan", "inf", "x", "2000")),
    *(("--hours", bad) for bad in ("0", "nan", "inf", "x", "-1")),
    ("--machine", "tpu"),
    ("--federation", "A b"),
]


@pytest.mark.parametrize(("option", "bad"), BAD)
def test_answer_that_cannot_be_used_ends_with_2_and_is_named(new, tmp_path, option, bad):
    ended = new(**{option.removeprefix("--"): bad})
    assert (ended.code, ended.out) == (2, "")
    assert option in ended.err[ended.err.index("error[DDM107]") :]
    assert not (tmp_path / "plan.toml").exists()


def test_file_that_exists_is_kept(new, tmp_path):
    (tmp_path / "plan.toml").write_text("mine")
    ended = new()
    assert (ended.code, "--out" in ended.err) == (2, True)
    assert (tmp_path / "plan.toml").read_text() == "mine"


def test_person_on_a_terminal_is_asked_and_the_coordinators_federation_is_known(fed, tmp_path):
    here, there = os.openpty()
    out = tmp_path / "plan.toml"
    words = ("plan", "new", "--coordinator", fed.home.path, "--out", out, "--classes", "none")
    with Started("ddm-coord", *words, stdin=there, stderr=there, env=environment()) as process:
        os.close(there)
        asked = _answer(here, ["28x28", "3", "4", "none", "cpu", "1"])
        assert process.wait(120) == 0, asked
    os.close(here)
    assert "name of the federation" not in asked
    for question in ("height x width", "channels", "how many sites", "epsilon", "machine", "hours"):
        assert question in asked
    plan = read_plan_file(out)
    assert (plan.federation, plan.data.shape) == ("test", (3, 28, 28))
    assert re.search(r"# For 4 sites", Path(out).read_text())


def _answer(terminal: int, answers: list[str]) -> str:
    """Types each answer when a question is asked; returns all that was shown."""
    shown = ""
    for answer in answers:
        before = shown
        while not re.search(r": $", shown[len(before) :]):
            shown += os.read(terminal, 65536).decode()
        os.write(terminal, f"{answer}\n".encode())
    while True:
        try:
            block = os.read(terminal, 65536)
        except OSError:  # Linux says so when the last writer is gone
            return shown
        shown += block.decode()
