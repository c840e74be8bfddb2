"""Prompts: what samples of a plan with captions are asked to be."""

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from ddm_fed.embedding import encode_texts, open_text_encoder
from ddm_fed.errors import OptionError
from ddm_fed.flows import EncodedTexts
from ddm_fed.records import DataSpec
from ddm_fed.storage.files import open_regular

MAX_BYTES, MAX_PROMPTS, MAX_CHARACTERS = 1 << 20, 10_000, 2_000


def prompts_of(given: Iterable[str], file: Path | None) -> tuple[str, ...]:
    """Returns the prompts that were typed and those of a file, one per line; blank ones are none.

    Raises:
        OptionError: the file is missing, too long, or not UTF-8; or a prompt is too long.
    """
    prompts = [_cleaned(text) for text in given]
    if file is not None:
        prompts += [text for text in map(_cleaned, _lines(file)) if text]
        if not prompts:
            raise OptionError(f"--prompts {file}: it holds no prompt", hint="write one per line")
    if len(prompts) > MAX_PROMPTS:
        raise OptionError(
            f"--prompts: {len(prompts):,} prompts, at most {MAX_PROMPTS:,} are taken at once",
            hint="divide them among several folders of samples",
        )
    if any("\ud800" <= character <= "\udfff" for text in prompts for character in text):
        raise OptionError(
            "--prompt: it is not written in UTF-8",
            hint="put it into a file in UTF-8: --prompts FILE",
        )
    longest = max(map(len, prompts), default=0)
    if longest > MAX_CHARACTERS:
        raise OptionError(
            f"--prompt: one has {longest:,} characters, at most {MAX_CHARACTERS:,} are taken",
            hint="an encoder reads a few dozen words: shorten it",
        )
    return tuple(prompts)


def _cleaned(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _lines(file: Path) -> list[str]:
    if not file.is_file():
        raise OptionError(f"--prompts {file}: there is no such file", hint="check the path")
    with open_regular(file) as opened:
        data = opened.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise OptionError(
            f"--prompts {file}: it has more than {MAX_BYTES:,} bytes", hint="divide it"
        )
    try:
        return data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise OptionError(
            f"--prompts {file}: it is not written in UTF-8, see line {line}",
            hint="save it as UTF-8 in your editor; iconv -f LATIN1 -t UTF-8 does it too",
        ) from None


def require_prompts_fit(
    data: DataSpec, prompts: tuple[str, ...], encoder: Path | None, guidance: float
) -> None:
    """Refuses prompts that the plan cannot answer, and a text encoder without any.

    Raises:
        OptionError: naming the option, and what to give instead.
    """
    if data.text is None:
        if prompts or encoder is not None:
            reads = f"classes: {', '.join(data.classes)}" if data.classes else "neither"
            raise OptionError(
                "--prompt and --text-encoder are for captions; the plan's experts read none, but "
                f"{reads}",
                hint="give --class instead" if data.classes else "leave it out",
            )
        return
    if prompts and encoder is None:
        raise OptionError(
            "--prompt takes --text-encoder, the file of the plan's text encoder",
            hint=f"its SHA-256 is {data.text.sha256}",
        )
    if encoder is not None and not prompts:
        raise OptionError("--text-encoder without a --prompt", hint="give --prompt TEXT")
    if guidance != 1.0 and not prompts:
        raise OptionError(
            f"--guidance {guidance:g} needs a prompt to guide to", hint="give --prompt TEXT"
        )


def encode_prompts(
    data: DataSpec, prompts: tuple[str, ...], encoder: Path | None
) -> EncodedTexts | None:
    """Returns what the plan's encoder makes of the prompts; None where there are none.

    Raises:
        DigestError: the file is another encoder than the plan's.
        DataError, StateError: it cannot be opened.
    """
    if data.text is None or not prompts or encoder is None:
        return None
    return encode_texts(open_text_encoder(encoder, data.text), data.text, prompts)
