"""The page that a person reads before agreeing: what would leave, in words, in any browser.

It is written from the signed manifest alone, holds no script and loads nothing. Its digest is in
the signed review, so that what was read is what was signed for.
"""

from collections.abc import Iterable, Sequence
from html import escape

from ddm_fed.privacy import LEDGER_COLUMNS, describe_held, describe_privacy, ledger_rows
from ddm_fed.records import EgressRecord, PrivacyStatement
from ddm_fed.signing import VerifyKey

PAGE_FILE = "review.html"
WARNING = "NOT bounded"  # how `describe_privacy` begins what no epsilon covers

_HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }}
table {{ border-collapse: collapse; margin: 1em 0 }}
td, th {{ border: 1px solid #999; padding: .2em .6em; text-align: left; vertical-align: top }}
code {{ overflow-wrap: anywhere }}
.warning {{ border: 3px solid #b00; padding: .5em 1em; font-weight: bold }}
</style>
"""


def needed(egress: EgressRecord) -> str:
    """Returns whose signatures the submission needs, in words."""
    return " and ".join(
        {"site": "the site", "dpo": "its data-protection officer"}[role] for role in egress.require
    )


def review_page(egress: EgressRecord, privacy: PrivacyStatement) -> bytes:
    """Returns the page, UTF-8; a pure function of what was signed."""
    title = f"What would leave {egress.site}"
    officers = [VerifyKey.from_hex(key).keyid for key in egress.officers]
    parts = [
        _HEAD.format(title=escape(title)),
        f"<h1>{escape(title)}</h1>",
        f"<p>Federation <b>{escape(egress.federation)}</b>, submission number {egress.sequence}, "
        f"digest <code>{egress.submission_sha256}</code>, under the plan "
        f"<code>{egress.plan_sha256}</code>.</p>",
    ]
    sentences = describe_privacy(privacy)
    if egress.held_expert is not None:
        sentences.append(describe_held(expert_is_private=egress.expert_is_private))
    parts += [
        f'<p class="warning">{escape(line)}</p>' for line in sentences if line.startswith(WARNING)
    ]
    parts += [
        "<h2>Files</h2>",
        _table(
            ("file", "bytes", "SHA-256"),
            [[file.name, f"{file.size_bytes:,}", file.sha256] for file in egress.files],
        ),
        "<p>and the signed manifest, which holds what this page says. No image leaves.</p>",
        "<h2>What it costs</h2>",
        _list(line for line in sentences if not line.startswith(WARNING)),
        "<h2>Everything this site ever spent</h2>",
        _table(LEDGER_COLUMNS, ledger_rows(privacy.ledger)),
        "<h2>Who has to agree</h2>",
        f"<p>It needs the signatures of {escape(needed(egress))}.</p>",
    ]
    if officers:
        parts += [
            "<p>The officer signs with a key of this name, and no other:</p>",
            _list(officers),
            "<p>To agree: <code>ddm-site approve THIS-FOLDER --key KEY.pem</code>. The program "
            "shows the same from the signed manifest itself, and asks.</p>",
        ]
    return "\n".join([*parts, "</html>", ""]).encode()


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in columns)
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
