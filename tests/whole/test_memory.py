"""Memory stays flat as the checkpoint grows. The study at 1.8 GB is benchmarks/memory.py."""

import importlib.util
from pathlib import Path

import commands
import pytest

# A fork starts with what its server holds, so only the difference of two of them says something.
PEAK = """
import resource, sys
from pathlib import Path
import commands

report, *sys.argv = sys.argv[1:]
try:
    commands.main_of(sys.argv[0])()
finally:
    Path(report).write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


def load_benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "memory.py"
    spec = importlib.util.spec_from_file_location("benchmark_memory", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.processes
def test_memory_of_submit_verify_and_assemble_does_not_grow_with_the_expert(tmp_path):
    benchmark = load_benchmark()
    script, report = tmp_path / "peak.py", tmp_path / "peak"
    script.write_text(PEAK)

    def peak_mib(program: str, *words: object) -> float:
        commands.done(script, report, program, *words)
        return int(report.read_text()) / 1024

    small = benchmark.measure(tmp_path / "small", "DiT-Micro/8", peak_mib)
    large = benchmark.measure(tmp_path / "large", "DiT-S/8", peak_mib)

    growth = large["expert MB"] - small["expert MB"]
    assert growth > 100
    for command in ("submit", "verify inbox", "assemble", "verify ensemble"):
        assert large[command] - small[command] < 0.2 * growth, (command, small, large)
