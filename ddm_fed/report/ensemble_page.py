"""The report of an ensemble as a page."""

import numpy as np
from numpy.typing import NDArray

from ddm_fed.report.charts import calibration_chart, shares_chart
from ddm_fed.report.ensemble_facts import EnsembleFacts
from ddm_fed.report.model_page import COLUMNS, Picture, model_page, picture_of
from ddm_fed.report.page import percent
from ddm_fed.report.sample_facts import EnsembleSamples
from ddm_fed.report.summary import in_short, limits

MOST_SITES = 30  # with pictures and bars of their own


def ensemble_page(facts: EnsembleFacts) -> bytes:
    """Returns the page of an ensemble, HTML in UTF-8; equal for equal facts."""
    return model_page(
        "ensemble.html",
        facts,
        summary=in_short(facts),
        limits=limits(facts),
        strips=_strips(facts),
        left_out=max(0, len(facts.members) - MOST_SITES),
        charts=_charts(facts),
        calibration_rows=_calibration_rows(facts),
    )


def _strips(facts: EnsembleFacts) -> list[Picture]:
    """Returns the first samples of every site, where each sample is of one."""
    samples = facts.samples
    if samples is None or samples.images is None or samples.counts is None:
        return []
    return [
        _strip(samples, samples.images, place, member.name)
        for place, member in enumerate(facts.members[:MOST_SITES])
        if samples.counts[place]
    ]


def _strip(samples: EnsembleSamples, images: NDArray[np.uint8], place: int, name: str) -> Picture:
    rows = np.flatnonzero(samples.sites == place)
    share = percent(len(rows) / samples.count)
    shown = images[rows[:COLUMNS]]
    alt = f"{name}: the first {len(shown)} of the {len(rows)} samples it drew, {share} of all"
    return picture_of(shown, alt)


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
