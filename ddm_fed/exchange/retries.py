"""Tries again what a network failed, with longer and longer pauses, until nothing moves."""

import time
from collections.abc import Callable
from typing import Generic, TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

SHORTEST_PAUSE_S, FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 0.4, 15.0
Result = TypeVar("Result")
Failed = TypeVar("Failed", bound=BaseException)


class Retries(Generic[Failed]):
    """Tries an action again for as long as something moves.

    Args:
        kind: The errors after which a later try may succeed; others are raised as they are.
        timeout_s: How long to go on without progress; counted anew from every progress.
        judge: Called with each of these errors; raises if no later try can succeed after all.
        told: Returns what is raised at the end; without it, that is the last error.
    """

    def __init__(
        self,
        kind: type[Failed],
        timeout_s: float,
        *,
        judge: Callable[[Failed], object] | None = None,
        told: Callable[[Failed], BaseException] | None = None,
    ) -> None:
        self._kind, self._timeout_s, self._judge, self._told = kind, timeout_s, judge, told
        self._moved_at = time.monotonic()
        # spread, so that sites cut off together do not come back together
        self._pauses = wait_random_exponential(FIRST_PAUSE_S, LONGEST_PAUSE_S, min=SHORTEST_PAUSE_S)
        self._retrying = Retrying(
            retry=retry_if_exception(self._may_pass),
            after=self._count_from_progress,
            wait=self._pause,
            stop=stop_after_delay(timeout_s),
            retry_error_callback=self._give_up,
        )

    def run(self, action: Callable[[], Result]) -> Result:
        """Returns what `action` returns when it succeeds."""
        return self._retrying(action)

    def progress(self) -> None:
        """Notes that something moved."""
        self._moved_at = time.monotonic()

    def _may_pass(self, error: BaseException) -> bool:
        if not isinstance(error, self._kind):
            return False
        if self._judge is not None:
            self._judge(error)
        return True

    def _count_from_progress(self, state: RetryCallState) -> None:
        if self._moved_at > state.start_time:
            state.start_time, state.attempt_number = self._moved_at, 1

    def _pause(self, state: RetryCallState) -> float:
        left_s = self._timeout_s - (time.monotonic() - state.start_time)
        return max(0.0, min(left_s, self._pauses(state)))  # the last try is at the very end

    def _give_up(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, self._kind):
            raise self._told(error) if self._told is not None else error
