"""Memory stays flat as the checkpoint grows. The study at 1.8 GB is benchmarks/memory.py."""

import importlib.util
from pathlib import Path

import pytest


def load_benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "memory.py"
    spec = importlib.util.spec_from_file_location("benchmark_memory", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.processes
def test_memory_of_submit_verify_and_assemble_does_not_grow_with_the_expert(tmp_path):
    benchmark = load_benchmark()
    small = benchmark.measure(tmp_path / "small", "DiT-Micro/8")
    large = benchmark.measure(tmp_path / "large", "DiT-S/8")

    growth = large["expert MB"] - small["expert MB"]
    assert growth > 100
    for command in ("submit", "verify inbox", "assemble", "verify ensemble"):
        assert large[command] - small[command] < 0.2 * growth, (command, small, large)
