"""How far something has come: what long work tells its caller, and lines for logs."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from torch import Tensor

Advance = Callable[[int], None]
"""Is told how many more bytes, samples or steps are done since it was last told."""

FIRST_S, EVERY_S = 10.0, 60.0
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400


class StepReport(NamedTuple):
    """What a training tells its caller after a step; for the screen of its own machine only.

    Attributes:
        step: Steps done.
        steps: Steps of the whole run.
        loss: Mean over the batch. On a GPU that of the step before, so that it is not waited for.
        images_per_s: Of all processes together, smoothed over the last steps; 0 if not measured.
        eta_s: Seconds that the rest will take at that speed; 0 if not measured.
    """

    step: int
    steps: int
    loss: float
    images_per_s: float = 0.0
    eta_s: float = 0.0


@dataclass(frozen=True)
class Watch:
    """Who is told how a training goes: nobody by default. All of it stays on this machine.

    Attributes:
        on_step: Called after every step.
        on_sample: Called with the number of steps done and images `(N, C, H, W)` in [-1, 1].
        say: Called with notices for people.
        advance: Called with how many more images are drawn, where images are drawn first.
    """

    on_step: Callable[[StepReport], None] = lambda _: None
    on_sample: "Callable[[int, Tensor], None]" = lambda *_: None
    say: Callable[[str], None] = lambda _: None
    advance: Advance = lambda _: None


QUIET = Watch()


def duration(seconds: float) -> str:
    """Returns a time as people say it: `50 s`, `3 min`, `2 h 40 min`, `5 days`."""
    if seconds < 2 * MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR_S:
        return f"{seconds / MINUTE_S:.0f} min"
    if seconds < 2 * DAY_S:
        hours, rest = divmod(round(seconds / MINUTE_S), 60)
        return f"{hours} h {rest} min"
    return f"{seconds / DAY_S:.1f} days"


class Heartbeat:
    """Says how far a count has come, also while nothing moves.

    The first line comes soon, so that a short task says something; each pause is twice the one
    before, up to `every_s`.

    Args:
        description: What is under way.
        total: How many things there are; 0 if nobody can count.
        unit: What they are.
        say: Writes a line.
        every_s: Most seconds between two lines.
    """

    def __init__(
        self,
        description: str,
        total: int,
        unit: str,
        say: Callable[[str], None],
        *,
        every_s: float = EVERY_S,
    ) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._say, self._every_s = say, every_s
        self._completed, self._note = 0, ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def update(self, completed: int, note: str = "") -> None:
        """Takes down how far it has come."""
        self._completed, self._note = completed, note

    def advance(self, count: int) -> None:
        """Takes down that it came further by `count`."""
        self._completed += count

    def __enter__(self) -> Self:
        self._begun = monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        pause = min(FIRST_S, self._every_s)
        while not self._ended.wait(pause):
            self._say(self._line(self._completed, monotonic() - self._begun))
            pause = min(2 * pause, self._every_s)

    def _line(self, completed: int, passed_s: float) -> str:
        count = f": {completed:,} of {self._total:,} {self._unit}" if self._total else ""
        facts = [f"{self._description}{count}", f"{duration(passed_s)} so far", self._note]
        return ", ".join(filter(None, facts))
