"""The coordinator's half of the exchange over Flower: it pulls what sites have released.

One message per checkpoint lost uploads whenever a link broke, so a bundle comes in parts, each its
own message, asked for again until it is there. The bytes go into the same resumable upload as over
gRPC, and the same verification decides. Flower's word on who answered chooses whose bundles are
taken from whom; that a bundle is that site's is decided by its signatures alone.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # before anything can import flwr
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from ddm_fed.exchange.flower import (
    ANSWER,
    DATA,
    MAX_PART_BYTES,
    MIB,
    PART,
    missing_flower,
    require_flower,
)

try:  # before what takes seconds to import
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
    from flwr.serverapp import Grid, ServerApp
except ModuleNotFoundError:
    raise missing_flower() from None

from coordinator.inbox.flower_pull import Answer, Ask, Event, Talk, Visit
from coordinator.inbox.upload import Uploads
from coordinator.workspace import CoordinatorFolder
from ddm_fed.errors import ExchangeError, StateError
from ddm_fed.records import BundleState

POLL_S = 0.25
BACKOFF_S = (1.0, 2.0, 5.0, 10.0)
HOPELESS = {1: "cannot load the app", 2: "the app ended with an error", 7: "refuses the app"}
"""Flower's codes of errors that do not go away by waiting."""
HOPELESS_TRIES = 4


@dataclass(frozen=True)
class Pulling:
    """How to pull; every field is a key of the app's configuration.

    Attributes:
        coordinator: The coordinator's folder.
        min_nodes: Sites to wait for before it begins.
        wait_s: How long to wait for them.
        part_bytes: Most bytes of one message.
        answer_s: How long one message may take, both ways.
        timeout_s: How long a site may answer nothing before the run goes on without it.
        parallel: Parts under way at once; each is held in memory.
        couriers: Whether a node may bring bundles of another site than it is registered for.
    """

    coordinator: Path
    min_nodes: int = 1
    wait_s: float = 60
    part_bytes: int = 128 * MIB
    answer_s: float = 900
    timeout_s: float = 1800
    parallel: int = 4
    couriers: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.part_bytes <= MAX_PART_BYTES or min(self.parallel, self.min_nodes) < 1:
            raise StateError(
                f"`part-mib` has to be up to {MAX_PART_BYTES // MIB}, `parallel` and `min-nodes` "
                "at least 1",
                hint="correct [tool.flwr.app.config], or the value given with -c",
            )

    @classmethod
    def from_run(cls, context: Context) -> "Pulling":
        """Returns what the app's configuration asks for.

        Raises:
            StateError: it is not valid.
        """
        config = context.run_config
        try:
            return cls(
                coordinator=Path(str(config["coordinator"])),
                min_nodes=int(config["min-nodes"]),
                wait_s=float(config["wait-s"]),
                part_bytes=round(float(config["part-mib"]) * MIB),
                answer_s=float(config["answer-s"]),
                timeout_s=float(config["timeout-s"]),
                parallel=int(config["parallel"]),
                couriers=bool(config["couriers"]),
            )
        except (KeyError, ValueError) as error:
            raise StateError(
                f"the app's configuration is not complete: {error}",
                hint="compare [tool.flwr.app.config] with examples/flower/app/pyproject.toml",
            ) from None


@dataclass(frozen=True)
class Node:
    """A SuperNode that is online.

    Attributes:
        node_id: Flower's number for it.
        name: The name the coordinator registered its key under; empty if it has no key.
    """

    node_id: int
    name: str


def make_app(pulling: Pulling | None = None) -> ServerApp:
    """Returns the app that a SuperLink, or Flower's simulation, runs.

    Args:
        pulling: How to pull; by default the configuration of the run says it.

    Raises:
        StateError: the installed Flower is not the tested one.
    """
    require_flower()
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        pull(grid, pulling or Pulling.from_run(context))

    return app


def pull(grid: Grid, pulling: Pulling) -> list[Event]:
    """Visits every site that is online; returns what became of each bundle.

    Every event is printed to stdout as a line of JSON.

    Raises:
        ExchangeError: a bundle was refused or a site not reached; all others are done.
    """
    home = CoordinatorFolder.open(pulling.coordinator)
    events: list[Event] = []

    def report(event: Event) -> None:
        moment = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        facts = {"from": event.carrier, "at": moment, "state": event.state, **event.facts}
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()
        if event.state is not None:
            events.append(event)

    uploads = Uploads(home)
    uploads.expire()
    try:
        conversations = []
        for node in _nodes(grid, pulling):
            carrier = f"flower:{node.name or node.node_id}"
            site = None if pulling.couriers else node.name
            visit = Visit(home, uploads, carrier, site, pulling.part_bytes, report)
            conversations.append(_Conversation(grid, node, visit, pulling))
        _hold(grid, conversations, pulling.parallel)
    finally:
        uploads.close()
    wrong = [event for event in events if event.state is None or not event.state.is_settled]
    if wrong:
        names = ", ".join(sorted({event.carrier for event in wrong}))
        raise ExchangeError(
            f"{len(wrong)} of {len(events)} did not end well: {names}",
            hint="the lines above say why; run it again once that is put right: what was admitted "
            "stays, and what arrived in part is kept",
        )
    return events


def _nodes(grid: Grid, pulling: Pulling) -> list[Node]:
    """Returns who is online, by name, once there are enough.

    Raises:
        ExchangeError: there are not.
    """
    until = monotonic() + pulling.wait_s
    while True:
        found = [Node(info.node_id, info.name) for info in grid.get_nodes()]
        if len(found) >= pulling.min_nodes:
            return sorted(found, key=lambda node: (node.name, node.node_id))
        if monotonic() > until:
            raise ExchangeError(
                f"{len(found)} SuperNodes are online, {pulling.min_nodes} were waited for",
                hint="`flwr supernode ls` shows who is registered and who is offline",
            )
        sleep(1)


def _hold(grid: Grid, conversations: Sequence["_Conversation"], parallel: int) -> None:
    """Carries questions and answers until every conversation has ended."""
    for one in conversations:
        one.resume(None)
    while going := [one for one in conversations if one.ask is not None]:
        under_way = {one.message_id: one for one in going if one.message_id is not None}
        for one in _next(going, parallel):
            one.send()
        replies = list(grid.pull_messages(list(under_way))) if under_way else []
        started = monotonic()
        for reply in replies:
            asked = under_way.get(reply.metadata.reply_to_message_id)
            if asked is not None:
                asked.receive(reply)
        busy = monotonic() - started  # admitting a bundle takes time, and is no fault of the others
        for one in going:
            one.excuse(busy)
            one.give_up_late()
        sleep(POLL_S)


def _next(going: Sequence["_Conversation"], parallel: int) -> list["_Conversation"]:
    """Returns whose questions are sent now.

    Questions for parts are limited, since their answers take memory. Whoever waited longest is
    first, and sites that failed to answer leave half of the places to the others.
    """
    due = sorted((one for one in going if one.is_due()), key=lambda one: one.turn)
    free = parallel - sum(one.is_asked_for_a_part() for one in going if one.message_id is not None)
    chosen = []
    for one in due:
        if one.is_asked_for_a_part():
            if free <= (parallel // 2 if one.has_failed else 0):
                continue
            free -= 1
        chosen.append(one)
    return chosen


class _Conversation:
    """A visit in progress: at most one message under way, sent again until it is answered."""

    def __init__(self, grid: Grid, node: Node, visit: Visit, pulling: Pulling) -> None:
        self.ask: Ask | None = None
        self.message_id: str | None = None
        self._grid, self._node, self._visit, self._pulling = grid, node, visit, pulling
        self._talk: Talk = visit.talk()
        self.sent_at = 0.0
        self._failed = self._hopeless = 0
        self._due = 0.0
        self._silent_since: float | None = None  # first sending of a question without an answer

    @property
    def has_failed(self) -> bool:
        """Whether its last question was not answered."""
        return self._failed > 0

    @property
    def turn(self) -> tuple[bool, float]:
        """What decides who is next."""
        return self.has_failed, self.sent_at

    def is_asked_for_a_part(self) -> bool:
        """Returns whether the answer may be large."""
        return self.ask is not None and self.ask.action == PART

    def is_due(self) -> bool:
        """Returns whether its question may be sent now."""
        return self.message_id is None and monotonic() >= self._due

    def excuse(self, seconds: float) -> None:
        """Does not count time in which nobody listened."""
        self.sent_at += seconds
        if self._silent_since is not None:
            self._silent_since += seconds

    def resume(self, answer: Answer | None) -> None:
        """Lets the visit go on to its next question."""
        try:
            self.ask = self._talk.send(answer)
        except StopIteration:
            self.ask = None

    def send(self) -> None:
        """Sends its question, for the first time or again."""
        if self.ask is None:
            return
        message = Message(
            _content(self.ask),
            dst_node_id=self._node.node_id,
            message_type=f"query.{self.ask.action}",
            ttl=self._pulling.answer_s,
        )
        (message_id,) = [*self._grid.push_messages([message]), None][:1]
        self.message_id, self.sent_at = message_id or None, monotonic()
        self._silent_since = self._silent_since or self.sent_at
        if self.message_id is None:  # the SuperLink does not know the node any longer
            self._fail()

    def receive(self, reply: Message) -> None:
        """Takes the reply to its question, or Flower's word that there will be none."""
        self.message_id = None
        if reply.has_error():
            why = HOPELESS.get(reply.error.code)
            self._hopeless += why is not None
            if why is not None and self._hopeless >= HOPELESS_TRIES:
                self._end(
                    BundleState.FAILED, f"the SuperNode {why} (Flower's code {reply.error.code})"
                )
            else:
                self._fail()
            return
        self._failed = self._hopeless = 0
        self._silent_since = None
        self.resume(_answer(reply.content))

    def give_up_late(self) -> None:
        """Stops waiting for an answer that is late, and for a site that has long been silent."""
        if self.ask is None or self._silent_since is None:
            return
        silent = monotonic() - self._silent_since
        if silent > self._pulling.timeout_s:
            self._end(BundleState.UNREACHABLE, f"nothing was heard for {silent:.0f} s")
        elif self.message_id is not None and monotonic() - self.sent_at > self._pulling.answer_s:
            self.message_id = None
            self._fail()

    def _fail(self) -> None:
        self._due = monotonic() + BACKOFF_S[min(self._failed, len(BACKOFF_S) - 1)]
        self._failed += 1
        self.resume(None)

    def _end(self, state: BundleState, message: str) -> None:
        self._talk.close()
        self.ask = self.message_id = None
        hint = "what arrived is kept; look at the SuperNode there, then run this again"
        facts = {"code": ExchangeError.code, "message": message, "hint": hint}
        self._visit.report(Event(self._visit.carrier, state, facts))


def _content(ask: Ask) -> RecordDict:
    content = RecordDict({ask.action: ConfigRecord(dict(ask.facts))})
    if ask.data:
        arrays = {
            name: Array(dtype="uint8", shape=(len(data),), stype="ddm.bytes", data=data)
            for name, data in ask.data.items()
        }
        content[DATA] = ArrayRecord(arrays)
    return content


def _answer(content: RecordDict) -> Answer:
    facts = content.config_records.get(ANSWER)
    data = content.array_records.get(DATA)
    return Answer(
        dict(facts) if facts is not None else {},
        {name: array.data for name, array in _items(data)},
    )


def _items(record: ArrayRecord | None) -> Iterable[tuple[str, Array]]:
    return record.items() if record is not None else ()
