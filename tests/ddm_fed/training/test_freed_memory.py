"""Memory that a training step frees is taken again by the next one."""

import json
import platform
import subprocess
import sys

import pytest

PROBE = """
import json, resource, tempfile, torch
from pathlib import Path
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import read_plan_toml
from ddm_fed.training import RunOptions, train_expert

plan = read_plan_toml('''
federation = "test"
expires_at = 2036-01-01
[data]
channels = 1
height = 8
width = 8
[expert]
architecture = "DiT-Nano/4"
[training]
steps = 1
batch_size = 2
[router]
kind = "prior"
epsilon = 1
[privacy]
max_epsilon = 1
''')

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(12_000_000).add_(1)  # 46 MiB: an activation of DiT-Ti/2, and above what glibc keeps
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

found = sorted(pages() for _ in range(9))[4]
checkpoint = Path(tempfile.mkdtemp()) / "checkpoint"
train_expert(Private(ImageSet(torch.zeros(4, 1, 8, 8), None)), plan, "0" * 64, checkpoint)
print(json.dumps([found, sorted(pages() for _ in range(9))[4]]))
"""
A_FEW = 20  # 46 MiB are 11,720 pages, or 23 huge ones


@pytest.mark.skipif(
    not (platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"),
    reason="another C library than glibc decides for itself what it keeps",
)
def test_large_blocks_that_a_step_frees_serve_the_next_one() -> None:
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    untrained, trained = json.loads(found.stdout.splitlines()[-1])
    assert untrained > A_FEW, "glibc keeps such blocks here by itself"
    assert trained < A_FEW
