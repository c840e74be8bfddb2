"""`ddm-coord plan cost`: what islands with accelerators need to train a plan."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coordinator.cli.open_plan import open_plan
from coordinator.cli.options import CoordinatorOption, RootOption
from ddm_fed import console
from ddm_fed.commands.options import JsonOption, finite
from ddm_fed.errors import OptionError

if TYPE_CHECKING:
    from ddm_fed.records import Plan

DAY_S = 86_400.0


def cost(
    plan: Annotated[
        Path,
        typer.Argument(help="A plan.toml, or a folder with a signed plan.", exists=True),
    ],
    gpus: Annotated[int, typer.Option(help="Accelerators of one island.", min=1)] = 8,
    kind: Annotated[
        str, typer.Option(help="Which: a40, a100, l40s, h100, h200, b200 or mi300x.")
    ] = "h100",
    islands: Annotated[int, typer.Option(help="Number of islands, or sites.", min=1)] = 1,
    images: Annotated[
        int | None, typer.Option(help="Images of one island, for the room on its disk.", min=1)
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(help="One of the plan's networks.", show_default="the plan's first"),
    ] = None,
    utilisation: Annotated[
        float,
        typer.Option(
            help="Part of the peak of dense bfloat16 that training keeps up. Measure some steps "
            "on the machine.",
            min=0.001,
            max=1.0,
            callback=finite,
        ),
    ] = 0.35,
    shard: Annotated[
        bool, typer.Option("--shard", help="Weights are divided among the accelerators (FSDP2).")
    ] = False,
    coordinator: CoordinatorOption = Path(),
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate time, memory, disk and network of training a plan on accelerators.

    It is arithmetic, not a measurement: FLOP are counted, and what a machine keeps up is assumed.

    Example: ddm-coord plan cost plan.toml --gpus 8 --kind h100 --islands 8 --shard
    """
    from ddm_fed.models import ACCELERATORS

    agreed = open_plan(plan, coordinator, root)
    if kind not in ACCELERATORS:
        raise OptionError(
            f"--kind {kind} is not known", hint=f"give one of {', '.join(ACCELERATORS)}"
        )
    name = architecture or agreed.expert.default.architecture
    if name not in agreed.expert.architecture:
        raise OptionError(
            f"--architecture {name} is not in the plan",
            hint=f"its networks are {', '.join(agreed.expert.architecture)}",
        )
    if agreed.privacy.sgd is not None:
        raise OptionError(
            "--gpus: the plan trains with noise, whose cost depends on how gradients are clipped",
            hint="`ddm-site train` says how long it takes after two steps; this speaks of plans "
            "without [privacy.sgd]",
        )
    part = agreed.training.trainable
    if shard and part != "all":
        raise OptionError(
            f"--shard: nothing is divided where a part is trained (`training.trainable` {part})",
            hint="leave it out: gradients, moments and averages are of that part alone",
        )
    found = _facts(agreed, name, gpus, kind, islands, images, utilisation, shard)
    if as_json:
        console.show_json(found)
        return
    console.show_table(
        f"{name} of {agreed.federation}: {gpus} {kind.upper()} at {utilisation:g} of the peak, "
        f"on each of {islands} island{'s' if islands > 1 else ''}",
        ["", "one island", "all"],
        _rows(found, islands),
    )
    if not found["fits"]:
        console.say(
            "WARNING: not even one image fits beside weights, gradients and moments: give --shard, "
            "more --gpus, or another --kind"
        )
    console.say(
        "Counted from the plan, not measured. The router, previews and reading of images come on "
        "top. Islands send nothing to each other while they train."
    )


def _facts(
    plan: "Plan",
    name: str,
    gpus: int,
    kind: str,
    islands: int,
    images: int | None,
    utilisation: float,
    shard: bool,
) -> dict[str, Any]:
    from ddm_fed.models import island_cost
    from ddm_fed.training import training_cost

    training, network = plan.training, training_cost(plan, name)
    if not network.parameters:
        raise OptionError(
            f"--architecture {name}: it trains nothing", hint="name another of the plan's networks"
        )
    found = island_cost(
        network,
        steps=training.steps,
        batch_size=training.batch_size,
        averages=len(training.ema_half_lives),
        kind=kind,
        gpus=gpus,
        utilisation=utilisation,
        shard=shard,
    )
    channels, height, width = plan.data.shape
    values = channels * height * width
    latent = plan.data.latent
    # bytes: of pixels one each, of latents a mean, and a deviation where the autoencoder has one
    kept = values * (1 if latent is None else 4 if latent.kind == "tiny" else 8)
    together = 2 * (islands * gpus - 1) / (islands * gpus) * 2 * network.trained
    return {
        "architecture": name,
        "parameters": network.parameters,
        **found._asdict(),
        "bundle_bytes": network.weights_bytes,
        "ensemble_bytes": islands * network.weights_bytes,
        "store_bytes": None if images is None else images * kept,
        "run_traffic_bytes": training.steps * found.traffic_bytes,
        "monolith_traffic_bytes": training.steps * together,
    }


def _rows(found: dict[str, Any], islands: int) -> list[list[str]]:
    from coordinator.status.tables import shown_bytes

    def size(count: float) -> str:
        return shown_bytes(round(count))

    step = f"{_seconds(found['step_s'])}, {found['step_flops'] / 1e12:,.3g} TFLOP"
    rows = [
        ["parameters", f"{found['parameters']:,}", f"{islands * found['parameters']:,}"],
        ["a step", step, ""],
        ["training", _seconds(DAY_S * found["days"]), _seconds(DAY_S * found["days"])],
        ["accelerator-days", f"{found['gpu_days']:,.3g}", f"{islands * found['gpu_days']:,.3g}"],
        ["memory of each", f"{size(found['memory_bytes'])}", ""],
        ["images of a step at once", f"{found['micro_batch']} on each", ""],
        ["checkpoint", size(found["checkpoint_bytes"]), ""],
        ["sent when done", size(found["bundle_bytes"]), size(found["ensemble_bytes"])],
        ["sent inside an island", f"{size(found['run_traffic_bytes'])} by each", ""],
        ["sent between islands", "0", "0"],
        ["one network on all instead", "", f"{size(found['monolith_traffic_bytes'])} by each"],
    ]
    if found["store_bytes"] is not None:
        every = size(islands * found["store_bytes"])
        rows.insert(7, ["images on disk", size(found["store_bytes"]), every])
    return rows


def _seconds(seconds: float) -> str:
    """Returns a duration in the unit that shows it best."""
    for name, unit in (("days", DAY_S), ("hours", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= unit:
            return f"{seconds / unit:,.3g} {name}"
    return f"{1000 * seconds:,.3g} ms"
