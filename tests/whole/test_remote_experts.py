"""Experts that stay at their sites: the images of an ensemble with all weights, bit for bit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import Started, done
from federation import Federation
from held import (
    AT_ONCE,
    EVALUATIONS,
    KEEPING,
    A,
    B,
    C,
    Ensembles,
    build_ensembles,
    build_fresh,
    charged,
    served_lines,
    serving,
    wait_until,
)

from ddm_fed.storage.digests import sha256_of

pytestmark = pytest.mark.processes
COMPOSE = Path(__file__).parents[2] / "examples" / "deployment" / "compose" / "compose.yaml"
STICKY = ("--strategy", "sticky", "--steps", 3)
OTHERS = {  # with seeds of their own: a question that another run asked would be free
    "full-guided": ("--strategy", "full", "--steps", 2, "--guidance", 2, "--seed", 1),
    "redrawn-sde": ("--strategy", "per-step", "--steps", 3, "--solver", "sde", "--seed", 2),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Ensembles:
    """Three sites, trained once; nothing was served yet."""
    return build_ensembles(tmp_path_factory.mktemp("held"))


@pytest.fixture
def ensembles(built: Ensembles, scratch: Path) -> Ensembles:
    base = scratch / "copy"
    shutil.copytree(built.fed.path, base, symlinks=True)
    return Ensembles(Federation(base), base / "local", base / "held")


def test_experts_that_never_left_are_assembled_and_asked(run, tmp_path):
    fed = build_fresh(tmp_path / "fed")
    held = fed.path / "held"
    brought = sorted(path.parent.name for path in held.rglob("expert.safetensors"))
    assert brought == [B]
    of_sites = {
        sha256_of(file) for name in KEEPING for file in (fed.site(name).path).rglob("expert.*")
    }
    everywhere = [file for file in fed.home.path.rglob("*") if file.is_file()]
    assert not of_sites & set(map(sha256_of, everywhere))
    asked = Ensembles(fed, held, held)
    with serving(fed, A) as one, serving(fed, C) as other:
        ports = {A: one.port, C: other.port}
        ended = run("ddm-coord", *words(asked, held, tmp_path / "out", ports=ports))
        assert ended.code == 0, ended.err
    with np.load(tmp_path / "out" / "samples.npz") as drawn:
        assert len(drawn["images"]) == 12


def words(ensembles: Ensembles, folder: Path, out: Path, options=STICKY, ports=None):
    remotes = [f"--remote={name}=127.0.0.1:{port}" for name, port in (ports or {}).items()]
    chosen = ("--count", 12, "--in-flight", 6, "--batch-size", AT_ONCE, "--device", "cpu")
    home = ("--coordinator", ensembles.fed.home.path, "--out", out, "--no-png")
    return ("sample", folder, *home, *chosen, *options, *remotes)


def assert_same_images(one: Path, other: Path) -> None:
    with np.load(one / "samples.npz") as first, np.load(other / "samples.npz") as second:
        assert first.files == second.files
        for name in first.files:
            assert first[name].tobytes() == second[name].tobytes(), name


def is_healthy(port: int) -> bool:
    """Returns what the health check of examples/deployment says of a port."""
    service = yaml.safe_load(COMPOSE.read_text())["services"]["hospital-a-serve"]
    *_, option, script = service["healthcheck"]["test"]
    words = [sys.executable, option, script.replace("8445", str(port))]
    return subprocess.run(words, capture_output=True, timeout=30, check=False).returncode == 0


def test_images_are_the_same_bits_as_with_local_weights_and_again_at_no_cost(
    ensembles: Ensembles, scratch: Path
):
    fed = ensembles.fed
    for name, options in {"sticky": STICKY, **OTHERS}.items():
        done("ddm-coord", *words(ensembles, ensembles.local, scratch / f"local-{name}", options))
    with serving(fed, A) as a, serving(fed, C) as c:
        ports = {A: a.port, C: c.port}
        for name, options in {"sticky": STICKY, **OTHERS}.items():
            before = {site: charged(fed, site) for site in KEEPING}
            out = scratch / f"held-{name}"
            ended = done("ddm-coord", *words(ensembles, ensembles.held, out, options, ports))
            assert_same_images(scratch / f"local-{name}", out)
            calls = json.loads((out / "samples.json").read_text())["expert_calls"]
            spent = {site: charged(fed, site) - before[site] for site in KEEPING}
            assert spent == {site: calls[site] for site in KEEPING}
            assert all(spent.values())
        assert "NOT bounded by any epsilon" in ended.out + ended.err
        before = {site: served_lines(fed, site) for site in KEEPING}
        again = words(ensembles, ensembles.held, scratch / "again", STICKY, ports)
        done("ddm-coord", *again)
        assert_same_images(scratch / "local-sticky", scratch / "again")
        assert is_healthy(a.port)  # which is no question
        assert {site: served_lines(fed, site) for site in KEEPING} == before
    assert not is_healthy(a.port)


def test_site_that_is_killed_and_started_again_is_charged_once_and_the_images_are_the_same(
    ensembles: Ensembles, scratch: Path
):
    fed, steps = ensembles.fed, ("--strategy", "sticky", "--steps", 12)
    done("ddm-coord", *words(ensembles, ensembles.local, scratch / "local", steps))
    with serving(fed, C) as c:
        with serving(fed, A) as a:
            ports = {A: a.port, C: c.port}
            sampling = Started(
                "ddm-coord", *words(ensembles, ensembles.held, scratch / "held", steps, ports)
            )
            wait_until(lambda: charged(fed, A) > 0)
            a.process.kill()
        assert sampling.poll() is None, "it ended before the kill"
        with serving(fed, A, a.port) as again:
            assert again.left == EVALUATIONS - charged(fed, A)
            assert sampling.wait(120) == 0, sampling.said()
    sampling.stdout.close()
    assert_same_images(scratch / "local", scratch / "held")
    calls = json.loads((scratch / "held" / "samples.json").read_text())["expert_calls"]
    assert charged(fed, A) == calls[A]
    questions = [line["question"] for line in served_lines(fed, A) if "evaluations" in line]
    assert len(set(questions)) == len(questions)


def test_allowance_that_is_spent_is_spent_after_a_restart_too(
    run, ensembles: Ensembles, scratch: Path
):
    fed = ensembles.fed
    steps = ("--strategy", "sticky", "--steps", 120)
    with serving(fed, A) as a, serving(fed, C) as c:
        ports = {A: a.port, C: c.port}
        ended = run("ddm-coord", *words(ensembles, ensembles.held, scratch / "out", steps, ports))
        assert ended.code == 1
        assert "DDM301" in ended.err, ended.err
        spent = charged(fed, A), charged(fed, C)
        assert max(spent) > EVALUATIONS - AT_ONCE
        assert max(spent) <= EVALUATIONS
    with serving(fed, A) as a, serving(fed, C) as c:
        assert (a.left, c.left) == (EVALUATIONS - spent[0], EVALUATIONS - spent[1])
        ports = {A: a.port, C: c.port}
        out = scratch / "again"
        ended = run("ddm-coord", *words(ensembles, ensembles.held, out, steps, ports))
        assert "DDM301" in ended.err, ended.err
        assert max(charged(fed, A), charged(fed, C)) <= EVALUATIONS


def test_folder_holds_no_weights_of_these_sites_and_verify_says_so(run, ensembles: Ensembles):
    def verified(folder: Path, *more: str) -> str:
        ended = run("ddm-coord", "verify", folder, "--root", ensembles.fed.root, *more)
        assert ended.code == 0, ended.err
        return ended.out

    held = {path.parent.name for path in ensembles.held.rglob("expert.safetensors")}
    assert held == {B}
    facts = json.loads(verified(ensembles.held, "--json"))
    found = {member["site"]: member["held_expert"] for member in facts["members"]}
    assert found[B] is None
    local = json.loads(verified(ensembles.local, "--json"))
    weights = {m["site"]: m["files"]["expert.safetensors"] for m in local["members"]}
    assert {A: found[A], C: found[C]} == {A: weights[A], C: weights[C]}
    assert "stays at the site" in verified(ensembles.held)


def test_whatever_needs_weights_that_are_not_there_says_where_they_are(
    run, ensembles: Ensembles, scratch: Path
):
    fed = ensembles.fed
    without = run("ddm-coord", *words(ensembles, ensembles.held, scratch / "out"))
    assert without.code == 1
    assert f"{A}, {C}" in without.err
    assert "--remote" in without.err
    unknown = run("ddm-coord", *words(ensembles, ensembles.held, scratch / "o", ports={B: 1}))
    assert "DDM107" in unknown.err
    many = words(ensembles, ensembles.held, scratch / "m", ("--batch-size", 9), {A: 1, C: 1})
    assert "--batch-size 9" in run("ddm-coord", *many).err
    assert not (fed.path / A / "served.jsonl").exists()


def test_expert_that_was_changed_after_it_was_signed_is_not_served(run, ensembles: Ensembles):
    fed = ensembles.fed
    (file,) = (fed.site(A).path / "private").glob("*/expert.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    words = ("--site", fed.site(A).path, "--plan", fed.published, "--listen", "127.0.0.1:0")
    ended = run("ddm-site", "serve-expert", *words)
    assert ended.code == 1
    assert "DDM206" in ended.err
