"""`plan new` of both programs: five questions, each answered by an option or on a terminal."""

import sys
from decimal import Decimal, InvalidOperation
from math import isfinite
from pathlib import Path
from typing import Annotated

import click
import typer

from ddm_fed import console
from ddm_fed.errors import OptionError, PlanError

NONE = "none"
MOST_SITES, MOST_UNITS, MOST_HOURS = 100_000, 10**9, 24 * 365.0
TOKENS = 32  # of a caption: one sentence

OutOption = Annotated[
    Path, typer.Option("--out", help="File to write; one that exists is not replaced.")
]
FederationOption = Annotated[
    str | None, typer.Option("--federation", help="Name of the federation.")
]
SizeOption = Annotated[
    str | None,
    typer.Option("--size", help="Height and width of images in pixels: 64, or 64x48."),
]
ChannelsOption = Annotated[
    str | None, typer.Option("--channels", help="1 for grey images, 3 for colour.")
]
ClassesOption = Annotated[
    str | None,
    typer.Option(
        "--classes",
        help="Names of the classes, with commas between: healthy,ill; or none. They are published.",
    ),
]
TextEncoderOption = Annotated[
    Path | None,
    typer.Option(
        "--text-encoder",
        help="Instead of classes, for images with captions: a CLIP safetensors file.",
        exists=True,
        dir_okay=False,
    ),
]
SitesOption = Annotated[str | None, typer.Option("--sites", help="How many sites take part.")]
EpsilonOption = Annotated[
    str | None,
    typer.Option(
        "--epsilon",
        help="Epsilon for all that leaves a site, such as 8; none trains experts without noise.",
    ),
]
MachineOption = Annotated[
    str | None,
    typer.Option(
        "--machine", help="What a site trains on: cpu, a40, a100, l40s, h100, h200, b200, mi300x."
    ),
]
HoursOption = Annotated[
    str | None, typer.Option("--hours", help="How many hours training may take there.")
]
UnitsOption = Annotated[
    int,
    typer.Option(
        "--units",
        help="A public guess of the images (or patients) of a site, never a count. Only its first "
        "digit is used.",
        min=1,
        max=MOST_UNITS,
    ),
]


def new_plan(
    out: Path,
    *,
    federation: str | None,
    size: str | None,
    channels: str | None,
    classes: str | None,
    text_encoder: Path | None,
    sites: str | None,
    epsilon: str | None,
    machine: str | None,
    hours: str | None,
    units: int,
    suggested_classes: str = NONE,
) -> None:
    """Writes a plan.toml from answers; what is missing is asked on a terminal.

    Args:
        out: The file.
        federation: As are all others that follow: an option, or None.
        size: Height and width.
        channels: 1 or 3.
        classes: With commas between, or `none`.
        text_encoder: Of captions.
        sites: Their number.
        epsilon: Or `none`.
        machine: Of a site.
        hours: Of training.
        units: A public guess.
        suggested_classes: What a person is asked to confirm as classes.

    Raises:
        OptionError: an answer cannot be used, or is missing and nobody can be asked.
    """
    from ddm_fed.embedding import text_spec
    from ddm_fed.records import now, read_plan_toml
    from ddm_fed.storage.files import write_atomically
    from ddm_fed.training.plan_draft import MACHINES, Answers, draft_plan

    if out.exists():
        raise OptionError(f"--out {out} exists already", hint="name another file, or move it away")
    if not out.parent.is_dir():
        raise OptionError(
            f"--out {out}: there is no folder {out.parent}", hint="make it, or name another file"
        )
    name = _answered("federation", federation, "name of the federation")
    height, width = _size(_answered("size", size, "height x width of an image, such as 64x64"))
    colours = _answered("channels", channels, "channels: 1 for grey, 3 for colour", "1")
    if colours not in ("1", "3"):
        raise OptionError(f"--channels {colours}: not 1 or 3", hint="images are grey or RGB")
    if text_encoder is not None and classes not in (None, NONE):
        raise OptionError(
            "--classes and --text-encoder are two ways to say what an image is",
            hint="leave one of them out",
        )
    named: tuple[str, ...] = ()
    if text_encoder is None:
        question = "classes, with commas between, or none (captions: start with --text-encoder)"
        named = _names(_answered("classes", classes, question, suggested_classes))
    count = _sites(_answered("sites", sites, "how many sites", "3"))
    bound = _epsilon(
        _answered("epsilon", epsilon, "epsilon for all that leaves a site, or none", "8")
    )
    kind = _answered("machine", machine, f"machine of a site: {', '.join(MACHINES)}", "cpu")
    if kind not in MACHINES:
        raise OptionError(
            f"--machine {kind} is not known", hint=f"give one of {', '.join(MACHINES)}"
        )
    span = _hours(_answered("hours", hours, "hours that training may take there", "8"))
    text = None if text_encoder is None else text_spec(text_encoder, TOKENS)
    answers = Answers(
        name, height, width, int(colours), named, text, count, bound, kind, span, units
    )
    drafted = draft_plan(answers, now())
    try:
        read_plan_toml(drafted)
    except PlanError as error:
        raise OptionError(
            f"--federation, --size, --classes: no plan can be made of this: {error.message}",
            hint="docs/plan.md says what names and sizes can be",
        ) from None
    write_atomically(out, drafted.encode())
    console.say(f"{out} is a plan for {count} sites; read its comments, and change what you know")


def _answered(name: str, given: str | None, question: str, suggested: str | None = None) -> str:
    """Returns what the option of that name says, or else a person on the terminal.

    Raises:
        OptionError: there is no terminal.
    """
    if given is not None:
        return given.strip()
    if not sys.stdin.isatty():
        param = next(p for p in click.get_current_context().command.params if p.name == name)
        raise OptionError(
            f"{param.opts[0]} is missing, and nobody can be asked: {question}",
            hint="give it, or run this on a terminal",
        )
    said: str = typer.prompt(question, default=suggested, err=True)
    return said.strip()


def _size(text: str) -> tuple[int, int]:
    """Returns height and width."""
    parts = text.lower().replace(" ", "").split("x")
    if len(parts) > 2 or not all(part.isdecimal() and part.isascii() for part in parts):
        raise OptionError(f"--size {text}: not a size", hint="give 64, or 64x48 (height x width)")
    height, width = int(parts[0]), int(parts[-1])
    if not (min(height, width) >= 4 and max(height, width) <= 1024):
        raise OptionError(
            f"--size {text} is out of range", hint="sides from 4 to 1024 pixels can be trained"
        )
    return height, width


def _names(text: str) -> tuple[str, ...]:
    """Returns the names of classes."""
    names = () if text == NONE else tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise OptionError(
            f"--classes {text}: a name is empty or there twice",
            hint="give names with commas between, such as healthy,ill; or none",
        )
    if len(names) == 1:
        raise OptionError(
            f"--classes {text}: one class decides nothing",
            hint="give the names of all classes with commas between, such as healthy,ill; or none",
        )
    return names


def _sites(text: str) -> int:
    """Returns how many sites there are."""
    if not (text.isdecimal() and text.isascii()) or not 1 <= int(text) <= MOST_SITES:
        raise OptionError(
            f"--sites {text}: not a whole number from 1 to {MOST_SITES}", hint="give a number"
        )
    return int(text)


def _epsilon(text: str) -> Decimal | None:
    """Returns epsilon; None where experts have no noise."""
    if text == NONE:
        return None
    try:
        found = Decimal(text)
    except InvalidOperation:
        found = Decimal(-1)
    if not (found.is_finite() and Decimal("0.01") <= found <= 1000 and len(text) < 10):
        raise OptionError(
            f"--epsilon {text}: not a number from 0.01 to 1000",
            hint="1 to 10 is usual; `none` trains experts without noise",
        )
    return found


def _hours(text: str) -> float:
    """Returns hours."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not (isfinite(found) and 0 < found <= MOST_HOURS):
        raise OptionError(
            f"--hours {text}: not a number above 0 and up to {MOST_HOURS:.0f}", hint="such as 8"
        )
    return found
