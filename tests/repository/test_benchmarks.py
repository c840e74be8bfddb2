"""Every benchmark says what it asks, and how, without running it."""

from pathlib import Path

import commands
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(
    str(path.relative_to(FOLDER))
    for path in FOLDER.rglob("*.py")
    if 'if __name__ == "__main__":' in path.read_text()
)


@pytest.mark.processes
@pytest.mark.parametrize("script", SCRIPTS)
def test_benchmark_asked_for_help_prints_it_and_runs_nothing(script, tmp_path):
    done = commands.run(FOLDER / script, "--help", cwd=tmp_path, timeout=120)
    assert done.code == 0, done.err
    assert done.out.startswith("usage:")
    assert "--help" in done.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
def test_benchmark_reads_its_command_line_by_argparse(script):
    assert "argparse.ArgumentParser(" in (FOLDER / script).read_text()
