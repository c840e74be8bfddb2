"""`ddm-site sample`: images from an ensemble that verifies by what this site pinned."""

from pathlib import Path
from typing import TYPE_CHECKING

from ddm_fed.commands.sample import (
    EnsembleArgument,
    SampleFlags,
    SamplesOption,
    draw_and_show,
    options_of,
)
from ddm_fed.commands.unfold import unfolds
from sites.cli.options import SiteOption

if TYPE_CHECKING:
    from ddm_fed.ensemble.folder import VerifiedEnsemble
    from ddm_fed.ensemble.staleness import Staleness
    from sites.workspace import SiteFolder


@unfolds(SampleFlags)
def sample(
    ensemble: EnsembleArgument,
    out: SamplesOption,
    flags: SampleFlags,
    site: SiteOption = Path(),
) -> None:
    """Verify an ensemble, then make images with it. Run it again to continue a killed run.

    The fingerprint is the one that the site pinned. An ensemble is refused if what the site has
    fetched since says that it is stale.

    Example: ddm-site sample ensemble --site hospital-a --count 100 --out samples
    """
    from ddm_fed.commands.staleness import refuse_stale
    from ddm_fed.ensemble.folder import verify_ensemble
    from sites.workspace import SiteFolder

    options, home = options_of(flags), SiteFolder.open(site)
    verified = verify_ensemble(ensemble, home.settings.root)
    found = _staleness(home, verified)
    if found is not None:
        refuse_stale(ensemble, found, "ddm-site ensemble --plan PUBLISHED --from ADDRESS --out NEW")
    draw_and_show(verified, out, options)


def _staleness(site: "SiteFolder", verified: "VerifiedEnsemble") -> "Staleness | None":
    """Returns what the site has seen that speaks against an ensemble; None if it saw nothing newer.

    Raises:
        RefusedError: what it has seen is of another history than the ensemble, or no longer holds.
    """
    from ddm_fed.ensemble.staleness import find_staleness
    from ddm_fed.trust.log import CHECKPOINT_FILE
    from ddm_fed.trust.published import read_seen, require_newer

    if not (site.seen / CHECKPOINT_FILE).exists():
        return None
    seen, own = read_seen(site.seen, site.settings.root), (verified.trust.chain, verified.log)
    if seen[1].size < verified.log.size or len(seen[0].sha256) < len(own[0].sha256):
        require_newer(own, seen, what="the ensemble")
        return None
    return find_staleness(verified, *seen)
