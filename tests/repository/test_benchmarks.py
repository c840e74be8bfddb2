"""Every benchmark says what it asks, and how, without running it."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(
    path.name for path in FOLDER.glob("*.py") if 'if __name__ == "__main__":' in path.read_text()
)


@pytest.mark.processes
@pytest.mark.parametrize("script", SCRIPTS)
def test_benchmark_asked_for_help_prints_it_and_runs_nothing(script, tmp_path):
    done = subprocess.run(
        [sys.executable, FOLDER / script, "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
    assert "--help" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
def test_benchmark_reads_its_command_line_by_argparse(script):
    assert "argparse.ArgumentParser(" in (FOLDER / script).read_text()
