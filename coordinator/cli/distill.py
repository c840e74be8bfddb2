"""`ddm-coord distill`: one network that says what an ensemble says."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from coordinator.cli.options import CoordinatorOption
from ddm_fed import console
from ddm_fed.commands.options import JsonOption, finite
from ddm_fed.commands.sample import EnsembleArgument

if TYPE_CHECKING:
    from ddm_fed.distillation.folder import VerifiedStudent
    from ddm_fed.distillation.lessons import GivenImages
    from ddm_fed.records import DataSpec


def distill(
    ensemble: EnsembleArgument,
    out: Annotated[Path, typer.Option(help="Folder to make. OUT.unfinished is worked in.")],
    coordinator: CoordinatorOption = Path(),
    architecture: Annotated[
        str | None,
        typer.Option(
            help="The student's network.", show_default="the plan's first, without a mixture"
        ),
    ] = None,
    teacher: Annotated[
        Literal["own", "ensemble"],
        typer.Option(
            help="own: the expert that drew an image teaches it. ensemble: all, weighted by the "
            "router, which costs as many times more as there are members."
        ),
    ] = "own",
    start: Annotated[
        Literal["expert", "chance"],
        typer.Option(
            help="Weights to begin with. expert: those of the expert with the largest share whose "
            "network is the student's, if there is one. chance: drawn ones."
        ),
    ] = "expert",
    samples: Annotated[
        int, typer.Option(help="Number of images drawn from the ensemble to learn from.", min=1)
    ] = 10_000,
    solver_steps: Annotated[int, typer.Option(help="Solver steps per image drawn.", min=1)] = 20,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Learn from these images instead: an .npz with `images` and, for classes, "
            "`labels`, which you may use and publish the digest of. The members' privacy does not "
            "cover them."
        ),
    ] = None,
    autoencoder: Annotated[
        Path | None,
        typer.Option(help="Folder of the plan's autoencoder, for --data under a plan of latents."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of training.", min=1, show_default="the plan's")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images of a step.", min=1, show_default="the plan's")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="The largest learning rate.",
            min=1e-9,
            max=10.0,
            callback=finite,
            show_default="the plan's",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same student.", min=0, max=2**53 - 1)] = 0,
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Precision of the arithmetic.")
    ] = "float32",
    checkpoint_every: Annotated[
        float, typer.Option(help="Seconds between checkpoints.", min=0, callback=finite)
    ] = 30.0,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget what an unfinished run has left.")
    ] = False,
    resident: Annotated[
        int | None,
        typer.Option(help="The most experts in memory at once. By default all.", min=1),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="cpu, cuda or cuda:1. By default the GPU, if there is one. May be given several "
            "times; the student learns on the first."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Verify an ensemble, and make one network that says what it says, signed as a folder.

    It learns from samples of the ensemble, so it costs no privacy: whatever the experts and the
    releases guarantee, it does too. `verify` and `sample` take its folder like an ensemble's. Run
    it again to continue a killed run.

    Example: ddm-coord distill ensemble --out student --steps 20000
    """
    from coordinator.cli.open_ensemble import open_current, require_current
    from coordinator.ensembles import distill as distilling
    from coordinator.workspace import CoordinatorFolder
    from ddm_fed.distillation.options import DistillOptions, require_no_captions, student_training
    from ddm_fed.ensemble.devices import chosen_devices
    from ddm_fed.progress import Watch, duration

    home = CoordinatorFolder.open(coordinator)
    options = DistillOptions(
        architecture=architecture,
        teacher=teacher,
        start=start,
        samples=samples,
        solver_steps=solver_steps,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        precision=precision,
        checkpoint_every_s=checkpoint_every,
        devices=chosen_devices(device),
        resident=resident,
    )
    verified = open_current(ensemble, home.settings.root, coordinator)
    plan = verified.trust.plan
    require_no_captions(plan)
    given = _given(data, autoencoder, plan.data, options.devices[0])
    total = student_training(plan, options).steps
    drawn = 0 if given is not None else samples
    with (
        console.counting("drawing from the ensemble", drawn, "images") as show_drawn,
        console.counting("distilling", total, "steps") as show_taught,
    ):
        advanced = 0

        def drew(count: int) -> None:
            nonlocal advanced
            advanced += count
            show_drawn(advanced // solver_steps, "")

        student = distilling.distill(
            home,
            verified,
            out,
            options,
            given=given,
            restart=restart,
            require_current=lambda: require_current(verified, ensemble, coordinator),
            watch=Watch(
                lambda now: show_taught(
                    now.step, f"loss {now.loss:.4f}, about {duration(now.eta_s)} left"
                ),
                say=console.say,
                advance=drew,
            ),
        )
    _show(student, out, as_json=as_json)


def _given(
    path: Path | None, autoencoder: Path | None, data: "DataSpec", device: str
) -> "GivenImages | None":
    """Returns the images to learn from as the plan diffuses them; None if none were given.

    Raises:
        OptionError: an autoencoder is given without them, or is missing.
        DataError: they cannot be used.
    """
    import torch

    from ddm_fed.autoencoders import open_autoencoder
    from ddm_fed.distillation.lessons import GivenImages, digest_of
    from ddm_fed.errors import OptionError
    from ddm_fed.evaluation.inputs import read_public

    if path is None:
        if autoencoder is not None:
            raise OptionError(
                "--autoencoder encodes the images of --data, and there are none",
                hint="leave --autoencoder out: the ensemble's samples are latents already",
            )
        return None
    found = read_public(path, data.pixel_shape)
    labels = None if found.labels is None else torch.from_numpy(found.labels)
    opened = open_autoencoder(autoencoder, data, device)
    images = found.unit()
    sha256 = digest_of(torch.from_numpy(found.images), labels)
    return GivenImages(images if opened is None else opened.encode(images)[0], labels, sha256)


def _show(student: "VerifiedStudent", out: Path, *, as_json: bool) -> None:
    record = student.record
    spent = record.distillation.gigaflops
    if as_json:
        console.show_json(
            {
                "student_sha256": student.sha256,
                "ensemble_sha256": record.ensemble_sha256,
                "design": record.design.model_dump(mode="json"),
                "distillation": record.distillation.model_dump(mode="json"),
                "privacy": record.privacy.model_dump(mode="json"),
            }
        )
        return
    began = record.distillation.start
    start = "drawn weights" if began is None else f"the expert of {began}"
    console.say(f"{out} is a signed student of {record.design}, which began with {start}")
    console.show_table(
        "What it took, in GFLOP (10^9 operations)",
        ["part", "GFLOP"],
        [
            ["images drawn", f"{spent.drawing:,}"],
            ["teacher", f"{spent.teacher:,}"],
            ["student", f"{spent.student:,}"],
            ["all", f"{spent.total:,}"],
        ],
    )
    root = record.root
    console.next_step(
        console.typed("ddm-coord", "verify", out, "--root", root),
        console.typed("ddm-coord", "sample", out, "--root", root, "--out", "samples"),
    )
