"""A report as a model card: Markdown with the metadata that Hugging Face reads."""

import html
import json
import re
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ddm_fed.errors import OptionError, printable
from ddm_fed.report import student_summary, summary
from ddm_fed.report.ensemble_facts import EnsembleFacts
from ddm_fed.report.facts import ModelFacts
from ddm_fed.report.page import TEMPLATES, percent
from ddm_fed.report.student_facts import StudentFacts

LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
SPECIAL = re.compile(r"([\\`*_{}\[\]#|~!])")


def require_license(name: str) -> None:
    """Refuses what cannot be the name of a license.

    Raises:
        OptionError: it is something else.
    """
    if LICENSE.fullmatch(name) is None:
        raise OptionError(
            f"--license {name}: not the name of a license",
            hint="give one as Hugging Face names it, such as apache-2.0, cc-by-nc-4.0 or other",
        )


def model_card(facts: EnsembleFacts | StudentFacts, license_name: str) -> bytes:
    """Returns the model card of an ensemble or a student, UTF-8; equal for equal facts.

    Args:
        facts: What the page says, too.
        license_name: What Hugging Face calls the license; no document of a federation says it.
    """
    if isinstance(facts, StudentFacts):
        return _card(
            "student_card.md",
            facts,
            license_name,
            tags=["distillation"],
            is_private=not facts.unbounded and facts.verified.record.privacy.post_processing,
            summary=student_summary.in_short(facts),
            limits=student_summary.limits(facts),
            promises=student_summary.promises(facts),
            teaching=student_summary.teaching(facts),
        )
    return _card(
        "ensemble_card.md",
        facts,
        license_name,
        tags=["mixture-of-experts"],
        is_private=not facts.unbounded,
        summary=summary.in_short(facts),
        limits=summary.limits(facts),
    )


def _card(
    template: str,
    facts: ModelFacts,
    license_name: str,
    *,
    tags: list[str],
    is_private: bool,
    **own: Any,
) -> bytes:
    verified, plan = facts.verified, facts.verified.trust.plan
    # Markdown: whatever a template says of facts passes `_as_text`, which escapes more than HTML
    environment = Environment(  # noqa: S701
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        finalize=_as_text,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "yaml": lambda text: Verbatim(json.dumps(str(text))),
        "verbatim": _verbatim,
        "percent": percent,
    }
    text = environment.get_template(template).render(
        facts=facts,
        kind=facts.kind,
        verified=verified,
        plan=plan,
        record=verified.record,
        license=license_name,
        pipeline_tag="text-to-image" if plan.data.text else "unconditional-image-generation",
        tags=[
            *("ddm-fed", "diffusion", "flow-matching", *tags, "federated-learning"),
            *(["differential-privacy"] if is_private else []),
        ],
        sample_command=facts.sample_command,
        **own,
    )
    return re.sub(r"\n{3,}", "\n\n", text).encode()


class Verbatim(str):
    """A text that stands in the card as it is."""

    __slots__ = ()


def _as_text(value: Any) -> str:
    """Returns a text that Markdown shows as it is: none of it is a link, HTML, or a new line."""
    if isinstance(value, Verbatim):
        return value
    line = printable(" ".join(str(value).split()))
    return SPECIAL.sub(r"\\\1", html.escape(line, quote=False))


def _verbatim(text: object) -> Verbatim:
    """Returns a text for a span or a block of code, which it cannot end."""
    return Verbatim(printable(str(text)).replace("`", "'"))
