"""What a folder proves, for Python: the checks of `ddm-coord verify`, and what its --json says."""

from pathlib import Path
from typing import Any

from ddm_fed.api.watching import moved
from ddm_fed.bundle.verify import verify_bundle
from ddm_fed.distillation.facts import facts_of, facts_of_bundle, facts_of_published
from ddm_fed.distillation.opening import Sampled, is_student, verify_either
from ddm_fed.ensemble.folder import STATEMENT_FILE
from ddm_fed.ensemble.staleness import Staleness, find_staleness, require_not_stale
from ddm_fed.records import now
from ddm_fed.storage.files import size_below
from ddm_fed.trust.log import read_log
from ddm_fed.trust.published import PLAN_FILE, read_published, read_seen


def verify(
    folder: str | Path, root: str, *, published: str | Path | None = None, progress: bool = True
) -> dict[str, Any]:
    """Returns what an ensemble, a student, a published folder or a bundle proves, offline.

    The same facts as `ddm-coord verify --json`. What does not verify raises.

    Args:
        folder: What to verify. Nothing is written.
        root: The fingerprint of the federation, `sha256:…`, which a person told you.
        published: A published folder, which says whether an ensemble or a student may still be
            used. A bundle needs it.
        progress: Whether to show how far it is.

    Raises:
        RefusedError: the first rule that fails; the message names the item.
        StateError: it must not be used any more, or is nothing that can be verified.
        ValueError: a bundle is given without `published`.
    """
    folder = Path(folder)
    is_made = (folder / STATEMENT_FILE).exists() or is_student(folder)
    if not is_made and (folder / PLAN_FILE).exists():
        trust = read_published(folder, root)
        return facts_of_published(trust, read_log(folder, trust.chain))
    if is_made:
        return facts_of(*verify_usable(folder, root, published, progress=progress))
    if published is None:
        raise ValueError(f"{folder} is no ensemble, and a bundle is verified with `published`")
    with moved(f"verifying {folder.name}", size_below(folder), progress=progress) as advance:
        trust = read_published(Path(published), root)
        bundle = verify_bundle(folder, trust, now(), advance=advance)
    return {"verified": "bundle", "root": root, "members": [facts_of_bundle(bundle)]}


def verify_usable(
    folder: Path, root: str, published: str | Path | None, *, progress: bool
) -> tuple[Sampled, Staleness | None]:
    """Returns a verified ensemble or student, and what newer documents say of it, if any are given.

    Raises:
        RefusedError, StateError: as for `verify`.
    """
    with moved(f"verifying {folder.name}", size_below(folder), progress=progress) as advance:
        verified = verify_either(folder, root, advance=advance)
    if published is None:
        return verified, None
    newer = find_staleness(verified, *read_seen(Path(published), root))
    require_not_stale(folder, newer, "ask the coordinator for one")
    return verified, newer
