"""What the page of an ensemble and that of a student have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_fed._version import __version__
from ddm_fed.pictures import grid_png
from ddm_fed.privacy import LEDGER_COLUMNS, ledger_rows, most_found
from ddm_fed.report.facts import MemberFacts, ModelFacts
from ddm_fed.report.page import render_page
from ddm_fed.report.summary import Line, common_sentences

COLUMNS = 10  # images in a row
SHOWN = 40
TILE = 44  # CSS pixels of an image


@dataclass(frozen=True)
class Picture:
    """An image on the page: its bytes, what it shows in words, and its width in CSS pixels."""

    data: bytes
    alt: str
    width: int = 0
    count: int = 0


def model_page(
    template: str,
    facts: ModelFacts,
    *,
    summary: Sequence[Line],
    limits: Sequence[str],
    **own: Any,
) -> bytes:
    """Returns the page of a model, HTML in UTF-8; equal for equal facts.

    Args:
        template: One that extends `model.html`.
        facts: What is known of it.
        summary: What comes first.
        limits: What comes last.
        own: What else the template speaks of.
    """
    common = common_sentences(facts.members)

    def own_sentences(member: MemberFacts) -> list[str]:
        return [line for line in member.sentences if line not in common]

    return render_page(
        template,
        facts=facts,
        kind=facts.kind,
        verified=facts.verified,
        plan=facts.verified.trust.plan,
        record=facts.verified.record,
        summary=summary,
        limits=limits,
        common=common,
        own_sentences=own_sentences,
        found_at_most=_found_at_most,
        ledger_columns=LEDGER_COLUMNS,
        ledger_rows=ledger_rows,
        first=_first(facts),
        signers=sorted(key.keyid for key in facts.verified.signers),
        version=__version__,
        **own,
    )


def picture_of(images: NDArray[np.uint8], alt: str) -> Picture:
    """Returns images `(N, C, H, W)` in rows, as one picture."""
    return Picture(
        grid_png(images, columns=min(COLUMNS, len(images))),
        alt,
        width=TILE * min(COLUMNS, len(images)),
        count=len(images),
    )


def _first(facts: ModelFacts) -> Picture | None:
    samples = facts.samples
    if samples is None or samples.images is None:
        return None
    first = samples.images[:SHOWN]
    return picture_of(
        first, f"The first {len(first)} of {samples.count} samples of the {facts.kind}"
    )


def _found_at_most(member: MemberFacts) -> float:
    """Returns the largest share of used units that a test of the noisy releases finds."""
    return most_found(float(member.privacy.releases_epsilon), float(member.privacy.delta))
