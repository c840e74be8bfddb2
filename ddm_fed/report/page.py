"""Pages of one file: nothing is fetched, nothing runs, every text is escaped.

The policy in a page allows the one style sheet in it, by its digest, and images that are in it.
So whatever a text on it may hold, a browser neither runs nor loads anything. The same facts make
the same bytes: no page knows the time.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from ddm_fed.errors import printable

TEMPLATES = Path(__file__).with_name("templates")
CODE = re.compile("`([^`]*)`")
MARK = b'<meta name="generator" content="ddm-fed">'


def render_page(template: str, folders: Sequence[Path] = (), **facts: Any) -> bytes:
    """Returns a page, UTF-8.

    Args:
        template: Its name.
        folders: Where templates are beside the common ones.
        facts: What the template speaks of.
    """
    environment = Environment(
        loader=FileSystemLoader([TEMPLATES, *folders]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "words": with_code,
        "percent": percent,
        "data_uri": _data_uri,
        "shown": lambda value: printable(str(value)),
    }
    style = (TEMPLATES / "report.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )
    text = environment.get_template(template).render(
        style=style,
        policy=policy,
        **facts,
    )
    return text.encode()


def percent(share: float) -> str:
    """Returns a share as people read it."""
    return f"{100 * share:.1f} %"


def with_code(text: object) -> Markup:
    """Returns a text with its `commands` set as code; every part of it is escaped."""
    parts = CODE.split(printable(str(text)))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part)
        for index, part in enumerate(parts)
    )


def _data_uri(data: bytes) -> str:
    """Returns an image, PNG or SVG, as the address of itself."""
    kind = "png" if data.startswith(b"\x89PNG") else "svg+xml"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
