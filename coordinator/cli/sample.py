"""`ddm-coord sample`: images from an ensemble that verifies."""

from pathlib import Path

from coordinator.cli.options import CoordinatorOption, RootOption
from ddm_fed.commands.sample import (
    EnsembleOrStudent,
    SampleFlags,
    SamplesOption,
    draw_and_show,
    options_of,
)
from ddm_fed.commands.unfold import unfolds


@unfolds(SampleFlags)
def sample(
    ensemble: EnsembleOrStudent,
    out: SamplesOption,
    flags: SampleFlags,
    coordinator: CoordinatorOption = Path(),
    root: RootOption = None,
) -> None:
    """Verify an ensemble or a student, then make images. Run it again to continue a killed run.

    A stale one is refused, if the coordinator's folder is at hand to tell.

    Example: ddm-coord sample ensemble --root sha256:3b6a… --count 100 --out samples
    """
    from coordinator.cli.open_ensemble import open_either

    options_of(flags)  # what means nothing is said before a large folder is verified
    draw_and_show(open_either(ensemble, root, coordinator), out, flags)
