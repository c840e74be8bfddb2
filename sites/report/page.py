"""The report of a site as a page. It holds private images: it stays where only its owner reads."""

from pathlib import Path

import numpy as np

from ddm_fed._version import __version__
from ddm_fed.bundle.verify import ENVELOPE_FILE
from ddm_fed.errors import StateError
from ddm_fed.pictures import grid_png
from ddm_fed.privacy import LEDGER_COLUMNS, WEAK_EPSILON, ledger_rows, most_found
from ddm_fed.report.page import percent, render_page
from ddm_fed.report.summary import Line, State, listed
from ddm_fed.signing import VerifyKey
from ddm_fed.trust.published import PLAN_FILE
from sites.outbox.review_page import needed
from sites.report.facts import SiteFacts
from sites.report.neighbours import NEAR
from sites.workspace import SiteFolder

TEMPLATES = Path(__file__).with_name("templates")
# of a coordinator, a published folder or an ensemble, a bundle: others read what lies there
READ_BY_OTHERS = ("coordinator.toml", PLAN_FILE, ENVELOPE_FILE)


def site_page(facts: SiteFacts) -> bytes:
    """Returns the page of a site, HTML in UTF-8; equal for equal facts. Private."""
    outgoing, found = facts.outgoing, facts.neighbours
    pair = alt = None
    if found is not None:
        both = np.concatenate([found.samples, found.images])
        pair = grid_png(both, columns=len(found.samples))
        alt = (
            f"Above, the {len(found.samples)} samples that are nearest to a private image; below "
            f"each, that image. Distances: {', '.join(f'{ratio:.2f}' for ratio in found.ratios)} "
            "times the median distance between private images."
        )
    return render_page(
        "site.html",
        (TEMPLATES,),
        facts=facts,
        summary=in_short(facts),
        needed=None if outgoing is None else needed(outgoing.egress),
        officers=()
        if outgoing is None
        else [VerifyKey.from_hex(key).keyid for key in outgoing.egress.officers],
        ledger_columns=(*LEDGER_COLUMNS, "has left"),
        ledger_rows=_ledger_rows(facts),
        pair=pair,
        pair_alt=alt,
        near_expected=percent(NEAR),
        version=__version__,
    )


def in_short(facts: SiteFacts) -> list[Line]:
    """Returns the summary of a site's report."""
    return [_leaves(facts), _privacy(facts), _spent(facts), _attacks(facts), _near(facts)]


def _leaves(facts: SiteFacts) -> Line:
    about, outgoing = "What would leave", facts.outgoing
    if outgoing is None:
        return Line(about, "not known", "There is no draft under this plan.")
    size = sum(file.size_bytes for file in outgoing.egress.files)
    names = listed([file.name for file in outgoing.egress.files])
    held = outgoing.egress.held_expert is not None
    stays = "; the expert's weights stay, and the site answers for them" if held else ""
    return Line(
        about,
        "measured",
        f"{names}, {size:,} bytes in all, and the signed manifest. No image leaves{stays}. "
        f"{outgoing.stands}. It needs the signatures of {needed(outgoing.egress)}.",
    )


def _privacy(facts: SiteFacts) -> Line:
    about, outgoing = "What it tells", facts.outgoing
    if outgoing is None:
        return Line(about, "not known", "There is no draft under this plan.")
    privacy = outgoing.privacy
    epsilon, unit = float(privacy.releases_epsilon), privacy.unit
    bounded = (
        f"epsilon {privacy.releases_epsilon} at delta {privacy.delta:f}: of the {unit}s that were "
        f"used, a test that wrongly accuses 1 in 100 finds at most "
        f"{percent(most_found(epsilon, float(privacy.delta)))}"
    )
    parts = {"expert": privacy.expert_is_private, "head": privacy.head_is_private}
    without = [name for name, private in parts.items() if private is False]
    if without:
        tells = "answers" if outgoing.egress.held_expert is not None else "weights"
        return Line(
            about,
            "look",
            f"The {listed(without)} was made without noise and is NOT bounded by any epsilon: its "
            f"{tells} may tell any {unit} that was used. What carries noise is bounded by "
            f"{bounded}.",
        )
    state: State = "look" if epsilon > WEAK_EPSILON else "holds"
    return Line(about, state, f"All of it carries noise and is bounded by {bounded}.")


def _spent(facts: SiteFacts) -> Line:
    about, ledger = "Spent so far", facts.ledger
    if ledger.cut is not None:
        return Line(about, "look", f"The ledger is not whole: {ledger.cut}.")
    most = facts.site.settings.max_epsilon
    count = len(ledger.entries)
    text = (
        f"Epsilon {ledger.epsilon} in all, over {count} ledger entries; the site allows {most:f} "
        "(`max_epsilon` in site.toml). The ledger goes on from all that was ever signed."
    )
    return Line(about, "look" if float(ledger.epsilon) > float(most) else "holds", text)


def _attacks(facts: SiteFacts) -> Line:
    about, audit = "Attacks", facts.audit
    if audit is None:
        return Line(about, "not known", "No audit was run under this plan.")
    if audit.violates:
        return Line(about, "look", "A guarantee does NOT hold. Release nothing; see below.")
    if not facts.audit_is_current:
        text = "The last audit attacked other files than those that would leave: run it again."
        return Line(about, "look", text)
    passed = sum(found.passed for found in audit.findings)
    text = f"{passed} of {len(audit.findings)} tests of mechanism and release passed."
    if not audit.attacked_expert:
        return Line(about, "not known", f"{text} The expert itself was not attacked.")
    text += " No attack rejects what is claimed, which does not show that it is true."
    return Line(about, "measured", text)


def _near(facts: SiteFacts) -> Line:
    about, found = "Samples like own images", facts.neighbours
    if found is None:
        return Line(about, "not known", "No samples were held against private images.")
    near = found.near
    text = (
        f"{percent(near.value)} [{percent(near.low)}, {percent(near.high)}] of {found.source} are "
        f"as near to a private image as {percent(NEAR)} of private images are to another."
    )
    if found.stands_out:
        return Line(about, "look", f"{text} Chance hardly makes so many: look for copies below.")
    return Line(about, "measured", f"{text} Chance explains that. Look at the nearest below.")


def _ledger_rows(facts: SiteFacts) -> list[list[str]]:
    ledger, rows = facts.ledger, []
    for entry, cells in zip(ledger.entries, ledger_rows(ledger.entries), strict=True):
        unsaid = "no" if entry.event.kind == "non_private" else "no, spent all the same"
        rows.append([*cells, "yes" if entry.index in ledger.left else unsaid])
    return rows


def require_stays(site: SiteFolder, published: Path, path: Path, option: str) -> None:
    """Refuses to write private images where somebody else reads, or from where they would leave.

    Raises:
        StateError: the outbox, a published folder, an ensemble, a bundle, or what is below one.
    """
    target = path.parent.resolve() / path.name
    outbox = (site.path / "outbox").resolve()
    open_folders = [outbox, site.receipts.resolve(), site.seen.resolve(), published.resolve()]
    for folder in target.parents:
        if folder in open_folders or any((folder / name).exists() for name in READ_BY_OTHERS):
            raise StateError(
                f"{option} {path}: the page holds private images, and others read what is in "
                f"{folder}",
                hint="leave it out: then the page is written into the site's own private folder",
            )
