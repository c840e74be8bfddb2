"""An ensemble or a student about to be used: verified, and held against what came after it.

It proves its own past only. Whoever has the coordinator's folder at hand knows more: who was
removed, whose key was stolen, whose expert was replaced since.
"""

from pathlib import Path

from coordinator.cli.options import pinned_root
from coordinator.workspace import CoordinatorFolder
from ddm_fed import console
from ddm_fed.commands.staleness import refuse_stale
from ddm_fed.distillation.opening import Sampled, kind_of, require_ensemble, verify_either
from ddm_fed.ensemble.folder import VerifiedEnsemble, verify_ensemble
from ddm_fed.ensemble.staleness import find_staleness
from ddm_fed.progress import Advance
from ddm_fed.trust.published import read_seen


def open_current(
    ensemble: Path, root: str | None, coordinator: Path, *, advance: Advance = lambda _: None
) -> VerifiedEnsemble:
    """Returns a verified ensemble that its coordinator, if it is at hand, says may still be used.

    Members whose submission was replaced since are named on the screen, with what to do.

    Args:
        ensemble: Its folder.
        root: The fingerprint to trust; by default the one of `coordinator`.
        coordinator: The coordinator's folder. One of another federation knows nothing of it.
        advance: Told the bytes that were verified.

    Raises:
        RefusedError: the ensemble does not verify, or is no part of the coordinator's history.
        StateError: it is stale, or a student.
        OptionError: no fingerprint is given.
    """
    pin = pinned_root(root, coordinator)
    require_ensemble(ensemble)
    verified = verify_ensemble(ensemble, pin, advance=advance)
    require_current(verified, ensemble, coordinator)
    return verified


def open_either(
    folder: Path, root: str | None, coordinator: Path, *, advance: Advance = lambda _: None
) -> Sampled:
    """Returns a verified ensemble or student that may still be used, as `open_current` does."""
    verified = verify_either(folder, pinned_root(root, coordinator), advance=advance)
    require_current(verified, folder, coordinator)
    return verified


def require_current(verified: Sampled, folder: Path, coordinator: Path) -> None:
    """Refuses what its coordinator, if it is at hand, says must not be used any more.

    Raises:
        RefusedError: it is no part of the coordinator's history.
        StateError: it is stale.
    """
    if not (coordinator / "coordinator.toml").exists():
        return
    home, pin = CoordinatorFolder.open(coordinator), verified.trust.root
    if home.settings.root != pin:
        return
    found, kind = find_staleness(verified, *read_seen(home.published, pin)), kind_of(verified)
    words: tuple[str | Path, ...] = ("ddm-coord", "assemble", "NEW_FOLDER")
    if kind == "student":
        words = ("ddm-coord", "distill", "NEW_ENSEMBLE", "--out", "NEW_FOLDER")
    remedy = console.typed(*words, "--coordinator", coordinator)
    refuse_stale(folder, found, remedy, kind=kind)
