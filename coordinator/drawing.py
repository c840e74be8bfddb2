"""Draws images from a verified ensemble and writes them down with how they came about."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coordinator.pictures import write_grid
from ddm_fed.assembly import load_ensemble, verify_ensemble
from ddm_fed.ensemble import Strategy
from ddm_fed.errors import StateError
from ddm_fed.files import write_atomically
from ddm_fed.flows import CALLS_PER_STEP, Solver
from ddm_fed.records import Plan
from ddm_fed.router import RouterKind
from ddm_fed.sampling import sample

GRID_SAMPLES = 100


@dataclass(frozen=True)
class DrawOptions:
    """How to sample; see `ddm-coord sample --help`."""

    count: int
    strategy: Strategy
    router: RouterKind | None
    steps: int
    solver: Solver
    seed: int
    label: str | None
    batch_size: int


def draw(
    folder: Path,
    root_keyid: str,
    out: Path,
    options: DrawOptions,
    *,
    update: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Verifies the ensemble, samples it, writes samples.npz, grid.png and samples.json to `out`.

    Returns:
        What samples.json holds: the options, the ensemble's identity, intended shares, and for
        `sticky` the number of samples of every site.

    Raises:
        RefusedError: the ensemble does not verify; nothing was loaded.
        StateError: the class or the router does not fit the plan.
    """
    verified = verify_ensemble(folder, root_keyid)
    plan = verified.trust.plan
    ensemble = load_ensemble(verified, router=options.router)
    labels = _labels(plan, options)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        update(done)

    drawn = sample(
        ensemble,
        plan.data.shape,
        options.count,
        strategy=options.strategy,
        steps=options.steps,
        solver=options.solver,
        seed=options.seed,
        labels=labels,
        batch_size=options.batch_size,
        advance=advance,
    )
    sites = [bundle.site for bundle in verified.bundles]
    shares = ensemble.router.log_prior(None).exp().tolist()
    counts = None
    if drawn.sites is not None:
        counts = dict(
            zip(sites, torch.bincount(drawn.sites, minlength=len(sites)).tolist(), strict=True)
        )
    summary = {
        "federation": plan.federation,
        "plan_sha256": verified.trust.plan_sha256,
        "members": {bundle.site: bundle.payload_sha256 for bundle in verified.bundles},
        "intended_shares": dict(zip(sites, shares, strict=True)),
        "site_counts": counts,
        "strategy": str(options.strategy),
        "router": options.router or verified.record.router,
        "solver": options.solver,
        "steps": options.steps,
        "calls_per_step": CALLS_PER_STEP[options.solver],
        "seed": options.seed,
        "count": options.count,
    }
    out.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"images": ((drawn.images + 1) * 127.5).round().byte().numpy()}
    if drawn.sites is not None:
        arrays["sites"] = drawn.sites.numpy()
    if labels is not None:
        arrays["labels"] = labels.numpy()
    np.savez_compressed(out / "samples.npz", **arrays)
    write_grid(out / "grid.png", drawn.images[:GRID_SAMPLES])
    write_atomically(out / "samples.json", json.dumps(summary, indent=2).encode())
    return summary


def _labels(plan: Plan, options: DrawOptions) -> torch.Tensor | None:
    """Returns the wanted class of every sample: the one asked for, or all in turn."""
    if options.label is None:
        if not plan.data.classes:
            return None
        return torch.arange(options.count) % len(plan.data.classes)
    if options.label not in plan.data.classes:
        known = ", ".join(plan.data.classes) or "none: the plan is unconditional"
        raise StateError(
            f"--class {options.label} is not in the plan", hint=f"its classes are {known}"
        )
    return torch.full((options.count,), plan.data.classes.index(options.label))
