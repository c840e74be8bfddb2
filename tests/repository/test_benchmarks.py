"""Every benchmark says what it asks, and how, without running it; studies run at either scale."""

import json
import os
import runpy
import sys
from pathlib import Path
from unittest.mock import patch

import commands
import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(
    str(path.relative_to(FOLDER))
    for path in FOLDER.rglob("*.py")
    if 'if __name__ == "__main__":' in path.read_text()
)


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Runs a benchmark in this process: importing what all of them need takes seconds once.

    Returns its exit status and what it wrote. What it does to the process is undone.
    """
    before = set(sys.modules)

    def run(script, *words):
        monkeypatch.setattr(sys, "argv", [str(script), *words])
        monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])
        with patch.dict(os.environ), pytest.raises(SystemExit) as ended:
            runpy.run_path(str(script), run_name="__main__")
        return ended.value.code or 0, *capsys.readouterr()

    yield run
    for name in set(sys.modules) - before:  # other benchmarks have modules of the same names
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


@pytest.mark.processes
@pytest.mark.filterwarnings("default")  # as where it is started by itself
@pytest.mark.parametrize("script", SCRIPTS)
def test_benchmark_asked_for_help_prints_it_and_runs_nothing(
    script, run_here, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_here(FOLDER / script, "--help")
    assert code == 0, err
    assert out.startswith("usage:")
    assert "--help" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
def test_benchmark_reads_its_command_line_by_argparse(script):
    assert "argparse.ArgumentParser(" in (FOLDER / script).read_text()


TINY = ("--device", "cpu", "--batch", 8)
STUDIES = {  # the preset of a GPU with what is too much for a test taken from it
    "equal_arithmetic": (
        *("--architecture", "DiT-Nano/2", "--steps", 2, "--samples", 20, "--solver-steps", 2),
        *("--islands", 1, 2, "--divisions", "feature"),
    ),
    "federations": (
        *("--architecture", "DiT-Nano/2", "--steps", 2, "--samples", 20, "--solver-steps", 2),
        *("--sites", 2, "--splits", "iid", "--methods", "local-only"),
    ),
    "disjoint_labels": (
        *("--network", "DiT-Nano/2", "--training-steps", 2, "--samples", 40, "--steps", 2),
        *("--experts", "network", "--epochs", 1),
    ),
}


@pytest.fixture
def small(tmp_path):
    """Images of two classes, in an archive as MedMNIST's."""
    rng, labels = np.random.default_rng(0), np.arange(500) % 2
    images = (rng.integers(0, 60, (500, 12, 12)) + 150 * labels[:, None, None]).astype(np.uint8)
    file = tmp_path / "small.npz"
    np.savez(
        file,
        train_images=images[:400],
        train_labels=labels[:400],
        test_images=images[400:],
        test_labels=labels[400:],
    )
    return file


def study(name, small, *words):
    script, out = FOLDER / "paper" / f"{name}.py", small.parent / "out"
    return commands.run(script, "--data", small, "--out", out, *words, timeout=300)


def cells_in(folder):
    return [json.loads(line) for line in (folder / "out" / "cells.jsonl").read_text().splitlines()]


@pytest.mark.processes
@pytest.mark.parametrize("name", STUDIES)
def test_study_at_the_scale_of_a_gpu_says_its_budget_and_runs(name, small, tmp_path):
    done = study(name, small, "--scale", "gpu", *TINY, *STUDIES[name])
    assert done.code == 0, done.err
    cells = cells_in(tmp_path)
    assert f"budget: {len(cells)} cells are missing" in done.err
    assert "minutes on one h200" in done.err
    experts = [cell for cell in cells if cell["cell"][0] in ("expert", "train")]
    assert experts
    for cell in experts:
        assert len(set(cell["plan_sha256"])) > 1  # a digest, and not that of no plan
    said = json.loads((tmp_path / "out" / "options.json").read_text())
    assert (said["precision"], said["batch"]) == ("bfloat16", "8")


@pytest.mark.processes
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_study_at_the_scale_of_a_gpu_without_one_is_refused(small, tmp_path):
    done = study("equal_arithmetic", small, "--scale", "gpu")
    assert done.code == 2
    assert "--device cuda: this machine has no GPU" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.processes
def test_cells_of_earlier_versions_are_found_and_the_largest_site_is_shown(small, tmp_path):
    out, seed, steps = tmp_path / "out", 0, 3000
    out.mkdir()
    earlier = {"data": "small.npz", "architecture": "DiT-Nano/4", "samples": "5000"}
    (out / "options.json").write_text(json.dumps(earlier | {"solver_steps": "25"}))
    trained = {"gflop": 1, "cpu_s": 1, "wall_s": 1}
    rows = [{"cell": ["judge"]}]
    for group in (("all", 1), ("iid", 2)):
        words = [*group, steps, seed]
        for site in range(group[1]):
            images = 10 + 20 * site
            rows.append({"cell": ["expert", *words, site], "images": images, **trained})
            found = {"fid": 5.0 + 4 * site, "asked": 0.5, "calls_per_step": 1, "cpu_s": 1}
            rows.append({"cell": ["alone", *words, site, 1.0], **found})
        rows.append({"cell": ["judged", *words, "sticky", 1.0], **found})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (out / "cells.jsonl").write_text(text)
    few = ("--splits", "iid", "--methods", "local-only", "--sites", 2)
    done = study("federations", small, *few)
    assert done.code == 0, done.err
    assert (out / "cells.jsonl").read_text() == text
    assert "| local-only, largest site | 9 |" in done.out  # not the 5 of the better one
    refused = study("federations", small, *few, "--cpus", 2)
    assert refused.code == 1
    assert "holds figures of --cpus 1" in refused.err
    refused = study("equal_arithmetic", small, "--batch", 32)
    assert "holds figures of --batch 64" in refused.err
