"""The proof that a private training takes the steps its ledger says: some are computed again.

A step is computed again by another way from its first bit to its last: the stream of the secret by
a ChaCha20 of its own, one unit at a time, in float64, by plain back-propagation, with the noise,
the number and the clip norm that the ledger entry and the plan state, and AdamW written out. Then
the gradient that reached the optimizer, the weights and their averages are compared with what the
training has made of them. The first step of every process, the last one and some that nobody can
foresee are computed again; that every step is taken once, and in its turn, and leaves what is not
trained as it was, is seen at all of them.

What is found depends on private images: it stays at the site. That the proof held is a fact of the
program, which stops otherwise.
"""

import hashlib
import hmac
import json
import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddm_fed.errors import MechanismError
from ddm_fed.privacy.dpsgd import Weights
from ddm_fed.privacy.update import NoisyUpdate, UpdateRule
from ddm_fed.records import SampledGaussianEvent

Floats = NDArray[np.float64]
Words = NDArray[np.uint32]
SlowGradient = Callable[[Weights, int, int], Mapping[str, Tensor]]
"""`(weights, step, unit) -> gradient`: of the mean loss of one unit, alone, in float64.

Weights that are left out have none."""

FEWEST_AT_RANDOM, ONE_IN = 2, 1000
# Float32 sums of clipped gradients were off by 1e-6 of the noise at most; noise that is rounded to
# bfloat16 is off by up to 1e-2.
OF_NOISE = 1e-3  # of the noise's standard deviation
OF_SUM = 1e-4  # of the clipped sum, as the tests of sensitivity allow
OF_RATE = 1e-4  # of a learning rate, by which AdamW moves a weight at most
FLOAT32 = 4e-7  # of a value: how float32 rounds, a few times
ROUNDED = 2.0**-24  # of a value: how float32 rounds at most, once
DEVIATIONS = 8.0  # of a sum of such roundings
OF_CHANGE = 0.05  # of the step that an average takes over


@dataclass(frozen=True)
class Claim:
    """What everybody is told of a training's steps; a proof believes nothing else.

    Attributes:
        event: Sampling rate and noise, as the ledger has them.
        expected_units: What sums are divided by, as the manifest will have it.
        rule: Clip norms and what becomes of a noisy mean, from the plan; not that of the training.
    """

    event: SampledGaussianEvent
    expected_units: float
    rule: UpdateRule


@dataclass(frozen=True)
class ProvedSteps:
    """Which steps were computed again, and how far off they were; private.

    Attributes:
        steps: In their order.
        largest: The largest deviation, in what is allowed of its kind.
        still: Digest of the weights that are not trained, since the first step.
    """

    steps: tuple[int, ...] = ()
    largest: float = 0.0
    still: str = ""

    def to_json(self) -> str:
        """Returns it as the checkpoint keeps it."""
        return json.dumps({"steps": self.steps, "largest": self.largest, "still": self.still})

    @classmethod
    def from_json(cls, text: str) -> "ProvedSteps":
        """Returns what `to_json` wrote; "" is no step."""
        if not text:
            return cls()
        found = json.loads(text)
        # earlier versions kept no digest: the rest of such a training is held against its own
        return cls(tuple(found["steps"]), float(found["largest"]), str(found.get("still", "")))


class ProvedUpdate:
    """Takes the steps of an update in their turn, and computes some of them again.

    Args:
        update: What trains.
        claim: What is told of it.
        secret: 32 bytes, from where the secret is kept and not from `update`.
        slow: The gradient of one unit.
        first: The step that is next.
        steps: Of the whole training.
        before: What was proved by earlier processes of the same training.
    """

    def __init__(
        self,
        update: NoisyUpdate,
        claim: Claim,
        secret: bytes,
        slow: SlowGradient,
        *,
        first: int,
        steps: int,
        before: ProvedSteps | None = None,
    ) -> None:
        self._update, self._claim, self._secret, self._slow = update, claim, secret, slow
        self._next, self._steps = first, steps
        self.chosen = chosen_steps(first, steps)
        self.proved = before or ProvedSteps()
        self._left: bytes | None = None

    def take(self, step: int) -> float:
        """Takes one step and returns the sum of its losses, which is private.

        Raises:
            MechanismError: the step is not the next one, or is not what the ledger says.
        """
        if step != self._next:
            raise _broken(f"step {step} is taken where step {self._next} is due")
        self._next += 1
        self._require_untouched()
        still = self.proved.still or _still(self._update)
        self.proved = replace(self.proved, still=still)
        if step not in self.chosen:
            loss = self._update.take(step)
            self._left = _fingerprint(self._update)
            return loss
        state = _State.of(self._update)
        loss = self._update.take(step)
        self._left = _fingerprint(self._update)
        if _still(self._update) != still:
            raise _broken(f"step {step} changed weights that are not trained")
        found = self._again(state, step)
        for what, off in found.items():  # the cause comes before what follows from it
            if not off <= 1:
                raise _broken(f"step {step} is not what its ledger entry says: {what}")
        largest = max(self.proved.largest, *found.values())
        self.proved = ProvedSteps((*self.proved.steps, step), largest, still)
        return loss

    def require_complete(self) -> None:
        """Refuses a training that ended before its last step was taken and computed again.

        Raises:
            MechanismError: it did, so that something else than the plan decided when it ends.
        """
        self._require_untouched()
        if self._next != self._steps or self.proved.steps[-1:] != (self._steps - 1,):
            raise _broken(f"the training ended after step {self._next} of {self._steps}")

    def _require_untouched(self) -> None:
        """Refuses weights, averages or a memory that something else than a step has changed."""
        if self._left is not None and self._left != _fingerprint(self._update):
            raise _broken(f"weights were changed by something else than a step after {self._next}")
        if self.proved.still not in ("", _still(self._update)):
            raise _broken(f"weights that are not trained were changed before step {self._next}")

    def _again(self, state: "_State", step: int) -> dict[str, float]:
        """Returns how far off everything is that the step changed; 1 is what is allowed."""
        rule, update = self._claim.rule, self._update
        gradient, allowed = noisy_mean_again(
            self._claim,
            self._secret,
            step,
            units=len(update.units),
            clip_norm=rule.clip_norm(step),
            weights=state.weights,
            slow=self._slow,
        )
        if rule.largest_norm is not None:
            norm = math.sqrt(sum(float(value.square().sum()) for value in gradient.values()))
            factor = min(1.0, rule.largest_norm / (norm + 1e-6))
            gradient = {name: factor * value for name, value in gradient.items()}
            allowed = {name: factor * value for name, value in allowed.items()}
        return state.compare(_State.of(update), gradient, allowed, rule, step)


def noisy_mean_again(
    claim: Claim,
    secret: bytes,
    step: int,
    *,
    units: int,
    clip_norm: float,
    weights: Weights,
    slow: SlowGradient,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the private mean of `step` by the slow way, and how far another one may be from it.

    Args:
        claim: What everybody is told of the step.
        secret: 32 bytes.
        step: Which one.
        units: How many there are; private.
        clip_norm: C.
        weights: Before the step, in float64.
        slow: The gradient of one unit.
    """
    rate, scale = float(claim.event.sampling_rate), float(claim.event.noise_multiplier) * clip_norm
    total = {name: torch.zeros_like(value) for name, value in weights.items()}
    for unit in np.flatnonzero(keyed_uniform(secret, "inclusion", step, units) < rate):
        gradient = slow(weights, step, int(unit))
        norm = math.sqrt(sum(float(value.square().sum()) for value in gradient.values()))
        if not math.isfinite(norm):
            continue  # a unit that is not finite counts as nothing
        factor = min(1.0, clip_norm / max(norm, 1e-12))
        for name, value in gradient.items():
            total[name] += factor * value.to(total[name].device)
    noise = keyed_normal(secret, step, {name: value.numel() for name, value in total.items()})
    mean, allowed = {}, {}
    for name, value in total.items():
        drawn = torch.from_numpy(noise[name]).view(value.shape).to(value.device)
        mean[name] = (value + scale * drawn) / claim.expected_units
        allowed[name] = (OF_NOISE * scale + OF_SUM * value.abs()) / claim.expected_units
    return mean, allowed


def require_proved(found: Weights, expected: Weights, allowed: Weights, what: str) -> float:
    """Returns how far `found` is from `expected`, in what is allowed.

    Raises:
        MechanismError: farther than that.
    """
    worst = max(_ratio(found[n].double() - expected[n], allowed[n]) for n in expected)
    if not worst <= 1:
        raise _broken(f"{what} is not what its ledger entry says")
    return worst


@dataclass(frozen=True)
class _State:
    """Weights, what AdamW remembers, and averages; all in float64."""

    weights: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    counted: dict[str, float]
    averages: dict[int, dict[str, Tensor]]

    @classmethod
    def of(cls, update: NoisyUpdate) -> "_State":
        weights = {name: value.detach().double() for name, value in update.trained.items()}
        first, second, counted = {}, {}, {}
        for name, value in update.trained.items():
            kept = update.optimizer.state.get(value, {})
            first[name], second[name] = (
                kept[slot].double() if slot in kept else torch.zeros_like(weights[name])
                for slot in ("exp_avg", "exp_avg_sq")
            )
            counted[name] = float(kept["step"]) if "step" in kept else 0.0
        of = {} if update.averages is None else update.averages.of
        averages = {
            half_life: {name: average[name].double() for name in weights}
            for half_life, average in of.items()
        }
        return cls(weights, first, second, counted, averages)

    def compare(
        self,
        after: "_State",
        gradient: Mapping[str, Tensor],
        allowed: Mapping[str, Tensor],
        rule: UpdateRule,
        step: int,
    ) -> dict[str, float]:
        """Returns how far `after` is from a step of AdamW along `gradient`; 1 is allowed."""
        (one, two), rate = rule.betas, rule.learning_rate(step)
        found = {"the number of steps taken": 0.0, "the gradient": 0.0, "its square": 0.0}
        found["the weights"] = 0.0
        for name, g in gradient.items():
            if after.counted[name] != step + 1:
                found["the number of steps taken"] = math.inf
            first = one * self.first[name] + (1 - one) * g
            second = two * self.second[name] + (1 - two) * g.square()
            slack = allowed[name]
            much = (1 - one) * slack + FLOAT32 * first.abs()
            off = (
                ("the gradient", after.first[name] - first, much),
                (
                    "its square",
                    after.second[name] - second,
                    (1 - two) * (2 * g.abs() + slack) * slack + FLOAT32 * second,
                ),
                ("the weights", *self._moved(after, name, rule, rate, step)),
            )
            for what, difference, limit in off:
                found[what] = max(found[what], _ratio(difference, limit))
        if set(after.averages) != set(rule.survives):
            found["the averages that are kept"] = math.inf
            return found
        for half_life, survives in rule.survives.items():
            what = f"the average of half-life {half_life}"
            found[what] = self._averaged(after, half_life, 1 - survives(step))
        return found

    def _moved(
        self, after: "_State", name: str, rule: UpdateRule, rate: float, step: int
    ) -> tuple[Tensor, Tensor]:
        """Returns how far a weight is from where AdamW's memory sends it, and what is allowed."""
        (one, two), before = rule.betas, self.weights[name]
        root = (after.second[name] / (1 - two ** (step + 1))).sqrt() + rule.eps
        along = after.first[name] / (1 - one ** (step + 1)) / root
        expected = before * (1 - rate * rule.weight_decay) - rate * along
        return after.weights[name] - expected, _weight_slack(rate, along, before)

    def _averaged(self, after: "_State", half_life: int, taken: float) -> float:
        """Returns how far an average is from taking over the new weights: each, and on the whole.

        Late in a training an average moves by less than float32 rounds a single weight; all of them
        together still tell whose weights it took, as far as rounding lets them: at the very end of
        a long training a step is shorter than that, and whatever weights were taken are the same.
        """
        worst, along, moved = 0.0, 0.0, 0.0
        scattered, leaning = 0.0, 0.0
        for name, average in self.averages[half_life].items():
            new = after.weights[name]
            expected = average + taken * (new - average)
            difference = after.averages[half_life][name] - expected
            step = taken * (new - self.weights[name])
            size = average.abs() + new.abs()
            limit = OF_CHANGE * step.abs().mean() + FLOAT32 * size
            worst = max(worst, _ratio(difference, limit))
            along += float((difference * step).sum())
            moved += float(step.square().sum())
            # rounding of single weights, each for itself, and of the factor by which all move
            scattered += float((ROUNDED * size * step).square().sum())
            leaning += FLOAT32 * taken * float(((new - average) * step).abs().sum())
        most = OF_CHANGE * moved + DEVIATIONS * math.sqrt(scattered) + leaning
        return max(worst, abs(along) / most if most > 0 else 0.0)


def _fingerprint(update: NoisyUpdate) -> bytes:
    """Returns what tells whether anything that a step changes has been changed."""
    digest = hashlib.blake2b()
    kept = [update.optimizer.state.get(value, {}) for value in update.trained.values()]
    of = {} if update.averages is None else update.averages.of
    tensors = [
        *update.trained.values(),
        *(state[slot] for state in kept for slot in ("exp_avg", "exp_avg_sq") if slot in state),
        *(average[name] for average in of.values() for name in update.trained),
    ]
    for value in tensors:
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()


def _still(update: NoisyUpdate) -> str:
    """Returns what tells whether weights have changed that averages hold and no step trains."""
    digest = hashlib.blake2b()
    of = {} if update.averages is None else update.averages.of
    for average in list(of.values())[:1]:  # the same in each
        for name in sorted(average.keys() - update.trained.keys()):
            digest.update(average[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _weight_slack(rate: float, along: Tensor, before: Tensor) -> Tensor:
    return OF_RATE * rate * (1 + along.abs()) + FLOAT32 * before.abs()


def _ratio(difference: Tensor, limit: Tensor) -> float:
    ratio = difference.abs() / limit.abs().clamp(min=1e-30)
    return float(torch.nan_to_num(ratio, nan=math.inf).max())


def _broken(what: str) -> MechanismError:
    return MechanismError(
        f"private training does not keep its promise: {what}",
        hint="nothing of this training may leave, and what it cost stays spent; please report it "
        "with the versions of ddm-fed and torch, and train with another version",
    )


def chosen_steps(first: int, steps: int) -> frozenset[int]:
    """Returns the steps from `first` on that are computed again: nobody can foresee all of them."""
    left = range(first, steps)
    if not left:
        return frozenset()
    at_random = min(len(left), FEWEST_AT_RANDOM + len(left) // ONE_IN)
    return frozenset({first, steps - 1, *secrets.SystemRandom().sample(left, at_random)})


def keyed_uniform(secret: bytes, purpose: str, step: int, count: int) -> Floats:
    """Returns the numbers in [0, 1) that the secret has for `purpose` in `step`, `(count,)`."""
    key = hmac.new(secret, f"{purpose}/{step}".encode(), hashlib.sha256).digest()
    words = chacha20(key, 2 * count).astype(np.uint64)
    whole = (words[0::2] | words[1::2] << np.uint64(32)) >> np.uint64(11)
    return whole.astype(np.float64) * 2.0**-53


def keyed_normal(secret: bytes, step: int, sizes: Mapping[str, int]) -> dict[str, Floats]:
    """Returns the standard normal numbers of `step` for each tensor of so many values.

    Source: Box and Muller 1958: the first half of a tensor's uniform numbers gives radii, the
    second half angles.
    """
    halves = {name: (count + 1) // 2 for name, count in sizes.items()}
    uniform = keyed_uniform(secret, "noise", step, 2 * sum(halves.values()))
    found, at = {}, 0
    for name, half in halves.items():
        radius = np.sqrt(-2 * np.log1p(-uniform[at : at + half]))
        angle = 2 * math.pi * uniform[at + half : at + 2 * half]
        both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        found[name] = both[: sizes[name]]
        at += 2 * half
    return found


def chacha20(key: bytes, count: int) -> Words:
    """Returns the first `count` words of the ChaCha20 stream of `key`, nonce and counter zero.

    Source: RFC 8439, section 2.3, with a counter of 64 bits as in Bernstein's original.
    """
    blocks = (count + 15) // 16
    start = np.zeros((16, blocks), dtype=np.uint32)
    start[:4] = np.frombuffer(b"expand 32-byte k", dtype="<u4")[:, None]
    start[4:12] = np.frombuffer(key, dtype="<u4")[:, None]
    counter = np.arange(blocks, dtype=np.uint64)
    start[12], start[13] = counter & np.uint64(0xFFFFFFFF), counter >> np.uint64(32)
    x = start.copy()
    for _ in range(10):
        for a, b, c, d in _COLUMNS + _DIAGONALS:
            quarter = zip((a, c, a, c), (b, d, b, d), (d, b, d, b), TURNS, strict=True)
            for left, right, other, turn in quarter:
                x[left] += x[right]
                mixed = x[other] ^ x[left]
                x[other] = mixed << np.uint32(turn) | mixed >> np.uint32(32 - turn)
    x += start
    return x.T.reshape(-1)[:count]


TURNS = (16, 12, 8, 7)
_COLUMNS = tuple((i, 4 + i, 8 + i, 12 + i) for i in range(4))
_DIAGONALS = tuple((i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4) for i in range(4))
