"""`ddm-site sample`: images from an ensemble or a student that this site's pin verifies."""

from pathlib import Path
from typing import TYPE_CHECKING

from ddm_fed.commands.sample import (
    EnsembleOrStudent,
    SampleFlags,
    SamplesOption,
    draw_and_show,
    options_of,
)
from ddm_fed.commands.unfold import unfolds
from sites.cli.options import SiteOption

if TYPE_CHECKING:
    from ddm_fed.distillation.opening import Sampled
    from ddm_fed.ensemble.staleness import Staleness
    from sites.workspace import SiteFolder


@unfolds(SampleFlags)
def sample(
    ensemble: EnsembleOrStudent,
    out: SamplesOption,
    flags: SampleFlags,
    site: SiteOption = Path(),
) -> None:
    """Verify an ensemble or a student, then make images. Run it again to continue a killed run.

    The fingerprint is the one that the site pinned. It is refused if what the site has fetched
    since says that it is stale.

    Example: ddm-site sample ensemble --site hospital-a --count 100 --out samples
    """
    from ddm_fed.commands.staleness import refuse_stale
    from ddm_fed.distillation.opening import kind_of, verify_either
    from sites.workspace import SiteFolder

    options_of(flags)  # what means nothing is said before a large folder is verified
    home = SiteFolder.open(site)
    verified = verify_either(ensemble, home.settings.root)
    found = _staleness(home, verified)
    if found is not None:
        kind = kind_of(verified)
        remedy = "ddm-site ensemble --plan PUBLISHED --from ADDRESS --out NEW"
        if kind == "student":
            remedy = "ask the coordinator for one, or sample the ensemble itself"
        refuse_stale(ensemble, found, remedy, kind=kind)
    draw_and_show(verified, out, flags)


def _staleness(site: "SiteFolder", verified: "Sampled") -> "Staleness | None":
    """Returns what the site has seen that speaks against it; None if it saw nothing newer.

    Raises:
        RefusedError: what it has seen is of another history, or no longer holds.
    """
    from ddm_fed.distillation.opening import kind_of
    from ddm_fed.ensemble.staleness import find_staleness
    from ddm_fed.trust.log import CHECKPOINT_FILE
    from ddm_fed.trust.published import read_seen, require_newer

    if not (site.seen / CHECKPOINT_FILE).exists():
        return None
    seen, own = read_seen(site.seen, site.settings.root), (verified.trust.chain, verified.log)
    if seen[1].size < verified.log.size or len(seen[0].sha256) < len(own[0].sha256):
        require_newer(own, seen, what=f"the {kind_of(verified)}")
        return None
    return find_staleness(verified, *seen)
