"""A first plan from the answers to five questions, with a comment at every line that is a guess.

Only public numbers come in: nothing here may see an image, or a count of them.
"""

import json
import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from ddm_fed.mixture import mixture_rule
from ddm_fed.models import ACCELERATORS, network_cost
from ddm_fed.models.machines import BACKWARD, UTILISATION
from ddm_fed.records import TextSpec
from ddm_fed.records.router import MOST_NUMBERS

CPU = "cpu"
MACHINES = (CPU, *ACCELERATORS)
CPU_FLOPS = 5e10  # that two cores may keep up in float32; `ddm-site doctor` measures it
VALID_DAYS = 365
ROUTER_EPSILON = 2  # of the router's statistics, where experts are trained without noise
LEAST_DELTA_POWER, FAILURES = 5, Decimal("0.1")
SMALL_SIDE, MEDIUM_SIDE = 32, 64


@dataclass(frozen=True)
class NetworkSize:
    """A size of network, and for how long it is worth training.

    Attributes:
        name: As in `DiT-NAME/PATCH`.
        steps: Fewest that a network of that size is worth; ten times as many are the most.
        learning_rate: Of AdamW.
        batch_size: Images of a step.
    """

    name: str
    steps: int
    learning_rate: str
    batch_size: int


# rates and steps as docs/plan.md advises
SIZES = (
    NetworkSize("Nano", 1_000, "0.002", 128),
    NetworkSize("Micro", 4_000, "0.001", 128),
    NetworkSize("S", 20_000, "0.0003", 128),
    NetworkSize("B", 50_000, "0.0002", 256),
    NetworkSize("L", 100_000, "0.0001", 256),
    NetworkSize("XL", 200_000, "0.0001", 256),
)


@dataclass(frozen=True)
class Answers:
    """What people said.

    Attributes:
        federation: Its name.
        height: Of an image, in pixels.
        width: The same.
        channels: 1 or 3.
        classes: Their names; none where there are no classes.
        text: The text encoder of captions; None where there are none.
        sites: How many take part.
        epsilon: That bounds all that leaves a site; None trains experts without noise.
        machine: Of a site: `cpu`, or a key of `ACCELERATORS`.
        hours: That a training may take there.
        units: A public guess of the images (or patients) of a site.
    """

    federation: str
    height: int
    width: int
    channels: int
    classes: tuple[str, ...]
    text: TextSpec | None
    sites: int
    epsilon: Decimal | None
    machine: str
    hours: float
    units: int

    @property
    def rounded_units(self) -> int:
        """The guess to one digit: an exact count typed by mistake is not published."""
        power = int(10 ** (len(str(self.units)) - 1))
        return max(1, round(self.units / power)) * power


@dataclass(frozen=True)
class _Training:
    """The network and its steps, and why."""

    architecture: str
    steps: int
    batch_size: int
    learning_rate: str
    why: str


def draft_plan(answers: Answers, moment: datetime) -> str:
    """Returns a plan.toml for `answers`, with comments; the plan holds for a year from `moment`."""
    private = answers.epsilon is not None
    training = _mixture_alone() if private and answers.text is None else _network(answers)
    ends = (moment + timedelta(days=VALID_DAYS)).replace(hour=0, minute=0, second=0)
    parts = [
        "# A first plan, made of the answers to five questions. It is a proposal until the",
        "# coordinator signs it (`ddm-coord publish`). docs/plan.md explains every key.",
        f"# For {answers.sites} sites. `ddm-coord plan show` says what it costs, and `ddm-site",
        "# doctor --plan plan.toml --data …` measures at a site how long it takes.",
        f"federation = {json.dumps(answers.federation)}",
        f"expires_at = {ends:%Y-%m-%dT%H:%M:%SZ}  # nothing is trained or admitted after it",
        "",
        *_data(answers),
        "",
        "[expert]",
        f"architecture = {json.dumps(training.architecture)}  # {training.why}",
        "",
        *_training(training),
        "",
        *_router(answers),
        "",
        *_privacy(answers, training),
        "",
    ]
    return "\n".join(parts)


def _data(answers: Answers) -> list[str]:
    lines = [
        "[data]",
        f"channels = {answers.channels}",
        f"height = {answers.height}",
        f"width = {answers.width}",
    ]
    if max(answers.height, answers.width) > 2 * MEDIUM_SIDE:
        lines.append("# large images train much faster as latents: `ddm-coord autoencoder show`")
    if answers.classes:
        names = ", ".join(json.dumps(name, ensure_ascii=False) for name in answers.classes)
        lines += ['conditioning = "class"', f"classes = [{names}]  # public, in this order"]
    if answers.text is not None:
        lines += ['conditioning = "text"', "", "[data.text]  # every site needs this very encoder"]
        lines += [
            f"{key} = {json.dumps(value)}" for key, value in answers.text.model_dump().items()
        ]
    return lines


def _mixture_alone() -> _Training:
    why = "no network: the release of the router is the expert, which costs no more epsilon"
    return _Training("mixture", 1, 1, "0.001", why)


def _network(answers: Answers) -> _Training:
    """Returns the largest network that gets its steps within the time, and how many it gets."""
    largest = max(answers.height, answers.width)
    patch = 2 if largest <= SMALL_SIDE else 4 if largest <= MEDIUM_SIDE else 8
    while answers.height % patch or answers.width % patch:
        patch //= 2
    if answers.epsilon is not None:  # with noise, few steps that see much of the data
        batch, why = max(1, answers.rounded_units // 4), "small: every weight gets noise"
        return _Training(f"DiT-Nano/{patch}", 500, batch, "0.002", why)
    shape = (answers.channels, answers.height, answers.width)

    def step_flops(size: NetworkSize) -> int:
        name = f"DiT-{size.name}/{patch}"
        cost = network_cost(name, shape, len(answers.classes), answers.text)
        return BACKWARD * cost.flops_per_image * size.batch_size

    speed = _speed(answers.machine)
    flops, size = 3600 * answers.hours * speed, SIZES[0]
    of_step = step_flops(size)
    for larger in SIZES[1:]:
        of_larger = step_flops(larger)
        if flops < larger.steps * of_larger:
            break
        size, of_step = larger, of_larger
    steps = _rounded(max(100, min(int(flops / of_step), 10 * size.steps)))
    hours = steps * of_step / speed / 3600
    why = f"by arithmetic {hours:.2g} hours on one {answers.machine} of a site"
    return _Training(f"DiT-{size.name}/{patch}", steps, size.batch_size, size.learning_rate, why)


def _speed(machine: str) -> float:
    """Returns the operations a second that a machine keeps up in training."""
    return CPU_FLOPS if machine == CPU else UTILISATION * ACCELERATORS[machine].flops


def _rounded(steps: int) -> int:
    """Returns a number of steps with two digits."""
    power = int(10 ** max(0, len(str(steps)) - 2))
    return steps // power * power


def _training(training: _Training) -> list[str]:
    half_life = max(1, round(0.07 * training.steps))
    return [
        "[training]"
        if training.steps > 1
        else "[training]  # for networks, of which there is none",
        f"steps = {training.steps}",
        f"batch_size = {training.batch_size}",
        f"learning_rate = {training.learning_rate}",
        f"warmup_steps = {min(100, training.steps // 10)}",
        f"ema_half_lives = [{half_life}]",
    ]


def _router(answers: Answers) -> list[str]:
    epsilon = _router_epsilon(answers)
    pixels, channels = answers.height * answers.width, answers.channels
    found = mixture_rule(
        float(epsilon),
        float(_delta(answers)),
        answers.rounded_units,
        len(answers.classes),
        channels,
        sites=answers.sites,
        pixels=pixels,
    )
    frequencies, components = found.frequencies, found.components
    cells = max(1, len(answers.classes)) * components
    while frequencies > 1 and cells * (frequencies * channels + 1) ** 2 / 2 > MOST_NUMBERS:
        frequencies //= 2
    return [
        "[router]  # what every site releases with noise",
        'kind = "mixture"',
        f"epsilon = {epsilon:f}",
        f"# for about {answers.rounded_units} images (or patients) of a site, a public guess",
        f"frequencies = {frequencies}",
        f"components = {components}",
        "centre = 0  # a typical pixel value in [-1, 1]: -0.4 for bright things on black",
    ]


def _router_epsilon(answers: Answers) -> Decimal:
    if answers.epsilon is None:
        return Decimal(ROUTER_EPSILON)
    return answers.epsilon if answers.text is None else answers.epsilon / 4


def _delta(answers: Answers) -> Decimal:
    """Returns a delta far below one over the units, of which the guess may be too small."""
    most = math.ceil(math.log10(answers.rounded_units / FAILURES))
    return Decimal(1).scaleb(-max(LEAST_DELTA_POWER, most))


def _privacy(answers: Answers, training: _Training) -> list[str]:
    lines = [
        "[privacy]",
        'unit = "image"  # "patient" if a person may have several: every image then needs an id',
        f"delta = {_delta(answers):f}",
    ]
    if answers.epsilon is None:
        return [
            *lines,
            f"max_epsilon = {2 * ROUTER_EPSILON}  # leaves room for a second plan",
            "# The experts are trained WITHOUT noise: no epsilon bounds what their weights tell.",
            'must_be_private = ["router"]',
        ]
    lines += [
        f"max_epsilon = {answers.epsilon:f}  # of all that leaves a site, over all plans together",
        'must_be_private = ["router", "expert"]',
    ]
    if training.architecture == "mixture":
        return lines
    return [
        *lines,
        "",
        "[privacy.sgd]  # the expert is trained with noise",
        f"epsilon = {answers.epsilon:f}",
        f"units = {answers.rounded_units}  # a public guess, never a count",
        "clip_norm = 0.1",
        "draws = 8",
    ]
