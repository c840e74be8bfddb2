"""`ddm-coord sample`: images from an ensemble that verifies."""

from pathlib import Path

from coordinator.cli.options import CoordinatorOption, RootOption
from ddm_fed.commands.sample import (
    EnsembleArgument,
    SampleFlags,
    SamplesOption,
    draw_and_show,
    options_of,
)
from ddm_fed.commands.unfold import unfolds


@unfolds(SampleFlags)
def sample(
    ensemble: EnsembleArgument,
    out: SamplesOption,
    flags: SampleFlags,
    coordinator: CoordinatorOption = Path(),
    root: RootOption = None,
) -> None:
    """Verify an ensemble, then make images with it. Run it again to continue a killed run.

    A stale ensemble is refused, if the coordinator's folder is at hand to tell.

    Example: ddm-coord sample ensemble --root sha256:3b6a… --count 100 --out samples
    """
    from coordinator.cli.open_ensemble import open_current

    options = options_of(flags)
    draw_and_show(open_current(ensemble, root, coordinator), out, options)
