"""The report of an ensemble as a page, and as a model card."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_fed._version import __version__
from ddm_fed.pictures import grid_png
from ddm_fed.privacy import LEDGER_COLUMNS, ledger_rows, most_found
from ddm_fed.report.charts import calibration_chart, shares_chart
from ddm_fed.report.facts import EnsembleFacts, MemberFacts
from ddm_fed.report.page import percent, render_page
from ddm_fed.report.sample_facts import SampleFacts
from ddm_fed.report.summary import common_sentences, in_short, limits

COLUMNS = 10  # images in a row
SHOWN = 40
MOST_SITES = 30  # with pictures and bars of their own
TILE = 44  # CSS pixels of an image


@dataclass(frozen=True)
class Picture:
    """An image on the page: its bytes, what it shows in words, and its width in CSS pixels."""

    data: bytes
    alt: str
    width: int = 0
    count: int = 0


def ensemble_page(facts: EnsembleFacts) -> bytes:
    """Returns the page of an ensemble, HTML in UTF-8; equal for equal facts."""
    common = common_sentences(facts.members)

    def own_sentences(member: MemberFacts) -> list[str]:
        return [line for line in member.sentences if line not in common]

    return render_page(
        "ensemble.html",
        facts=facts,
        summary=in_short(facts),
        limits=limits(facts),
        common=common,
        own_sentences=own_sentences,
        found_at_most=_found_at_most,
        ledger_columns=LEDGER_COLUMNS,
        ledger_rows=ledger_rows,
        pictures=_pictures(facts),
        charts=_charts(facts),
        calibration_rows=_calibration_rows(facts),
        signers=sorted(key.keyid for key in facts.verified.signers),
        version=__version__,
    )


def _found_at_most(member: MemberFacts) -> float:
    """Returns the largest share of used units that a test of the noisy releases finds."""
    return most_found(float(member.privacy.releases_epsilon), float(member.privacy.delta))


def _pictures(facts: EnsembleFacts) -> dict[str, Any]:
    samples = facts.samples
    if samples is None or samples.images is None:
        return {"all": None, "sites": [], "left_out": 0}
    first = samples.images[:SHOWN]
    strips = []
    if samples.counts is not None:
        strips = [
            _strip(samples, samples.images, place, member.name)
            for place, member in enumerate(facts.members[:MOST_SITES])
            if samples.counts[place]
        ]
    return {
        "all": _picture(
            first, f"The first {len(first)} of {samples.count} samples of the ensemble"
        ),
        "sites": strips,
        "left_out": max(0, len(facts.members) - MOST_SITES),
    }


def _strip(samples: SampleFacts, images: NDArray[np.uint8], place: int, name: str) -> Picture:
    rows = np.flatnonzero(samples.sites == place)
    share = percent(len(rows) / samples.count)
    shown = images[rows[:COLUMNS]]
    alt = f"{name}: the first {len(shown)} of the {len(rows)} samples it drew, {share} of all"
    return _picture(shown, alt)


def _picture(images: NDArray[np.uint8], alt: str) -> Picture:
    return Picture(
        grid_png(images, columns=min(COLUMNS, len(images))),
        alt,
        width=TILE * min(COLUMNS, len(images)),
        count=len(images),
    )


def _charts(facts: EnsembleFacts) -> dict[str, Picture | None]:
    samples, shares, calibration = facts.samples, None, None
    if samples is not None and samples.counts is not None and len(facts.members) <= MOST_SITES:
        names = [member.name for member in facts.members]
        obtained = [count / samples.count for count in samples.counts]
        words = (
            f"{name} {percent(wanted)} intended, {percent(found)} obtained"
            for name, wanted, found in zip(names, samples.intended, obtained, strict=True)
        )
        shares = Picture(
            shares_chart(names, samples.intended, obtained), f"Shares: {'; '.join(words)}."
        )
    if facts.calibration is not None:
        words = (
            f"{name}: calibration error {percent(found[0].ece)} at t = {found[0].t:g} and "
            f"{percent(found[-1].ece)} at t = {found[-1].t:g}"
            for name, found in facts.calibration.items()
        )
        calibration = Picture(
            calibration_chart(facts.calibration), f"Routers over time. {'; '.join(words)}."
        )
    return {"shares": shares, "calibration": calibration}


def _calibration_rows(facts: EnsembleFacts) -> list[list[str]]:
    return [
        [
            name,
            f"{at.t:g}",
            f"{at.nll:.3f} ± {at.nll_error:.3f}",
            percent(at.ece),
            percent(at.accuracy),
            str(at.images),
        ]
        for name, found in (facts.calibration or {}).items()
        for at in found
    ]
