"""Freed memory that is kept: fewer pages are cleared, where this is known to work."""

import platform

import commands
import pytest

from ddm_fed.privacy import keep_freed_memory, memory

FAULTS = """
import resource, torch
from ddm_fed.privacy import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(10_000_000)  # more than the largest block that glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
before = faults()
keep_freed_memory()
faults()
print(before, faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told anything")
def test_large_blocks_are_not_asked_for_again(tmp_path):
    (tmp_path / "faults.py").write_text(FAULTS)  # a process of its own is told
    before, after = map(int, commands.done(tmp_path / "faults.py").out.split())
    assert after < before / 10


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: pytest.fail("asked another library"))
    keep_freed_memory()
