"""`ddm-site train`: the site's whole job under a plan, and the choices that are its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ddm_fed import console
from ddm_fed.commands.options import EmbedderOption, finite, options_error
from ddm_fed.progress import StepReport, Watch, duration
from sites.cli.options import (
    AutoencoderOption,
    DataOption,
    MaxBadOption,
    PlanOption,
    SiteOption,
    TextEncoderOption,
    ValueRangeOption,
    YesOption,
    into_plan_space,
    open_plan_autoencoder,
    open_published,
    read_images,
    settle_doubts,
    show_data,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ddm_fed.autoencoders import Autoencoder
    from ddm_fed.privacy import ImageSet, Private
    from ddm_fed.records import ExpertDesign, Plan
    from ddm_fed.trust import Trust
    from sites.data import DataReport
    from sites.train.expert import TrainingOptions
    from sites.workspace import SiteFolder

    Choose = Callable[[Plan], TrainingOptions]
    Load = Callable[[SiteFolder, Plan], tuple[Private[ImageSet], DataReport]]


LEAST_TIMED_S = 3.0  # a shorter look at the steps is wrong where a machine has other work


def train(
    plan: PlanOption,
    data: DataOption,
    site: SiteOption = Path(),
    value_range: ValueRangeOption = None,
    max_bad_fraction: MaxBadOption = 0.05,
    architecture: Annotated[
        str | None, typer.Option(help="One of the plan's architectures; by default its first.")
    ] = None,
    path: Annotated[
        str | None,
        typer.Option(
            help="linear, cosine or vp, if the plan allows it; by default the plan's first."
        ),
    ] = None,
    prediction: Annotated[
        str | None,
        typer.Option(
            help="velocity, noise or image, if the plan allows it; by default the plan's first."
        ),
    ] = None,
    autoencoder: AutoencoderOption = None,
    base: Annotated[
        Path | None, typer.Option(help="The plan's base checkpoint on this machine.")
    ] = None,
    text_encoder: TextEncoderOption = None,
    ema_half_life: Annotated[
        int | None,
        typer.Option(
            help="Which of the plan's averages becomes the expert. Can also be changed "
            "after training."
        ),
    ] = None,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="Precision of the arithmetic; auto measures which is faster here."),
    ] = "auto",
    micro_batch: Annotated[
        int | None,
        typer.Option(help="The most images in memory at once. Does not change the result.", min=1),
    ] = None,
    compile_network: Annotated[
        bool, typer.Option("--compile", help="Compile the network first, if torch can.")
    ] = False,
    shard: Annotated[
        bool,
        typer.Option(
            "--shard", help="Under torchrun, also divide the weights among the processes."
        ),
    ] = False,
    sample_every: Annotated[
        int | None,
        typer.Option(help="Write a picture of samples into private/ every so many steps.", min=1),
    ] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            help="Folder of this machine for TensorBoard: loss, speed and samples. They are "
            "private, and nothing of it may leave."
        ),
    ] = None,
    mlflow: Annotated[
        Path | None,
        typer.Option(
            help="Folder of this machine for MLflow: loss and speed. They are private, and "
            "nothing of it may leave."
        ),
    ] = None,
    gradients: Annotated[
        Literal["auto", "functional", "recorded"],
        typer.Option(
            help="How DP-SGD computes clipped sums; auto takes the fastest that is right here."
        ),
    ] = "auto",
    embedder_weights: EmbedderOption = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Makes experiments without noise reproducible. By default random and secret."
        ),
    ] = None,
    checkpoint_every: Annotated[
        float,
        typer.Option(
            help="Seconds between checkpoints; 0 means every step.", min=0, callback=finite
        ),
    ] = 30.0,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget the checkpoint and train from the start.")
    ] = False,
    extend: Annotated[
        bool,
        typer.Option(
            "--extend",
            help="Go on from the finished run of an earlier plan that is this one with fewer "
            "steps; with a constant learning rate only.",
        ),
    ] = False,
    yes: YesOption = False,
) -> None:
    """Do the whole job under a plan: train, compute the private release, write and sign the bundle.

    The same command continues after a kill. Example: ddm-site train --plan published --data digits

    With several GPUs: torchrun --nproc-per-node 8 --no-python ddm-site train --data …
    """
    from ddm_fed.training import RunOptions, process_rank
    from sites.train.expert import TrainingOptions

    run = RunOptions(
        seed=seed,
        precision=precision,
        checkpoint_every_s=checkpoint_every,
        micro_batch=micro_batch,
        compile=compile_network,
        shard=shard,
        base=base,
        ema_half_life=ema_half_life,
        sample_every=sample_every,
        gradients=gradients,
    )

    def choose(agreed: "Plan") -> TrainingOptions:
        return TrainingOptions(
            run,
            chosen_design(agreed, architecture, path, prediction),
            restart,
            extend,
            embedder_weights=embedder_weights,
        )

    def load(home: "SiteFolder", agreed: "Plan") -> "tuple[Private[ImageSet], DataReport]":
        return read_images(home, data, agreed, value_range, max_bad_fraction)

    if process_rank() != 0:
        _help(site, plan, choose, load, autoencoder)
        return
    lead(
        site,
        plan,
        choose,
        load,
        text_encoder,
        autoencoder,
        yes=yes,
        tensorboard=tensorboard,
        mlflow=mlflow,
    )


def chosen_design(
    plan: "Plan", architecture: str | None, path: str | None, prediction: str | None
) -> "ExpertDesign":
    """Returns the plan's first design of that architecture with what was chosen in its place."""
    from pydantic import ValidationError

    from ddm_fed.records import ExpertDesign

    chosen = {"architecture": architecture, "path": path, "prediction": prediction}
    named = {name: value for name, value in chosen.items() if value is not None}
    try:
        base = plan.expert.design(architecture or plan.expert.architecture[0])
        return ExpertDesign.model_validate(base.model_dump() | named)
    except ValidationError as error:
        hint = "see `ddm-site train --help`, and [expert] in the plan"
        raise options_error(error, ExpertDesign, hint) from None


def lead(
    site: Path,
    plan: Path,
    choose: "Choose",
    load: "Load",
    text_encoder: Path | None,
    autoencoder: Path | None,
    *,
    yes: bool,
    tensorboard: Path | None = None,
    mlflow: Path | None = None,
) -> Path:
    """Does the work of the first process, as `ddm-site train` and `sites.api.train` ask for it.

    Returns the signed draft.

    Args:
        site: The site's folder.
        plan: The published folder.
        choose: Returns the site's choices under a plan.
        load: Returns the images, and what is to be said of them.
        text_encoder: File of the plan's text encoder.
        autoencoder: Folder of the plan's autoencoder.
        yes: Whether doubts about the data are answered already.
        tensorboard: Folder where TensorBoard shows the training.
        mlflow: Folder where MLflow shows it.
    """
    from contextlib import ExitStack

    from sites.outbox.stages import find_bundles
    from sites.train.captions import encode_captions
    from sites.train.mlflow import require_mlflow, shown_in_mlflow
    from sites.train.pipeline import run_plan
    from sites.train.tensorboard import require_tensorboard, shown_in_tensorboard

    if tensorboard is not None:
        require_tensorboard(tensorboard, site)
    if mlflow is not None:
        require_mlflow(mlflow, site, tensorboard)
    home, published = open_published(site, plan)
    trust = published.trust
    options = choose(trust.plan)
    coder = open_plan_autoencoder(autoencoder, trust.plan)
    with home.changing():
        images, report = load(home, trust.plan)
        show_data(home.settings.name, report)
        settle_doubts(report, yes=yes)
        images = into_plan_space(home, images, coder)
        work = home.work(trust.plan_sha256)
        images = encode_captions(work, trust.plan, images, text_encoder, console.say)
        with ExitStack() as stack:
            watch = stack.enter_context(
                _watched(home, trust.plan_sha256, trust.plan.training.steps, coder)
            )
            name = f"{home.settings.name}-{trust.plan_sha256[:16]}"
            if tensorboard is not None:
                watch = stack.enter_context(shown_in_tensorboard(tensorboard, name, watch, coder))
            if mlflow is not None:
                known = _public_parameters(trust, options)
                watch = stack.enter_context(shown_in_mlflow(mlflow, name, known, watch))
            bundle = run_plan(home, trust, published.log, images, options, watch)
        drafts = find_bundles(home.drafts)
    console.say(f"{home.settings.name}: signed bundle {bundle}")
    step = ("review",) if bundle in drafts else ("submit", "--to", "INBOX")
    console.next_step(console.typed("ddm-site", *step, "--site", site, "--plan", plan))
    return bundle


def _public_parameters(trust: "Trust", options: "TrainingOptions") -> dict[str, object]:
    """Returns what of a training is in its plan, or in what the site says of its expert."""
    plan = trust.plan
    design = options.design or plan.expert.design(plan.expert.architecture[0])
    return {
        "plan": trust.plan_sha256,
        "architecture": design.architecture,
        "steps": plan.training.steps,
        "batch size": plan.training.batch_size,
    }


def _help(site: Path, plan: Path, choose: "Choose", load: "Load", autoencoder: Path | None) -> None:
    """What every process but the first does: it holds no lock and writes nothing."""
    from ddm_fed.autoencoders import require_named
    from ddm_fed.trust.published import published_folder, read_published
    from sites.data import wait_for_images
    from sites.train.captions import wait_for_captions
    from sites.train.pipeline import help_train
    from sites.workspace import SiteFolder

    home = SiteFolder.open(site)
    trust = read_published(published_folder(plan), home.settings.root)
    images = load(home, trust.plan)[0]
    if require_named(autoencoder, trust.plan.data) is not None:
        images = wait_for_images(images, trust.plan.data, home.latents)
    images = wait_for_captions(home.work(trust.plan_sha256), trust.plan, images)
    help_train(home, trust, images, choose(trust.plan))


class _Estimate:
    """What the rest of a run takes, by the steps after the first, which pays for what is new."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._said = False

    def after(self, report: StepReport) -> str | None:
        """Returns the estimate once, when steps have taken long enough to say anything."""
        if self._said:
            return None
        if self._first is None:
            self._first = report.step, monotonic()
            return None
        step, since = self._first
        if monotonic() - since < LEAST_TIMED_S:
            return None
        self._said = True
        took = (monotonic() - since) / (report.step - step)
        left = duration(took * (report.steps - report.step))
        return (
            f"a step takes {took:.2g} s: about {left} for the {report.steps - report.step:,} that "
            f"are left; memory so far {_most_memory()}"
        )


def _most_memory() -> str:
    """Returns the most memory this process, and its GPU if it has one, had at once."""
    from ddm_fed.training.forecast import peak_memory

    own, gpu = peak_memory()
    shown = f"{own / 1e9:.1f} GB"
    if gpu:
        shown += f", and {gpu / 1e9:.1f} GB of the GPU"
    return shown


@contextmanager
def _watched(
    home: "SiteFolder", plan_sha256: str, steps: int, autoencoder: "Autoencoder | None"
) -> "Iterator[Watch]":
    """Shows a bar of the steps; pictures of samples go to the site's private folder, decoded."""
    from ddm_fed.pictures import write_grid

    with console.counting(f"training {home.settings.name}", steps, "steps") as update:
        update(0, "getting ready: what is faster here is measured")
        estimate = _Estimate()

        def on_step(step: StepReport) -> None:
            left = duration(step.eta_s)
            speed = f"{step.images_per_s:,.0f} images/s"
            update(step.step, f"loss {step.loss:.4f}, {speed}, about {left} left")
            if (said := estimate.after(step)) is not None:
                console.say(said)

        def on_sample(step: int, images: "Tensor") -> None:
            if autoencoder is not None:
                images = autoencoder.decode(images)
            write_grid(home.work(plan_sha256) / f"samples-{step:07d}.png", images)

        yield Watch(on_step, on_sample, console.say)
