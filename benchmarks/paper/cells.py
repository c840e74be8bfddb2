"""The figures of a study, cell by cell: what is known already is not found again."""

import argparse
import fcntl
import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from scale import BEFORE, say_budget

from ddm_fed.storage.files import write_atomically

CELLS = "cells.jsonl"
TRAININGS = ("expert", "fedavg")
NAMED = ("architecture", "samples", "solver_steps", "batch", "learning_rate", "ema_half_life")
Cell = tuple[Any, ...]


def run_cells(
    options: argparse.Namespace,
    cells: Iterable[Cell],
    start: Callable[[argparse.Namespace], Any],
    *own: str,
) -> bool:
    """Finds the cells that are missing in `OUT/cells.jsonl`; says whether all are there now.

    Args:
        options: Of the study.
        cells: All of them, in an order in which each finds what it needs.
        start: Opens what finds them.
        own: Names of options that OUT is made with, beside those of all studies.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    require_same_options(options, "data", "precision", *NAMED, *own)
    part, parts = map(int, options.part.split("/"))
    if parts > 1:
        cells = (c for c in cells if c[0] in TRAININGS and _number(c) % parts == part - 1)
    find_cells(options, cells, lambda: start(options))
    return parts == 1


def find_cells(
    options: argparse.Namespace, cells: Iterable[Cell], start: Callable[[], Any]
) -> None:
    """Finds the cells that are missing in `OUT/cells.jsonl`, each by the method of its name."""
    study, out, cells = None, options.out, list(cells)
    if options.scale == "gpu":
        study, known = start(), found_cells(out)
        missing = [cell for cell in cells if cell not in known]
        say_budget(options, missing, study.flops_of, study.cost)
    for cell in cells:
        if cell in found_cells(out):
            continue
        study = study or start()
        row = json.dumps({"cell": cell, **getattr(study, cell[0])(*cell[1:])})
        with (out / CELLS).open("a") as target:
            fcntl.flock(target, fcntl.LOCK_EX)
            target.write(row + "\n")
        print(row, flush=True)


def require_same_options(options: argparse.Namespace, *names: str) -> None:
    """Refuses figures of other options beside those that are in OUT: cells do not name them.

    What OUT does not say yet it says from now on: several scripts may share it, and earlier
    versions of them had fewer options.
    """
    file = options.out / "options.json"
    now = {name: str(getattr(options, name)) for name in names}
    now["data"] = Path(now["data"]).name
    said = json.loads(file.read_text()) if file.exists() else {}
    known = now | (BEFORE if said else {}) | said
    changed = [name for name, value in now.items() if known[name] != value]
    if changed:
        sys.exit(
            f"error: {options.out} holds figures of "
            + ", ".join(f"--{name.replace('_', '-')} {known[name]}" for name in changed)
            + ": give these, or another --out"
        )
    if set(now) - set(said):
        added = said | {name: known[name] for name in now}
        write_atomically(file, (json.dumps(added, indent=2) + "\n").encode())


def found_cells(out: Path) -> dict[Cell, dict[str, Any]]:
    """Returns what is known of every cell that was found."""
    file = out / CELLS
    rows = map(json.loads, file.read_text().splitlines() if file.exists() else [])
    return {tuple(row["cell"]): row for row in rows}


def _number(cell: Cell) -> int:
    return int(hashlib.sha256(json.dumps(cell).encode()).hexdigest()[:8], 16)
