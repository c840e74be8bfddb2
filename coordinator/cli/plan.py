"""`ddm-coord plan`: a first plan, and what a plan would cost the sites, before it is signed."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coordinator.cli import plan_base, plan_cost, plan_new
from coordinator.cli.open_plan import open_plan
from coordinator.cli.options import CoordinatorOption, RootOption
from ddm_fed import console
from ddm_fed.commands.options import JsonOption
from ddm_fed.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor

    from ddm_fed.records import Plan

app = typer.Typer(
    name="plan", no_args_is_help=True, help="Write a plan, and look at it before it is signed."
)
GIGA = 1e9
INTEGER_BYTES = 8  # of a released number
FLOAT_BYTES = 4
AutoencoderOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the autoencoder that the plan's `data.latent` names.", file_okay=False
    ),
]


@app.callback()
def _group() -> None:
    """Write a plan, and look at it before it is signed, or at the published one."""


app.command()(plan_new.new)


@app.command()
def show(
    plan: Annotated[
        Path,
        typer.Argument(help="A plan.toml, or a folder with a signed plan.", exists=True),
    ],
    autoencoder: AutoencoderOption = None,
    coordinator: CoordinatorOption = Path(),
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every network the plan allows, with its size and what a step of training costs.

    Example: ddm-coord plan show examples/digits/plan.toml
    """
    agreed = open_plan(plan, coordinator, root)
    rows = [_cost(agreed, name) for name in agreed.expert.architecture]
    coding = _coding_cost(agreed, autoencoder)
    if as_json:
        plan_facts = {"plan": agreed.model_dump(mode="json"), "networks": rows}
        console.show_json(plan_facts | ({} if coding is None else {"latent": coding}))
        return
    channels, height, width = agreed.data.shape
    console.show_table(
        f"{agreed.federation}: networks for {channels} x {height} x {width} "
        f"{'images' if coding is None else 'latents'}",
        [
            "network",
            "parameters",
            "bundle",
            "GFLOP per image",
            "PFLOP per run",
            "memory",
            "a batch",
        ],
        [
            [
                row["architecture"],
                f"{row['parameters']:,}",
                f"{row['bundle_bytes'] / 1e6:,.1f} MB",
                f"{row['forward_flops'] / GIGA:,.3f}",
                f"{row['training_flops'] / 1e15:,.3f}",
                f"{row['training_bytes'] / 1e6:,.0f} MB",
                f"{row['batch_bytes'] / 1e6:,.0f} MB",
            ]
            for row in rows
        ],
    )
    console.say(
        "A multiply-add counts as 2 FLOP. A run is the plan's steps times its batch, forward and "
        "backward: a machine that keeps up 1 TFLOP a second takes 17 minutes for 1 PFLOP. Memory "
        "is weights, gradients, optimizer and averages; a batch comes on top, less of it with "
        "--micro-batch."
    )
    for row in rows:
        if row["trained_parameters"] != row["parameters"]:
            console.say(
                f"Of {row['architecture']}, {row['trained_parameters']:,} values are trained: "
                "gradients, optimizer and averages are of these alone."
            )
    if coding is not None:
        _say_coding(coding)
    if agreed.privacy.sgd is not None:
        console.say(
            "With noise it takes longer and needs more: gradients are computed for every unit "
            "alone. `ddm-site train` says how long after two steps."
        )
    limit = agreed.submission.max_bytes
    for row in rows:
        if row["bundle_bytes"] > limit:
            console.say(f"WARNING: a bundle of {row['architecture']} exceeds submission.max_bytes")


app.command()(plan_cost.cost)
app.command()(plan_base.base)


@app.command()
def anchors(
    images: Annotated[
        Path,
        typer.Argument(
            help="PUBLIC images of the plan's shape: an .npz with `images`, or "
            "MedMNIST's `train_images`.",
            exists=True,
            dir_okay=False,
        ),
    ],
    plan: Annotated[
        Path,
        typer.Option(
            help="The plan.toml that they are for, or a folder with a signed plan.", exists=True
        ),
    ],
    components: Annotated[
        int,
        typer.Option(
            min=2, max=64, help="Number of anchors, which is the number of Gaussians per site."
        ),
    ],
    embedder: Annotated[
        str | None,
        typer.Option(
            help="Anchors of centroids, among embeddings of `clip` or `timm:NETWORK`, instead of "
            "anchors among DCT coefficients."
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="Safetensors file of the embedder.", exists=True, dir_okay=False),
    ] = None,
    dimensions: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=128,
            help="With --embedder: how many principal axes of the public images are kept.",
            show_default="64",
        ),
    ] = None,
    frequencies: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many of the lowest frequencies per channel an anchor holds.",
            show_default="all",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Decides where the search starts.")
    ] = 0,
    autoencoder: AutoencoderOption = None,
    coordinator: CoordinatorOption = Path(),
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print anchors for a mixture router of several components, found in public images.

    Paste the lines into the plan, under its router. Anchors are signed and published with it. Never
    make them from private images: that would be a release without a ledger entry.

    With --embedder, print the table `router.centroids` of a plan instead.

    Example: ddm-coord plan anchors public.npz --plan plan.toml --components 10
    """
    from ddm_fed.autoencoders import open_autoencoder
    from ddm_fed.evaluation.inputs import read_public
    from ddm_fed.mixture.anchors import find_anchors

    agreed = open_plan(plan, coordinator, root)
    if embedder is not None:
        if frequencies is not None:
            raise OptionError(
                "--frequencies belongs to anchors among coefficients, not among embeddings",
                hint="leave it out; --dimensions says how many axes are kept",
            )
        if agreed.data.latent is not None:
            raise OptionError(
                "--embedder: the plan diffuses latents, and an embedder reads pixels",
                hint="leave it out for anchors among the coefficients of latents",
            )
        pixels = read_public(images, agreed.data.pixel_shape).unit()
        text = _embedding_anchors(pixels, embedder, weights, components, dimensions or 64, seed)
        console.show_text(text)
        console.say(
            "Paste the lines into the plan, below [router]. They become public: never make them "
            "from private images."
        )
        return
    if weights is not None or dimensions is not None:
        raise OptionError(
            "--weights and --dimensions belong to --embedder", hint="give --embedder as well"
        )
    coder = open_autoencoder(autoencoder, agreed.data)
    public = read_public(images, agreed.data.pixel_shape).unit()
    if coder is not None:
        public = coder.encode(public)[0]
    found = find_anchors(public, agreed, components, frequencies, seed)
    if as_json:
        console.show_json({"anchors": found.rows, "images": found.counts})
        return
    console.show_text(found.toml())
    console.say(
        f"Public images nearest to each: {', '.join(map(str, found.counts))}. Paste the lines into "
        "[router]. They become public: never make them from private images."
    )


def _embedding_anchors(
    pixels: "Tensor", name: str, weights: Path | None, count: int, dimensions: int, seed: int
) -> str:
    """Returns the lines of a plan for anchors among embeddings of public images."""
    from ddm_fed.embedding import open_embedder
    from ddm_fed.errors import DataError
    from ddm_fed.mixture import anchor_lines, embed_images, public_anchors
    from ddm_fed.privacy import ImageSet
    from ddm_fed.storage.digests import sha256_of

    if weights is None:
        raise OptionError(
            "--weights is missing: embeddings take the network's weights",
            hint="give a safetensors file; docs/routers.md says where they come from",
        )
    if len(pixels) < max(2 * count, dimensions + 1):
        raise DataError(
            f"{len(pixels)} public images are too few for {count} anchors in {dimensions} axes",
            hint="give some hundreds, or fewer --components and --dimensions",
        )
    try:
        embedder = open_embedder(name, weights, sha256_of(weights))
    except ValueError as error:
        raise OptionError(f"--embedder: {error}", hint="such as timm:resnet50.a1_in1k") from None
    found = embed_images(ImageSet(pixels, None), embedder)
    return anchor_lines(public_anchors(found, count, seed, dimensions=dimensions), embedder)


@app.command()
def mixture(
    plan: Annotated[
        Path,
        typer.Option(
            help="The plan.toml that it is for, or a folder with a signed plan.", exists=True
        ),
    ],
    units: Annotated[
        int,
        typer.Option(
            min=1, help="A public guess of the images (or patients) of a site; never a count."
        ),
    ],
    sites: Annotated[
        int, typer.Option(min=1, help="How many sites have images of the same kind.")
    ] = 1,
    coordinator: CoordinatorOption = Path(),
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print how many frequencies and Gaussians a release should have, by public numbers alone.

    Paste the lines into the plan, under its router; `router.radius` may then be left out.

    Example: ddm-coord plan mixture --plan examples/digits/plan-private.toml --units 500
    """
    from ddm_fed.mixture import mixture_rule

    agreed = open_plan(plan, coordinator, root)
    found = mixture_rule(
        float(agreed.router.epsilon),
        float(agreed.privacy.delta),
        units,
        len(agreed.data.classes),
        agreed.data.shape[0],
        sites=sites,
        pixels=math.prod(agreed.data.shape[1:]),
    )
    if as_json:
        console.show_json(found._asdict())
        return
    console.show_text(found.toml())
    console.say(
        f"For {units} {agreed.privacy.unit}s of a site at epsilon {agreed.router.epsilon}: noise "
        f"reaches {found.load:.2g} times the mean spread of a Gaussian along an axis."
    )


@app.command()
def text(
    encoder: Annotated[
        Path,
        typer.Argument(
            help="The text encoder: a safetensors file of a CLIP network.",
            exists=True,
            dir_okay=False,
        ),
    ],
    tokens: Annotated[
        int,
        typer.Option(min=1, help="How many tokens of a caption networks are handed, the first."),
    ] = 32,
    as_json: JsonOption = False,
) -> None:
    """Print the section of a plan that names a text encoder, for conditioning = "text".

    Example: ddm-coord plan text clip-vit-b-32.safetensors --tokens 32
    """
    from ddm_fed.embedding import text_spec

    found = text_spec(encoder, tokens)
    if as_json:
        console.show_json(found.model_dump(mode="json"))
        return
    lines = (
        f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}"
        for key, value in found.model_dump().items()
    )
    console.show_text("\n".join(["[data.text]", *lines]))
    console.say(
        f"A caption is cut off after {found.context} tokens, of which networks attend to "
        f"{found.tokens}. Every site and everybody who samples by prompt needs this very file."
    )


def _coding_cost(plan: "Plan", folder: Path | None) -> dict[str, Any] | None:
    """Returns what latents cost, where the plan has them; of the autoencoder if it is at hand."""
    from ddm_fed.autoencoders import open_autoencoder, require_named

    latent = plan.data.latent
    if latent is None:
        require_named(folder, plan.data)
        return None
    files = 1 if latent.kind == "tiny" else 2
    facts: dict[str, Any] = {
        "pixels": list(plan.data.pixel_shape),
        "shape": list(plan.data.shape),
        "autoencoder_sha256": latent.sha256,
        "bytes_per_image": FLOAT_BYTES * files * math.prod(plan.data.shape),
    }
    coder = None if folder is None else open_autoencoder(folder, plan.data)
    if coder is not None:
        facts |= coder.cost()._asdict()
    return facts


def _say_coding(facts: dict[str, Any]) -> None:
    pixels, shape = (" x ".join(map(str, facts[name])) for name in ("pixels", "shape"))
    console.say(
        f"Images of {pixels} become latents of {shape} by the autoencoder "
        f"{facts['autoencoder_sha256'][:16]}…; a site keeps {facts['bytes_per_image']:,} bytes of "
        "each image beside it."
    )
    if "encode_flops" not in facts:
        console.say("With --autoencoder FOLDER, this also says what encoding and decoding cost.")
        return
    console.say(
        f"Encoding an image once costs {facts['encode_flops'] / GIGA:,.3f} GFLOP, decoding a "
        f"sample {facts['decode_flops'] / GIGA:,.3f}; the autoencoder has {facts['parameters']:,} "
        "parameters, which are not trained."
    )


def _cost(plan: "Plan", architecture: str) -> dict[str, Any]:
    """Returns what one network of the plan costs a site."""
    from ddm_fed.mixture import messages
    from ddm_fed.training import training_cost

    released = sum(INTEGER_BYTES * message.size for message in messages(plan))
    cost = training_cost(plan, architecture)
    images = plan.training.steps * plan.training.batch_size
    return {
        "architecture": architecture,
        "parameters": cost.parameters,
        "trained_parameters": cost.trained,
        "weights_bytes": cost.weights_bytes,
        "bundle_bytes": cost.weights_bytes + released,
        "forward_flops": cost.flops_per_image,
        # a backward pass costs twice a forward one
        "training_flops": 3 * cost.flops_per_image * images,
        "batch_bytes": cost.pass_bytes(plan.training.batch_size),
        "training_bytes": cost.training_bytes(len(plan.training.ema_half_lives)),
    }
