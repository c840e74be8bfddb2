"""Does the suite notice when one rule is gone?

Twelve rules of trust, privacy and exchange are taken out of a copy of the source, one at a time,
and the tests beside the changed file are run there. A mutant that no test notices ends the run
with 1. `benchmarks/mutations.py` asks another question: whether altered bytes are ever admitted.
Last answer: all twelve are noticed; see results/mutants_cpu_20261128.md.

    python benchmarks/mutants.py            # all twelve, some minutes on one core
    python benchmarks/mutants.py policy     # those whose name or file holds the word
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COPIED = (
    "ddm_fed",
    "sites",
    "coordinator",
    "tests",
    "examples",
    "protos",
    "docs",
    "pyproject.toml",
)


class Mutant(NamedTuple):
    """A rule that is taken away, and the tests that have to notice."""

    name: str
    file: str
    before: str
    after: str
    tests: str


MUTANTS = (
    Mutant(
        "one root key fewer signs a roster",
        "ddm_fed/trust/chain.py",
        "return max(0, role.threshold - len(found))",
        "return max(0, role.threshold - 1 - len(found))",
        "tests/ddm_fed/trust/test_chain.py",
    ),
    Mutant(
        "a second history of the log is believed if it is not as long",
        "ddm_fed/trust/log.py",
        "if log.head_at(common) != seen.head_at(common):",
        "if log.size == seen.size and log.head_at(common) != seen.head_at(common):",
        "tests/attacks/test_two_histories.py",
    ),
    Mutant(
        "the type of what is signed does not count",
        "ddm_fed/signing/envelope.py",
        "(len(kind), kind, len(payload), payload)",
        '(0, b"", len(payload), payload)',
        "tests/ddm_fed/signing",
    ),
    Mutant(
        "expired submissions are admitted",
        "ddm_fed/bundle/policy.py",
        "if moment >= submission.expires_at:",
        "if moment > submission.expires_at + longest:",
        "tests/attacks/test_changed_bundles.py tests/attacks/test_threats.py",
    ),
    Mutant(
        "a ledger may forget",
        "ddm_fed/records/ledger.py",
        "return len(known) == head.entries and ledger_head(known) == head",
        "return len(known) <= head.entries",
        "tests/attacks/test_forgetting.py",
    ),
    Mutant(
        "the site's own epsilon is no limit",
        "sites/privacy/ledger.py",
        "(self._max_epsilon, ",
        "(float(plan.privacy.max_epsilon), ",
        "tests/sites/privacy",
    ),
    Mutant(
        "an officer's approval is not asked for",
        "sites/outbox/stages.py",
        "    _require_officer(site, trust, merged, what)\n",
        "",
        "tests/sites/outbox",
    ),
    Mutant(
        "gradients of units are clipped to more than the norm",
        "ddm_fed/privacy/dpsgd.py",
        "factors = (clip_norm / norms.clamp(min=1e-12)).clamp(max=1.0)",
        "factors = (1.01 * clip_norm / norms.clamp(min=1e-12)).clamp(max=1.0)",
        "tests/ddm_fed/privacy/test_dpsgd.py",
    ),
    Mutant(
        "coefficients of a release are clipped to more than the radius",
        "ddm_fed/mixture/statistics.py",
        "y * np.minimum(1.0, radius / np.maximum(norm, 1e-12))",
        "y * np.minimum(1.0, 1.1 * radius / np.maximum(norm, 1e-12))",
        "tests/ddm_fed/mixture/test_statistics.py",
    ),
    Mutant(
        "files are appended to through links",
        "ddm_fed/storage/files.py",
        "flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK",
        "flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK",
        "tests/ddm_fed/storage tests/attacks/test_planted_links.py",
    ),
    Mutant(
        "an ensemble signed with a stolen coordinator key is not stale",
        "ddm_fed/ensemble/staleness.py",
        "key.is_revoked_at(size) and not key.is_compromised_at(size)",
        "key.is_revoked_at(size)",
        "tests/attacks/test_threats.py",
    ),
    Mutant(
        "one member may weigh as much as it says",
        "ddm_fed/mixture/released.py",
        "weights = capped(plan, torch.stack(",
        "weights = (lambda _, w: w)(plan, torch.stack(",
        "tests/ddm_fed/mixture tests/attacks/test_inflated_counts.py",
    ),
)


def survives(mutant: Mutant, folder: Path) -> tuple[bool, str]:
    """Returns whether all tests pass without the rule, and the last line they print."""
    file = folder / mutant.file
    source = file.read_text()
    if source.count(mutant.before) != 1:
        raise SystemExit(f"{mutant.file} holds the rule {source.count(mutant.before)} times")
    file.write_text(source.replace(mutant.before, mutant.after))
    try:
        words = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
        env = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*words, *mutant.tests.split()],
            check=False,
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
        )
    finally:
        file.write_text(source)
    # an error outside a test is no test that noticed
    told = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return not told, (told or done.stdout.splitlines() or [done.stderr[-200:]])[-1]


def main() -> None:
    """Runs the mutants and prints a line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("word", nargs="?", default="")
    word = parser.parse_args().word
    left = []
    with tempfile.TemporaryDirectory() as place:
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(
                    source, Path(place) / name, ignore=shutil.ignore_patterns("__pycache__")
                )
            else:
                shutil.copyfile(source, Path(place) / name)
        for mutant in MUTANTS:
            if word not in mutant.name and word not in mutant.file:
                continue
            started = time.monotonic()
            alive, told = survives(mutant, Path(place))
            left += [mutant.name] if alive else []
            seconds = time.monotonic() - started
            print(f"{'SURVIVES' if alive else 'caught'}  {mutant.name}  ({seconds:.0f} s)  {told}")
    raise SystemExit(f"no test notices: {left}" if left else 0)


if __name__ == "__main__":
    main()
