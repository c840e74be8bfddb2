"""One site's expert, trained in isolation: a pure loop that a kill cannot change.

Everything random in step s is drawn from a generator seeded by (seed, s), and the batch of step s
is a function of (seed, s, N). So a checkpoint needs no random state, and a run that was killed and
resumed ends with the same weights, bit for bit, as one that never stopped: on the same machine
type, with the same torch, precision and number of threads, which the checkpoint records.
"""

import hashlib
import json
import math
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddm_fed._version import __version__
from ddm_fed.errors import CheckpointError, DataError
from ddm_fed.files import PART_PREFIX, commit_file
from ddm_fed.flows import logit_normal_times, uniform_times, velocity_loss
from ddm_fed.models import DiT, build_expert
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import Plan, TrainingFacts, TrainingSpec

Precision = Literal["float32", "bfloat16"]
BETAS = (0.9, 0.99)  # a shorter memory than AdamW's default suits runs of a few thousand steps


class StepReport(NamedTuple):
    """What the loop tells its caller after a step; for the site's own screen only."""

    step: int
    loss: float
    images_per_s: float


@dataclass(frozen=True)
class TrainedExpert:
    """The averaged (EMA) weights, and the facts about them that may be published."""

    state: dict[str, Tensor]
    facts: TrainingFacts


@dataclass(frozen=True)
class _RunIdentity:
    """What a checkpoint must agree with to be continued."""

    plan_sha256: str
    data_sha256: str
    seed: int
    precision: Precision
    threads: int
    torch: str


def train_expert(
    data: Private[ImageSet],
    plan: Plan,
    plan_sha256: str,
    checkpoint: Path,
    *,
    seed: int | None = None,
    precision: Precision | Literal["auto"] = "auto",
    checkpoint_every_s: float = 30.0,
    on_step: Callable[[StepReport], None] = lambda _: None,
) -> TrainedExpert:
    """Returns the expert of `plan` for `data`; continues from `checkpoint` if it exists.

    Args:
        data: The site's images; read here, never copied into the result.
        plan: What to train.
        plan_sha256: The plan's signed identity; a checkpoint of another plan is refused.
        checkpoint: Where the state is kept, written atomically. It is private.
        seed: For reproducible experiments. By default drawn from the operating system, and kept
            only in the checkpoint.
        precision: `auto` times both on this machine and takes the faster.
        checkpoint_every_s: Seconds between checkpoints; 0 writes one after every step.
        on_step: Called after every step.

    Raises:
        CheckpointError: the checkpoint is damaged or belongs to other data, plan or program.
        DataError: there are no images.
    """
    images = data.reveal()
    if len(images) == 0:
        raise DataError("there are no images to train on", hint="check --data")
    spec = plan.training
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_expert(plan)
    # Weights are drawn before the model moves: a CPU generator cannot fill a GPU's memory, and the
    # same seed is to mean the same weights on both.
    run, state = _open_run(
        checkpoint, model, plan, plan_sha256, images.digest(), seed=seed, precision=precision
    )
    model.to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=float(spec.learning_rate),
        betas=BETAS,
        weight_decay=float(spec.weight_decay),
        fused=True,
    )
    ema = {name: value.detach().clone() for name, value in model.state_dict().items()}
    first_step = _restore(state, model, optimizer, ema)
    if first_step == 0:
        _save(checkpoint, run, 0, model, optimizer, ema)
    autocast = _autocast(device, run.precision)
    model.train()
    saved_at = time.monotonic()
    step = first_step
    try:
        for step in range(first_step, spec.steps):
            started = time.perf_counter()
            loss = _train_step(model, optimizer, images, spec, run.seed, step, autocast)
            _update_ema(ema, model, float(spec.ema_decay), step)
            elapsed = time.perf_counter() - started
            if time.monotonic() - saved_at >= checkpoint_every_s:
                _save(checkpoint, run, step + 1, model, optimizer, ema)
                saved_at = time.monotonic()
            on_step(StepReport(step + 1, loss, spec.batch_size / elapsed))
        _save(checkpoint, run, spec.steps, model, optimizer, ema)
    except KeyboardInterrupt:
        # The step in flight may be half applied: the last whole checkpoint stands.
        raise CheckpointError(
            f"training was interrupted after {step} of {spec.steps} steps",
            hint="run the same command again to continue from the last checkpoint",
        ) from None
    facts = TrainingFacts(
        program=f"ddm-fed {__version__}",
        torch=torch.__version__,
        precision=run.precision,
        steps=spec.steps,
    )
    return TrainedExpert({name: value.cpu() for name, value in ema.items()}, facts)


def learning_rate_factor(step: int, *, steps: int, warmup_steps: int) -> float:
    """Returns the factor on the learning rate: linear warm-up, then a cosine down to zero."""
    warmup = min(1.0, (step + 1) / (warmup_steps + 1))
    return warmup * 0.5 * (1 + math.cos(math.pi * step / steps))


def batch_indices(step: int, *, batch_size: int, count: int, seed: int) -> Tensor:
    """Returns the rows of a step, `(batch_size,)`: epochs of fresh permutations, end to end."""
    position = step * batch_size
    rows: list[Tensor] = []
    missing = batch_size
    while missing:
        epoch, offset = divmod(position, count)
        order = torch.randperm(count, generator=_generator(seed, "epoch", epoch))
        rows.append(order[offset : offset + missing])
        position += len(rows[-1])
        missing -= len(rows[-1])
    return torch.cat(rows)


def _train_step(
    model: DiT,
    optimizer: torch.optim.Optimizer,
    data: ImageSet,
    spec: TrainingSpec,
    seed: int,
    step: int,
    autocast: Callable[[], AbstractContextManager[None]],
) -> float:
    device = next(model.parameters()).device
    generator = _generator(seed, "step", step)
    rows = batch_indices(step, batch_size=spec.batch_size, count=len(data), seed=seed)
    x_0 = data.images[rows]
    eps = torch.randn(x_0.shape, generator=generator)
    if spec.time_sampling == "uniform":
        t = uniform_times(len(rows), generator)
    else:
        t = logit_normal_times(
            len(rows),
            generator,
            location=float(spec.time_location),
            scale=float(spec.time_scale),
        )
    label = None
    if model.classes and data.labels is not None:
        dropped = torch.rand(len(rows), generator=generator) < float(spec.label_dropout)
        label = torch.where(dropped, model.classes, data.labels[rows]).to(device)
    factor = learning_rate_factor(step, steps=spec.steps, warmup_steps=spec.warmup_steps)
    for group in optimizer.param_groups:
        group["lr"] = float(spec.learning_rate) * factor
    with autocast():
        loss = velocity_loss(model, x_0.to(device), eps.to(device), t.to(device), label).mean()
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), float(spec.clip_norm))
    optimizer.step()
    return loss.item()


def _update_ema(ema: dict[str, Tensor], model: DiT, decay: float, step: int) -> None:
    """Averages the weights; early on over a shorter past, so that the start is forgotten."""
    decay = min(decay, (1 + step) / (10 + step))
    values = list(model.state_dict().values())
    torch._foreach_lerp_(list(ema.values()), values, 1 - decay)


def _generator(seed: int, purpose: str, index: int) -> torch.Generator:
    """Returns a generator that depends on all its arguments and on nothing else."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _autocast(
    device: torch.device, precision: Precision
) -> Callable[[], AbstractContextManager[None]]:
    if precision == "float32":
        return nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16)


def choose_precision(plan: Plan) -> Precision:
    """Returns the precision in which a step is faster here, measured on made-up images."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    model = build_expert(plan)
    model.reset_parameters(generator)
    optimizer = torch.optim.AdamW(model.to(device).parameters(), fused=True)
    count = plan.training.batch_size
    labels = torch.zeros(count, dtype=torch.long) if plan.data.classes else None
    data = ImageSet(torch.randn((count, *plan.data.shape), generator=generator), labels)
    seconds: dict[Precision, list[float]] = {"float32": [], "bfloat16": []}
    for trial in range(4):
        for precision, timings in seconds.items():
            started = time.perf_counter()
            _train_step(
                model, optimizer, data, plan.training, 0, trial, _autocast(device, precision)
            )
            timings.append(time.perf_counter() - started)
    # The first trial of each warms caches up; float32 is kept unless the gain is clear.
    fastest = {precision: min(timings[1:]) for precision, timings in seconds.items()}
    return "bfloat16" if fastest["bfloat16"] < 0.9 * fastest["float32"] else "float32"


def _open_run(
    checkpoint: Path,
    model: DiT,
    plan: Plan,
    plan_sha256: str,
    data_sha256: str,
    *,
    seed: int | None,
    precision: Precision | Literal["auto"],
) -> tuple[_RunIdentity, dict[str, Tensor]]:
    """Returns the run to continue and its state, or a new run and no state."""
    if not checkpoint.exists():
        run = _RunIdentity(
            plan_sha256,
            data_sha256,
            secrets.randbits(62) if seed is None else seed,
            choose_precision(plan) if precision == "auto" else precision,
            torch.get_num_threads(),
            torch.__version__,
        )
        model.reset_parameters(_generator(run.seed, "weights", 0))
        return run, {}
    run, state = _load(checkpoint)
    for phrase, found, wanted in (
        ("another plan", run.plan_sha256, plan_sha256),
        ("other images", run.data_sha256, data_sha256),
        ("another version of torch", run.torch, torch.__version__),
        ("another seed", run.seed, run.seed if seed is None else seed),
        ("another precision", run.precision, run.precision if precision == "auto" else precision),
    ):
        if found != wanted:
            # the digest of the images identifies the data set, and the seed the weights: not shown
            secret = phrase in ("other images", "another seed")
            shown = "" if secret else f": it holds {found}, this run has {wanted}"
            raise CheckpointError(
                f"{checkpoint} was made with {phrase}{shown}",
                hint="continue with what it was made with, or start again with --restart",
            )
    torch.set_num_threads(run.threads)
    return run, state


def _save(
    path: Path,
    run: _RunIdentity,
    step: int,
    model: DiT,
    optimizer: torch.optim.Optimizer,
    ema: dict[str, Tensor],
) -> None:
    """Writes the state to `path` atomically: a reader finds the old file or the new one, whole."""
    tensors = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in ema.items()}
    for name, value in model.named_parameters():
        for slot, moment in optimizer.state.get(value, {}).items():
            if slot != "step":
                tensors[f"{slot}.{name}"] = moment
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{PART_PREFIX}{path.name}")
    metadata = {"run": json.dumps(asdict(run)), "step": str(step)}
    save_file(tensors, part, metadata=metadata)
    commit_file(part, path)


def _load(path: Path) -> tuple[_RunIdentity, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        run = _RunIdentity(**json.loads(metadata["run"]))
        state["step"] = torch.tensor(int(metadata["step"]))
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be read: {error}",
            hint="restore it from backup, or start again with --restart",
        ) from None
    return run, state


def _restore(
    state: dict[str, Tensor],
    model: DiT,
    optimizer: torch.optim.Optimizer,
    ema: dict[str, Tensor],
) -> int:
    """Copies `state` into place and returns the number of steps it has behind it."""
    if not state:
        return 0
    step = int(state["step"])
    for name, value in model.state_dict().items():
        value.copy_(state[f"model.{name}"])
        ema[name].copy_(state[f"ema.{name}"])
    for name, parameter in model.named_parameters():
        if f"exp_avg.{name}" in state:
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step), device=parameter.device),
                "exp_avg": state[f"exp_avg.{name}"].to(parameter.device).clone(),
                "exp_avg_sq": state[f"exp_avg_sq.{name}"].to(parameter.device).clone(),
            }
    return step
