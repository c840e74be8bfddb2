"""An ensemble that is about to be used: verified, and held against what came after it.

An ensemble proves its own past only. Whoever has the coordinator's folder at hand knows more: who
was removed, whose key was stolen, whose expert was replaced since.
"""

from pathlib import Path

from coordinator.cli.options import pinned_root
from coordinator.workspace import CoordinatorFolder
from ddm_fed import console
from ddm_fed.commands.staleness import refuse_stale
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
        StateError: it is stale.
        OptionError: no fingerprint is given.
    """
    pin = pinned_root(root, coordinator)
    verified = verify_ensemble(ensemble, pin, advance=advance)
    if not (coordinator / "coordinator.toml").exists():
        return verified
    home = CoordinatorFolder.open(coordinator)
    if home.settings.root != pin:
        return verified
    found = find_staleness(verified, *read_seen(home.published, pin))
    words = ("ddm-coord", "assemble", "NEW_FOLDER", "--coordinator", coordinator)
    refuse_stale(ensemble, found, console.typed(*words))
    return verified
