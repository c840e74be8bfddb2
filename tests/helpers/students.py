"""A student of the small federation, made in a second."""

from pathlib import Path

from federation import Federation

from coordinator.ensembles.distill import distill
from ddm_fed.distillation.options import DistillOptions
from ddm_fed.ensemble.folder import verify_ensemble

OPTIONS = DistillOptions(samples=24, solver_steps=1, steps=2)


def make_student(fed: Federation, ensemble: Path, out: Path, **how) -> Path:
    """Returns the folder `out` with a student of an ensemble that `fed` has assembled."""
    distill(fed.home, verify_ensemble(ensemble, fed.root), out, OPTIONS, **how)
    return out
