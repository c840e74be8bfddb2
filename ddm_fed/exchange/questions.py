"""What a sampler asks an expert that stays at its site, and the answer: as bytes, and checked.

A question is its own name: its id is the SHA-256 of all it says. So there is no id that stands for
two questions, and a question that is asked again is known.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddm_fed.errors import DigestError, SizeError, ValuesError
from ddm_fed.exchange.v1 import exchange_pb2 as messages
from ddm_fed.records import DataSpec, Plan

FLOAT, CLASS = np.dtype("<f4"), np.dtype("<i8")
NO_CLASS = -1
# Root mean square of one image, in units of the plan's bound: states on a way to an image stay
# near 1, and what lies far from every image would only be asked to learn about the weights.
MAX_STATE, MAX_ANSWER = 4.0, 10_000.0
OVERHEAD_BYTES = 64 << 10
_HINT = "another program asked, or one of another version: compare versions"
_ANSWER_HINT = "tell the site's people: its expert does not answer as its manifest says"


@dataclass(frozen=True)
class Question:
    """States whose velocity is asked for.

    Attributes:
        id: SHA-256 of the expert, states, times and classes.
        states: `(B, C, H, W)` float32.
        times: `(B,)` float32.
        classes: `(B,)` int64, or None where no class is asked for.
    """

    id: str
    states: NDArray[np.float32]
    times: NDArray[np.float32]
    classes: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.states)


def most_bytes(plan: Plan) -> int:
    """Returns the length of the longest message of a plan with `expert.remote`."""
    remote = plan.expert.remote
    each = math.prod(plan.data.shape) * FLOAT.itemsize + FLOAT.itemsize + CLASS.itemsize
    return OVERHEAD_BYTES + each * (0 if remote is None else remote.batch_size)


def write_question(
    expert_sha256: str,
    states: NDArray[np.float32],
    times: NDArray[np.float32],
    classes: NDArray[np.int64] | None,
) -> messages.EvaluateRequest:
    """Returns a question as it travels; arguments as in `Question`."""
    return messages.EvaluateRequest(
        expert_sha256=expert_sha256,
        states=states.astype(FLOAT, copy=False).tobytes(),
        times=times.astype(FLOAT, copy=False).tobytes(),
        classes=b"" if classes is None else classes.astype(CLASS, copy=False).tobytes(),
    )


def read_question(
    request: messages.EvaluateRequest, data: DataSpec, *, at_once: int, largest_time: float
) -> Question:
    """Returns the question in a message, whose length was bounded before it came.

    Args:
        request: The message.
        data: What images are.
        at_once: The most images of one question.
        largest_time: The largest time at which the expert may be asked.

    Raises:
        SizeError: it is about no image or too many, or its parts do not fit each other.
        ValuesError: a value is not finite, or outside of what a sampler can ask.
    """
    count, rest = divmod(len(request.times), FLOAT.itemsize)
    if rest or not 1 <= count <= at_once:
        raise SizeError(
            f"a question is about {count} images, the plan allows 1 to {at_once}",
            hint="ask about fewer at once: `expert.remote.batch_size` of the plan",
        )
    shape = (count, *data.shape)
    sizes = (len(request.states), len(request.classes))
    if sizes[0] != math.prod(shape) * FLOAT.itemsize or sizes[1] not in (0, count * CLASS.itemsize):
        raise SizeError(
            f"a question about {count} images has {sizes[0]} bytes of states and {sizes[1]} of "
            "classes",
            hint=_HINT,
        )
    states = np.frombuffer(request.states, FLOAT).reshape(shape)
    times = np.frombuffer(request.times, FLOAT)
    classes = np.frombuffer(request.classes, CLASS) if request.classes else None
    if not (times > 0).all() or not (times <= np.float32(largest_time)).all():
        raise ValuesError(
            f"a question names a time that is not above 0 and at most {largest_time:g}", hint=_HINT
        )
    _require_bounded(states, data, MAX_STATE, "a state of a question", _HINT)
    if classes is not None and not ((classes >= NO_CLASS) & (classes < len(data.classes))).all():
        raise ValuesError("a question names a class that the plan does not have", hint=_HINT)
    return Question(_id_of(request), states, times, classes)


def _id_of(request: messages.EvaluateRequest) -> str:
    digest = hashlib.sha256()
    for part in (
        request.expert_sha256.encode(),
        request.states,
        request.times,
        request.classes,
    ):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def read_answer(
    response: messages.EvaluateResponse, expert_sha256: str, data: DataSpec, count: int
) -> NDArray[np.float32]:
    """Returns the velocities in an answer, `(count, C, H, W)`.

    Raises:
        DigestError: another expert answered than the one that was asked.
        SizeError: it is of another length.
        ValuesError: a value is not finite, or no velocity.
    """
    if response.expert_sha256 != expert_sha256:
        raise DigestError(
            f"the expert {response.expert_sha256[:16]!r} answered, asked was {expert_sha256[:16]}",
            hint=_ANSWER_HINT,
        )
    shape = (count, *data.shape)
    if len(response.velocities) != math.prod(shape) * FLOAT.itemsize:
        raise SizeError(
            f"an answer about {count} images has {len(response.velocities)} bytes",
            hint=_ANSWER_HINT,
        )
    velocities = np.frombuffer(response.velocities, FLOAT).reshape(shape)
    _require_bounded(velocities, data, MAX_ANSWER, "a velocity of an answer", _ANSWER_HINT)
    return velocities


def _require_bounded(
    values: NDArray[np.float32], data: DataSpec, most: float, what: str, hint: str
) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        sizes = np.sqrt(np.square(values, dtype=np.float64).mean(axis=(1, 2, 3)))
    largest = most * max(1.0, float(data.bound))
    if not (sizes <= largest).all():  # also where it is not a number
        raise ValuesError(
            f"{what} is not finite, or has a root mean square above {largest:g}", hint=hint
        )
