"""How many connections a gate keeps, and who sits where: shared fairly, by holder."""

import resource
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Generic, TypeVar

# The client's, ours towards the server, and the server's.
DESCRIPTORS_EACH = 3
MOST_DESCRIPTORS = 1 << 16
MOST_MEMBERS, MOST_WAITING, MOST_STRANGERS = 1024, 512, 64  # connections to the gRPC ports
LOBBY_OF_DESK = 8

Sitting = TypeVar("Sitting")


@dataclass(frozen=True)
class Seats:
    """How many connections a gate keeps.

    Attributes:
        lobby: Of those who are connected.
        desk: Of those who say who they are.
        known: Of those who have.
        wait_s: How long anybody stays in lobby and desk together.
        desk_s: How long nobody at the desk has to give way to another of its address.
    """

    lobby: int
    desk: int
    known: int
    wait_s: float = 15.0
    desk_s: float = 0.25


def descriptors() -> int:
    """Returns how many descriptors this process may have, after asking for all it can get."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else min(soft, MOST_DESCRIPTORS)


def seats(share: float, desk: int, known: int, wait_s: float = 15.0, desk_s: float = 0.25) -> Seats:
    """Returns what a part of our descriptors is enough for. A quarter of all stays for files.

    Args:
        share: Part of the descriptors for connections.
        desk: Most seats there, however many descriptors there are.
        known: Most seats of those who are known; 0 if nobody ever is.
        wait_s: How long anybody waits.
        desk_s: For a handshake that has begun.
    """
    ours = share * 3 / 4 * descriptors()
    # the lobby is cheap, and whoever fits into it is not turned away
    at_lobby, at_desk, at_known = (1 / 2, 1 / 6, 1 / 3) if known else (3 / 4, 1 / 4, 0)
    return Seats(
        lobby=min(int(ours * at_lobby), LOBBY_OF_DESK * desk),
        desk=min(int(ours * at_desk / DESCRIPTORS_EACH), desk),
        known=min(int(ours * at_known / DESCRIPTORS_EACH), known),
        wait_s=wait_s,
        desk_s=desk_s,
    )


class Room(Generic[Sitting]):
    """Seats of one kind, by holder and in order. For one thread."""

    def __init__(self, count: int) -> None:
        self._count, self._taken = count, 0
        self._held: dict[str, dict[Sitting, float]] = {}

    def sit(self, connection: Sitting, holder: str) -> None:
        """Gives `connection` a seat, whether there is one or not: see `is_over`."""
        self._held.setdefault(holder, {})[connection] = monotonic()
        self._taken += 1

    def leave(self, connection: Sitting, holder: str) -> None:
        """Frees the seat of `connection`, if it has one here."""
        held = self._held.get(holder, {})
        if held.pop(connection, None) is not None:
            self._taken -= 1
        if not held:
            self._held.pop(holder, None)

    def is_over(self) -> bool:
        """Returns whether there sit more than there are seats."""
        return self._taken > self._count

    def is_full(self) -> bool:
        """Returns whether all seats are taken."""
        return self._taken >= self._count

    def count(self, holder: str) -> int:
        """Returns how many seats `holder` has."""
        return len(self._held.get(holder, ()))

    def most(self) -> tuple[str, dict[Sitting, float]]:
        """Returns who holds most, with the connections in order and since when they sit."""
        return max(self._held.items(), key=lambda item: len(item[1]))
