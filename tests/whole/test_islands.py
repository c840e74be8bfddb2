"""examples/islands: one owner's images, islands that train apart, one verified ensemble."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import commands
import numpy as np
import pytest
import scripts

pytestmark = pytest.mark.processes
FOLDER = Path(__file__).parents[2] / "examples" / "islands"


@pytest.fixture
def script(monkeypatch):
    """The script as a module, whose commands are processes of the tests' kind."""
    spec = importlib.util.spec_from_file_location("islands_run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "run", lambda *words, cores=None: commands.done(*words).out)
    return module


def stage(script, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words)])
    script.main()


def test_islands_become_a_verified_ensemble_stage_by_stage(tmp_path, script, monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (90, 8, 8)).astype(np.uint8)
    images[:50, :4] += 190
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(90) % 10)
    plan = (FOLDER / "plan.toml").read_text()
    plan = plan.replace("steps = 3000", "steps = 2").replace(" = 28\n", " = 8\n")
    (tmp_path / "plan.toml").write_text(plan)
    out = ("--out", tmp_path / "out")
    begin = ("setup", tmp_path / "images.npz", "--plan", tmp_path / "plan.toml", "--islands", 2)
    scripts.run("python", FOLDER / "run.py", *begin, *out, cwd=tmp_path)  # as a person types it
    stage(script, monkeypatch, *begin, *out)  # again: nothing is left to do
    for number in (2, 1):
        stage(script, monkeypatch, "train", number, *out, "--seed", 5)
    stage(script, monkeypatch, "finish", *out)
    root = (tmp_path / "out" / "fingerprint.txt").read_text()
    verified = json.loads(
        commands.done(
            "ddm-coord", "verify", tmp_path / "out" / "ensemble", "--root", root, "--json"
        ).out
    )
    assert [member["site"] for member in verified["members"]] == ["island-1", "island-2"]
    assert (tmp_path / "out" / "samples" / "samples.npz").exists()
    stage(script, monkeypatch, "finish", *out)  # again: nothing is left to do


def some_images(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (60, 8, 8)).astype(np.uint8)
    images[:40, :4] += 190
    np.save(tmp_path / "images.npy", images)
    return ("partition", tmp_path / "images.npy", "--islands", 2, "--batch-size", 8, "--out")


def files_below(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_script_for_slurm_runs_its_part_of_any_command(tmp_path):
    words = some_images(tmp_path)
    commands.done("ddm-coord", *words, tmp_path / "one")
    task = ("SLURM_ARRAY_TASK_ID=2", "SLURM_ARRAY_TASK_COUNT=2")
    part = ("bash", FOLDER / "part.sh", "ddm-coord", *words, tmp_path / "many")
    scripts.run("env", *task, *part, cwd=tmp_path)
    assert [path.name for path in (tmp_path / "many" / "features").iterdir()] == [".part-2-of-2"]
    commands.done("ddm-coord", *words, tmp_path / "many", "--part", "1/2")
    assert not (tmp_path / "many" / "shards").exists()
    commands.done("ddm-coord", *words, tmp_path / "many")
    assert files_below(tmp_path / "many") == files_below(tmp_path / "one")


def test_ray_spreads_the_parts_of_a_command(tmp_path):
    pytest.importorskip("ray")
    words = some_images(tmp_path)
    commands.done("ddm-coord", *words, tmp_path / "one")
    spread = [sys.executable, FOLDER / "ray_parts.py", "--parts", 2, "ddm-coord"]
    subprocess.run([*map(str, [*spread, *words, tmp_path / "many"])], check=True, timeout=300)
    assert files_below(tmp_path / "many") == files_below(tmp_path / "one")


@pytest.mark.parametrize("name", ["slurm.sh", "part.sh"])
def test_scripts_for_slurm_are_sound_bash(name):
    subprocess.run(["bash", "-n", FOLDER / name], check=True)
