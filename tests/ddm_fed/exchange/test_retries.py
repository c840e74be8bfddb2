"""Tries go on for as long as something moves, and no longer than the timeout without."""

import time

import pytest

from ddm_fed.exchange import retries
from ddm_fed.exchange.retries import Retries


class LinkError(Exception):
    """What a network does."""


class Action:
    """Fails so many times; calls `before` each time it is tried."""

    def __init__(self, failures: int, before=lambda tries: None) -> None:
        self.failures, self.tries, self.before = failures, 0, before

    def __call__(self) -> str:
        self.tries += 1
        self.before(self.tries)
        if self.tries <= self.failures:
            raise LinkError(f"try {self.tries}")
        return "done"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(retries, "SHORTEST_PAUSE_S", 0.01)
    monkeypatch.setattr(retries, "LONGEST_PAUSE_S", 0.05)


def test_action_that_fails_is_tried_until_it_succeeds(quick):
    action = Action(5)
    assert Retries(LinkError, 30).run(action) == "done"
    assert action.tries == 6


def test_last_error_is_raised_once_nothing_moved_for_the_timeout(quick):
    action, began = Action(10**6), time.monotonic()
    with pytest.raises(LinkError) as caught:
        Retries(LinkError, 0.4).run(action)
    assert 0.4 <= time.monotonic() - began < 5
    assert str(caught.value) == f"try {action.tries}"
    assert action.tries > 4


def test_last_try_is_at_the_end_of_the_timeout_however_long_the_pause_was():
    ended = []
    action = Action(10**6, lambda tries: ended.append(time.monotonic()))
    patient = Retries(LinkError, 1.0)
    patient._pauses = lambda state: 100.0
    began = time.monotonic()
    with pytest.raises(LinkError):
        patient.run(action)
    assert len(ended) >= 2
    assert 1.0 <= ended[-1] - began < 5


def test_timeout_counts_from_the_last_progress(quick):
    patient = Retries(LinkError, 0.4)
    moving = Action(10**6, lambda tries: patient.progress() if tries <= 40 else None)
    began = time.monotonic()
    with pytest.raises(LinkError):
        patient.run(moving)
    assert time.monotonic() - began > 0.4 + 39 * 0.01
    assert moving.tries > 40


def test_pauses_grow_up_to_the_longest_and_are_short_again_after_progress():
    patient, pauses = Retries(LinkError, 10**6), []
    patient._retrying.sleep = pauses.append
    moving = Action(40, lambda tries: patient.progress() if tries == 21 else None)
    assert patient.run(moving) == "done"
    assert min(pauses) >= retries.SHORTEST_PAUSE_S
    assert max(pauses) <= 15
    assert sum(pauses[10:20]) > 10 * pauses[0]
    assert pauses[20] <= retries.FIRST_PAUSE_S


def test_other_error_is_raised_at_once():
    def broken():
        raise KeyError("a fault of ours")

    began = time.monotonic()
    with pytest.raises(KeyError):
        Retries(LinkError, 30).run(broken)
    assert time.monotonic() - began < 1


def test_judge_ends_the_tries_with_its_own_error(quick):
    def judge(error):
        if str(error) == "try 3":
            raise ValueError("they refused")

    action = Action(10**6)
    with pytest.raises(ValueError, match="they refused"):
        Retries(LinkError, 30, judge=judge).run(action)
    assert action.tries == 3


def test_end_is_told_in_the_words_of_the_caller():
    with pytest.raises(OSError, match="nothing moved: try 1"):
        Retries(LinkError, 0, told=lambda error: OSError(f"nothing moved: {error}")).run(Action(9))


def test_interrupt_is_not_tried_again():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Retries(LinkError, 30).run(interrupted)
