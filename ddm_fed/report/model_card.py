"""The report of an ensemble as a model card: Markdown with the metadata that Hugging Face reads."""

import html
import json
import re
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ddm_fed.errors import OptionError, printable
from ddm_fed.report.facts import EnsembleFacts
from ddm_fed.report.page import TEMPLATES, percent
from ddm_fed.report.summary import in_short, limits

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


def model_card(facts: EnsembleFacts, license_name: str) -> bytes:
    """Returns the model card of an ensemble, UTF-8; equal for equal facts.

    Args:
        facts: What the page says, too.
        license_name: What Hugging Face calls the license; no document of a federation says it.
    """
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
    text = environment.get_template("model_card.md").render(
        facts=facts,
        verified=verified,
        plan=plan,
        record=verified.record,
        license=license_name,
        pipeline_tag="text-to-image" if plan.data.text else "unconditional-image-generation",
        tags=_tags(facts),
        summary=in_short(facts),
        limits=limits(facts),
        sample_command=facts.sample_command,
    )
    return re.sub(r"\n{3,}", "\n\n", text).encode()


def _tags(facts: EnsembleFacts) -> list[str]:
    tags = ["ddm-fed", "diffusion", "flow-matching", "mixture-of-experts", "federated-learning"]
    if not facts.unbounded:
        tags.append("differential-privacy")
    return tags


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
