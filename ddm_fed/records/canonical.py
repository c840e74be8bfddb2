"""JSON as it is signed: one way to write it, and a reader that refuses every ambiguity.

Signatures cover the bytes that travelled, so nothing is ever re-serialised to be checked; the
canonical form only makes our own output reproducible.
"""

import hashlib
import json
from typing import Any, NoReturn

from ddm_fed.errors import MalformedError
from ddm_fed.limits import MAX_DOCUMENT_BYTES as MAX_DOCUMENT_BYTES


def canonical_json(value: Any) -> bytes:
    """Returns sorted, compact UTF-8 JSON. Floats are a programmer's error: decimals are strings."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def sha256_hex(data: bytes) -> str:
    """Returns the SHA-256 of `data` as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def parse_json(data: bytes, *, what: str) -> Any:
    """Returns the value in `data`, or refuses it.

    Refused: more than 1 MiB, invalid UTF-8, duplicate keys, NaN, Infinity, floats, integers beyond
    2^53 - 1 and nesting deeper than the parser's limit. Two parsers could read each differently.

    Raises:
        MalformedError: naming `what` and the reason.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise MalformedError(
            f"{what} has {len(data)} bytes, at most {MAX_DOCUMENT_BYTES} are read",
            hint="ask the sender for the document itself; a signed record is never this large",
        )
    try:
        return json.loads(
            data.decode(),
            object_pairs_hook=lambda pairs: _unique(pairs, what),
            parse_constant=lambda name: _refuse(what, f"it holds the number {name}"),
            parse_float=lambda text: _refuse(what, f"it holds the float {text}; use a string"),
            parse_int=lambda text: _small_int(text, what),
        )
    except UnicodeDecodeError as error:
        raise _malformed(what, f"it is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise _malformed(what, f"it is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise _malformed(what, "it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]], what: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            _refuse(what, f"the key `{key}` appears twice")
        found[key] = value
    return found


def _small_int(text: str, what: str) -> int:
    if len(text.lstrip("-")) > 16 or abs(int(text)) > 2**53 - 1:
        _refuse(what, "it holds an integer beyond 2^53 - 1")
    return int(text)


def _refuse(what: str, reason: str) -> NoReturn:
    raise _malformed(what, reason)


def _malformed(what: str, reason: str) -> MalformedError:
    return MalformedError(
        f"{what} cannot be read: {reason}",
        hint="fetch the file again from its sender; do not repair it by hand, the signature would "
        "no longer hold",
    )
