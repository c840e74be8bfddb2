"""Options that cannot be used: whoever finds it, both programs end with 2 and name the option."""

import json
import shutil
import sys
from typing import NamedTuple

import numpy as np
import pytest
from federation import PLAN_TOML, SITES

import coordinator.cli.main
import sites.cli.main

MAIN = {"ddm-site": sites.cli.main.main, "ddm-coord": coordinator.cli.main.main}
KEY = "ed25519:" + "a" * 64
PIN = "sha256:" + "a" * 64
NUMBERS = ("nan", "inf")


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys, monkeypatch):
    for name in ("DDM_SITE", "DDM_COORDINATOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "240")

    def ended(command, *arguments):
        monkeypatch.setattr(sys, "argv", [command, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            MAIN[command]()
        return Ended(caught.value.code or 0, *capsys.readouterr())

    return ended


@pytest.fixture(scope="module")
def place(stages, tmp_path_factory):
    """A folder with a coordinator, a site, an ensemble and images, for all commands below.

    None of them gets as far as changing anything, so they share it.
    """
    folder = tmp_path_factory.mktemp("options")
    stages.admitted.copy(folder, "consortium", SITES[0])
    shutil.copytree(stages.ensemble, folder / "ensemble")
    (folder / "empty").mkdir()
    (folder / "plan.toml").write_text(PLAN_TOML)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    np.savez(folder / "images.npz", images=pixels)
    return folder


# what is typed, the option that is named, and what is wrong with it
SITE = ["--site", SITES[0]]
PLAN = [*SITE, "--plan", "consortium/published"]
TRAIN = ["ddm-site", "train", *PLAN, "--data", "images.npz", "--restart"]
HOME = ["--coordinator", "consortium"]
SAMPLE = ["ddm-coord", "sample", "ensemble", *HOME, "--out", "out"]
BUILD = ["ddm-coord", "router", "build", "ensemble", *HOME, "--out", "out"]
ROTATE = ["ddm-coord", "roster", "rotate", *HOME]
SERVE = ["ddm-coord", "serve", *HOME]
CASES = [
    # devices
    ([*SAMPLE, "--device", "tpu"], "--device tpu", "unknown device"),
    ([*SAMPLE, "--device", "cuda:99"], "--device cuda:99", "this machine has"),
    ([*BUILD, "--device", "cpu:3"], "--device cpu:3", "this machine has"),
    # sampling
    ([*SAMPLE, "--strategy", "best"], "--strategy", "best"),
    ([*SAMPLE, "--router", "prior", "--strategy", "per-step"], "--strategy", "does not look"),
    ([*SAMPLE, "--router", "replay"], "--router replay", "no such router"),
    ([*SAMPLE, "--class", "fox"], "--class fox", "not in the plan"),
    ([*SAMPLE, "--guidance", "2"], "--guidance 2", "needs classes"),
    ([*SAMPLE, "--router", "prior", "--attribution"], "--attribution", "looks at no image"),
    *(([*SAMPLE, "--guidance", bad], f"--guidance {bad}", "finite") for bad in NUMBERS),
    # routers
    ([*BUILD, "--low", "heads"], "--low heads", "--kind hybrid"),
    ([*BUILD, "--frequencies", "4000"], "--frequencies 4000", "64 pixels"),
    ([*BUILD, "--kind", "mixture", "--no-calibrate"], "--no-calibrate", "needs no samples"),
    ([*BUILD, "--switch", "nan"], "--switch nan", "finite"),
    # assembling and removing
    (["ddm-coord", "assemble", "out", *HOME, "--router", "pooled"], "--router pooled", "neither"),
    (["ddm-coord", "assemble", "out", *HOME, "--router", "replay"], "--router replay", "samples"),
    (["ddm-coord", "assemble", "out", *HOME, "--without", "x"], "--without x", "not in the roster"),
    (
        ["ddm-coord", "remove", SITES[0], *HOME, "--out", "out", "--reason", "a\nb"],
        "--reason",
        "cannot be seen",
    ),
    # evaluating
    (
        ["ddm-coord", "evaluate", "empty", "--real", "images.npz", "--features", "inception"],
        "--weights",
        "need each other",
    ),
    # what is pinned and published
    (["ddm-coord", "verify", "ensemble"], "--root", "is missing"),
    (["ddm-coord", "verify", "ensemble", "--root", "sha256:ab"], "--root sha256:ab", "finger"),
    (["ddm-coord", "verify", "empty", "--root", PIN], "--published", "is missing"),
    # the roster
    (ROTATE, "--coordinator-key", "0 of REQUEST"),
    ([*ROTATE, "--coordinator-key", "--server-certificate"], "--root-key", "2 of REQUEST"),
    ([*ROTATE, "--root-key", "a.pub"], "--threshold", "need each other"),
    ([*ROTATE, "--root-key", "a.pub", "--threshold", "2"], "--threshold 2", "is only 1"),
    (
        ["ddm-coord", "roster", "revoke", SITES[0], *HOME, "--certificates", "--key", KEY],
        "--certificates",
        "--key",
    ),
    (["ddm-coord", "roster", "revoke", SITES[0], *HOME, "--key", KEY], "--key", "no such key"),
    (
        ["ddm-coord", "roster", "add", "x", *HOME, "--key", "ed25519:ab"],
        "--key ed25519:ab",
        "not a key",
    ),
    (["ddm-coord", "roster", "add", "./x", *HOME], "REQUEST ./x", "neither a file"),
    (["ddm-coord", "publish", "no.toml", *HOME], "PLAN no.toml", "cannot be read"),
    (["ddm-coord", "init", "out", "--federation", "A b"], "--federation", "a to z"),
    (
        ["ddm-coord", "init", "out", "--federation", "a", "--threshold", "2"],
        "--threshold 2",
        "only 1",
    ),
    # serving and looking
    *(
        ([*SERVE, option, "8443"], f"{option} 8443", "host is missing")
        for option in ("--listen", "--enroll", "--web")
    ),
    ([*SERVE, "--listen", "x"], "--listen x", "cannot listen on this"),
    *(([*SERVE, "--reserve", bad], f"--reserve {bad}", "finite") for bad in NUMBERS),
    *(([*SERVE, "--timeout", bad], f"--timeout {bad}", "finite") for bad in NUMBERS),
    (["ddm-coord", "status", *HOME, "--watch", "--every", "nan"], "--every nan", "finite"),
    (["ddm-coord", "status", *HOME, "--every", "5"], "--every", "--watch"),
    (["ddm-coord", "status", *HOME, "--json", "--prometheus", "x"], "--prometheus", "--json"),
    # training
    ([*TRAIN, "--seed", "1", "--gradients", "recorded"], "--gradients", "with noise"),
    ([*TRAIN, "--ema-half-life", "7"], "--ema-half-life 7", "no average"),
    ([*TRAIN, "--architecture", "DiT-XL/2"], "--architecture", "does not allow"),
    ([*TRAIN, "--path", "round"], "--path", "linear"),
    ([*TRAIN, "--base", "images.npz"], "--base", "no checkpoint"),
    ([*TRAIN, "--shard"], "--shard", "only one"),
    ([*TRAIN, "--checkpoint-every", "nan"], "--checkpoint-every nan", "finite"),
    ([*TRAIN, "--max-bad-fraction", "nan"], "--max-bad-fraction nan", "finite"),
    # the site's own
    (["ddm-site", "init", "out", "--name", "A b", "--root", PIN], "--name", "a to z"),
    (["ddm-site", "init", "out", "--name", "a", "--root", "x"], "--root", "64 hex digits"),
    (
        ["ddm-site", "init", "out", "--name", "a", "--root", PIN, "--max-epsilon", "-1"],
        "--max-epsilon",
        "greater",
    ),
    (["ddm-site", "ledger", *SITE, "--delta", "2"], "--delta 2.0", "between"),
    (["ddm-site", "ledger", *SITE, "--lost"], "--lost", "--plan"),
    (["ddm-site", "ledger", *SITE, "--from", "empty"], "--from", "--recover"),
    (["ddm-site", "budget", "--plan", "consortium/published"], "--site", "is missing"),
    (["ddm-site", "rotate", *PLAN, "--certificate", "--lost"], "--certificate", "no key"),
    (["ddm-site", "fetch", *SITE, "--from", "http://x"], "http://x", "not the address"),
    (["ddm-site", "enroll", *SITE, "--to", "x"], "x", "not the address"),
    (["ddm-site", "submit", *PLAN, "--to", "nonsense://x"], "nonsense://x", "kind of URL"),
    (["ddm-site", "submit", *PLAN, "--to", "flower:"], "--to flower:", "names no place"),
    *(
        (["ddm-site", "submit", *PLAN, "--to", "x", "--timeout", bad], f"--timeout {bad}", "finite")
        for bad in NUMBERS
    ),
]


@pytest.mark.parametrize(
    ("words", "option", "why"), CASES, ids=[f"{' '.join(c[0][:2])} {c[1]}" for c in CASES]
)
def test_option_that_cannot_be_used_ends_with_2_and_is_named(
    run, place, monkeypatch, words, option, why
):
    monkeypatch.chdir(place)
    shutil.rmtree(place / "out", ignore_errors=True)
    ended = run(*words)
    assert (ended.code, ended.out) == (2, ""), ended.err
    told = ended.err[ended.err.index("error[DDM107]: ") :]
    message, _, hint = told.partition("\n\nhint: ")
    assert option in f"{message} {hint}"
    assert why in message
    assert hint.strip()
    assert not (place / "out").exists()


def test_ledger_of_the_site_was_never_touched_by_a_bad_option(place, stages):
    kept = place / SITES[0] / "ledger.jsonl"
    assert kept.read_bytes() == (stages.admitted.path / SITES[0] / "ledger.jsonl").read_bytes()
    for line in kept.read_text().splitlines():
        json.loads(line)
