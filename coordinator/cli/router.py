"""`ddm-coord router`: routers from the experts' own samples, and comparisons of routers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from coordinator.cli.options import CoordinatorOption, RootOption
from ddm_fed import console
from ddm_fed.commands.options import EmbedderOption, JsonOption, finite
from ddm_fed.commands.sample import EnsembleArgument
from ddm_fed.errors import OptionError, StateError

if TYPE_CHECKING:
    from ddm_fed.embedding import Embedder, TextEmbedder
    from ddm_fed.ensemble.folder import VerifiedEnsemble
    from ddm_fed.records import LearnedNetworkSpec, Plan
    from ddm_fed.router import TimeQuality

app = typer.Typer(
    name="router",
    no_args_is_help=True,
    help="Make routers from the experts' own samples, and compare routers.",
)
PERCEPTRON = "perceptron"
SamplesOption = Annotated[
    int, typer.Option("--samples-per-site", help="Number of images drawn from each expert.", min=16)
]
StepsOption = Annotated[int, typer.Option(help="Solver steps per image.", min=1)]
SeedOption = Annotated[int, typer.Option(help="Same seed, same router.", min=0)]
DeviceOption = Annotated[
    list[str] | None,
    typer.Option(
        help="cpu, cuda or cuda:1. By default the GPU, if there is one. May be given several times."
    ),
]
ResidentOption = Annotated[
    int | None, typer.Option(help="The most experts in memory at once. By default all.", min=1)
]


@app.callback()
def _group() -> None:
    """Make routers from the experts' own samples, and compare routers."""


@app.command()
def build(
    ensemble: EnsembleArgument,
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    kind: Annotated[
        Literal["mixture", "centroid", "heads", "replay", "hybrid"],
        typer.Option(
            help="replay: a network trained on samples. hybrid: the mixture at high noise, the "
            "network (or what the sites sent, with --low) below --switch. mixture, centroid, "
            "heads: what the sites sent, calibrated."
        ),
    ] = "replay",
    low: Annotated[
        Literal["replay", "heads", "centroid"],
        typer.Option(help="What a hybrid asks below --switch."),
    ] = "replay",
    coordinator: CoordinatorOption = Path(),
    root: RootOption = None,
    samples_per_site: SamplesOption = 1000,
    steps: StepsOption = 20,
    network: Annotated[
        str,
        typer.Option(
            help="perceptron: reads cosines of an image. DiT-SIZE/PATCH: a transformer with a "
            "class token, which reads the image itself and costs as much as such an expert."
        ),
    ] = PERCEPTRON,
    training_steps: Annotated[
        int, typer.Option(help="Training steps of the network.", min=1)
    ] = 3000,
    frequencies: Annotated[
        int | None,
        typer.Option(
            help="How many DCT coefficients per channel a perceptron reads.",
            min=1,
            max=4096,
            show_default="all, up to 1024",
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            help="Number of channels of a perceptron.", min=8, max=8192, show_default="256"
        ),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(help="Number of blocks of a perceptron.", min=1, max=32, show_default="3"),
    ] = None,
    switch: Annotated[
        float | None,
        typer.Option(
            help="Time below which a hybrid asks its network.",
            min=0.01,
            max=0.99,
            callback=finite,
            show_default="0.7; with --low centroid the plan's `until`",
        ),
    ] = None,
    embedder_weights: EmbedderOption = None,
    no_calibrate: Annotated[
        bool, typer.Option("--no-calibrate", help="Do not calibrate the posterior.")
    ] = False,
    seed: SeedOption = 0,
    resident: ResidentOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify an ensemble, make images with each expert, and make a router of them.

    It costs no privacy: whatever the experts and the releases guarantee, the router does too. It
    fits these experts only. `assemble --router OUT` puts it into a signed ensemble.

    Example: ddm-coord router build ensemble --kind hybrid --out router
    """
    if low != "replay" and kind != "hybrid":
        raise OptionError(f"--low {low} belongs to --kind hybrid", hint="leave --low out")
    from coordinator.cli.open_ensemble import open_current
    from ddm_fed.ensemble.devices import chosen_devices
    from ddm_fed.ensemble.replay import BuildOptions, build_from_samples
    from ddm_fed.ensemble.router_folder import described, write_built
    from ddm_fed.progress import Watch

    if out.exists():
        raise StateError(f"{out} exists already", hint="choose another --out")
    verified = open_current(ensemble, root, coordinator)
    learned, shaped = None, {"frequencies": frequencies, "width": width, "depth": depth}
    if kind == "replay" or (kind == "hybrid" and low == "replay"):
        learned = _network(verified.trust.plan, network, training_steps, shaped)
    else:
        _require_no_network(kind, {"network": None if network == PERCEPTRON else network, **shaped})
    options = BuildOptions(
        kind=kind,
        samples_per_site=samples_per_site,
        solver_steps=steps,
        seed=seed,
        network=learned,
        low="centroid" if low == "centroid" else None,
        switch=switch or _switch(verified.trust.plan, low),
        embedder=_embedder(verified, embedder_weights),
        calibrate=not no_calibrate,
        resident=resident,
        devices=chosen_devices(device),
    )
    total = len(verified.bundles) * samples_per_site
    with (
        console.counting("drawing from experts", total, "images") as show_drawn,
        console.counting("training", training_steps, "steps") as show_trained,
    ):
        advanced = 0

        def drawn(count: int) -> None:
            nonlocal advanced
            advanced += count
            show_drawn(advanced // steps, "")

        built = build_from_samples(
            verified,
            options,
            Watch(lambda now: show_trained(now.step, f"loss {now.loss:.3f}"), advance=drawn),
        )
    write_built(out, built)
    if as_json:
        console.show_json({"before": described(built.before), "after": described(built.after)})
        return
    columns = {"as it was": built.before} | ({} if no_calibrate else {"calibrated": built.after})
    _show(f"{kind}: how well it knows whose image it sees", columns)
    console.next_step(console.typed("ddm-coord", "assemble", "ensemble-2", "--router", out))


@app.command()
def compare(
    ensemble: EnsembleArgument,
    built: Annotated[
        list[Path] | None,
        typer.Option("--router", help="Folder of `router build`. May be given several times."),
    ] = None,
    coordinator: CoordinatorOption = Path(),
    root: RootOption = None,
    samples_per_site: SamplesOption = 500,
    steps: StepsOption = 20,
    seed: Annotated[
        int,
        typer.Option(
            help="Another seed than that of the routers, so that the images are new.", min=0
        ),
    ] = 1,
    embedder_weights: EmbedderOption = None,
    resident: ResidentOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how well each router of an ensemble tells which expert a sample came from.

    Example: ddm-coord router compare ensemble --router router-replay --router router-hybrid
    """
    from coordinator.cli.open_ensemble import open_current
    from ddm_fed.ensemble.compare_routers import compare_routers
    from ddm_fed.ensemble.devices import chosen_devices
    from ddm_fed.ensemble.replay import BuildOptions
    from ddm_fed.ensemble.router_folder import described

    verified = open_current(ensemble, root, coordinator)
    options = BuildOptions(
        kind="mixture",
        embedder=_embedder(verified, embedder_weights),
        samples_per_site=samples_per_site,
        solver_steps=steps,
        seed=seed,
        resident=resident,
        devices=chosen_devices(device),
    )
    found = compare_routers(verified, built or [], options)
    if as_json:
        console.show_json({name: described(quality) for name, quality in found.items()})
        return
    _show("How well routers know whose image they see", found)


@app.command()
def prompt(
    ensemble: EnsembleArgument,
    text: Annotated[str, typer.Argument(help="What is looked for, such as 'a chest x-ray'.")],
    embedder_weights: EmbedderOption = None,
    coordinator: CoordinatorOption = Path(),
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how likely each site has what a text describes, by its centroids.

    For plans whose embedder is clip, and that have `router.centroids.prompts`.

    Example: ddm-coord router prompt ensemble "a chest x-ray" --embedder-weights clip.safetensors
    """
    from coordinator.cli.open_ensemble import open_current
    from ddm_fed.ensemble.load import load_releases
    from ddm_fed.mixture import planned_embedder
    from ddm_fed.router import centroids_spec, planned_centroid_router

    verified = open_current(ensemble, root, coordinator)
    plan = verified.trust.plan
    spec = centroids_spec(plan)
    if not spec.prompts:
        raise StateError(
            "the plan has no `router.centroids.prompts`, so texts cannot be compared with images",
            hint="publish a plan whose embedder is clip, with public prompts",
        )
    # a plan with prompts has an embedder of text
    embedder = cast("TextEmbedder", planned_embedder(spec, embedder_weights))
    router = planned_centroid_router(plan, load_releases(verified), embedder)
    found = router.log_prior_of_texts(embedder.texts([text]))[0].exp().tolist()
    shares = router.log_prior(None).exp().tolist()
    sites = [bundle.site for bundle in verified.bundles]
    if as_json:
        console.show_json(dict(zip(sites, found, strict=True)))
        return
    rows = zip(sites, shares, found, strict=True)
    console.show_table(
        f"Which sites have: {text}",
        ["site", "share", "given the text"],
        [[site, f"{share:.3f}", f"{part:.3f}"] for site, share, part in rows],
    )


def _network(plan: "Plan", name: str, steps: int, shaped: dict[str, Any]) -> "LearnedNetworkSpec":
    """Returns the network that options name: `shaped` are those that only a perceptron has."""
    from pydantic import ValidationError

    from ddm_fed.records import RouterNetworkSpec, RouterTransformerSpec

    given = {key: value for key, value in shaped.items() if value is not None}
    if name == PERCEPTRON:
        _, height, width = plan.data.shape
        return RouterNetworkSpec(**{"frequencies": min(height * width, 1024), **given}, steps=steps)
    if given:
        raise OptionError(
            f"--{next(iter(given))} belongs to --network {PERCEPTRON}: {name} says its own size",
            hint="leave it out",
        )
    try:
        return RouterTransformerSpec(architecture=name, steps=steps)
    except ValidationError as problem:
        raise OptionError(
            f"--network: {problem.errors()[0]['msg'].removeprefix('Value error, ')}",
            hint="give perceptron, or such as DiT-Nano/4",
        ) from None


def _require_no_network(kind: str, given: dict[str, Any]) -> None:
    """Refuses options of a network where none is trained."""
    for name, value in given.items():
        if value is not None:
            raise OptionError(
                f"--{name} belongs to the network of --kind replay or hybrid: this {kind} router "
                "trains none",
                hint="leave it out",
            )


def _embedder(verified: "VerifiedEnsemble", weights: Path | None) -> "Embedder | None":
    """Returns the embedder of the plan's centroids, if its weights were given."""
    from ddm_fed.mixture import planned_embedder
    from ddm_fed.router import centroids_spec

    if weights is None:
        return None
    return planned_embedder(centroids_spec(verified.trust.plan), weights)


def _switch(plan: "Plan", low: str) -> float:
    """Returns where a hybrid's parts meet by default: centroids see nothing above `until`."""
    return float(plan.centroids.until) if low == "centroid" and plan.centroids else 0.7


def _show(title: str, columns: "dict[str, list[TimeQuality]]") -> None:
    first = next(iter(columns.values()))
    console.show_table(
        f"{title}: NLL in nats (ECE) of {first[0].images} samples of the experts",
        ["t", *columns],
        [
            [f"{at.t:g}", *(f"{c[row].nll:.3f} ({c[row].ece:.3f})" for c in columns.values())]
            for row, at in enumerate(first)
        ],
    )
