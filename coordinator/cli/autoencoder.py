"""`ddm-coord autoencoder`: the public autoencoder of a plan with latents."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ddm_fed import console
from ddm_fed.commands.options import JsonOption, finite
from ddm_fed.errors import DataError, OptionError

if TYPE_CHECKING:
    from torch import Tensor

app = typer.Typer(
    name="autoencoder", no_args_is_help=True, help="Make or describe a plan's autoencoder."
)
LARGE_CUT = 0.001
ImagesArgument = Annotated[
    Path,
    typer.Argument(
        metavar="PUBLIC_IMAGES",
        help="PUBLIC images: an .npz with `images`, or MedMNIST's `train_images`.",
        exists=True,
        dir_okay=False,
    ),
]


@app.callback()
def _group() -> None:
    """Make an autoencoder from public images, or describe one for a plan."""


@app.command()
def train(
    images: ImagesArgument,
    out: Annotated[
        Path, typer.Option(help="Folder for the autoencoder. A killed run goes on in it.")
    ],
    pixels: Annotated[
        int,
        typer.Option(help="Side of the images it learns from; others are brought there.", min=8),
    ] = 64,
    factor: Annotated[
        int, typer.Option(help="Pixels of a row that become one latent: 2, 4, 8 …", min=2, max=64)
    ] = 4,
    channels: Annotated[int, typer.Option(help="Channels of a latent.", min=1, max=64)] = 4,
    kind: Annotated[
        Literal["kl", "tiny"],
        typer.Option(help="kl: diffusers' AutoencoderKL; tiny: its AutoencoderTiny, faster."),
    ] = "kl",
    width: Annotated[
        int, typer.Option(help="Channels of its first level, a multiple of 8.", min=8, max=512)
    ] = 32,
    steps: Annotated[int, typer.Option(help="Steps of training.", min=1)] = 2000,
    batch_size: Annotated[int, typer.Option(help="Images of a step.", min=1)] = 16,
    learning_rate: Annotated[
        float, typer.Option(help="The largest learning rate.", min=0, callback=finite)
    ] = 1e-3,
    kl_weight: Annotated[
        float,
        typer.Option(
            help="How much latents are drawn to a standard normal, per pixel.",
            min=0,
            callback=finite,
        ),
    ] = 1e-6,
    seed: Annotated[int, typer.Option(help="Same seed, same autoencoder.", min=0)] = 0,
    checkpoint_every: Annotated[
        float, typer.Option(help="Seconds between checkpoints.", min=0, callback=finite)
    ] = 30.0,
) -> None:
    """Train a small autoencoder on PUBLIC images, and print what names it in a plan.

    The folder is one of diffusers'. It becomes public: never give images of a site.

    Example: ddm-coord autoencoder train public.npz --out autoencoder --pixels 64 --factor 4
    """
    from ddm_fed.autoencoders.fit import FitOptions, fit_autoencoder
    from ddm_fed.progress import Watch, duration

    if factor & (factor - 1) or pixels % factor or pixels // factor < 4:
        raise OptionError(
            f"--pixels {pixels} does not become latents by --factor {factor}",
            hint="factor is 2, 4, 8, 16, 32 or 64, and pixels a multiple of it, at least 4 times",
        )
    if width % 8:
        raise OptionError(f"--width {width} is no multiple of 8", hint="give 16, 32 or 64")
    options = FitOptions(
        kind=kind,
        factor=factor,
        channels=channels,
        width=width,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        kl_weight=kl_weight,
        seed=seed,
    )
    shown = _square(images, pixels)
    with console.counting("training the autoencoder", steps, "steps") as update:
        fit_autoencoder(
            shown,
            out,
            options,
            checkpoint_every_s=checkpoint_every,
            watch=Watch(
                lambda now: update(
                    now.step, f"error {now.loss:.4f}, about {duration(now.eta_s)} left"
                )
            ),
        )
    console.say(f"the autoencoder is in {out}; give the folder to every site, and paste:")
    _describe(out, shown, as_json=False)


@app.command()
def show(
    folder: Annotated[
        Path, typer.Argument(help="Folder of an autoencoder.", exists=True, file_okay=False)
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            help="PUBLIC images, from which scale and shift are computed. By default those are "
            "the folder's own.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    pixels: Annotated[
        int | None,
        typer.Option(help="Side that the images are brought to; by default their own.", min=8),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the lines that name an autoencoder in a plan: digest, shape and scale.

    Example: ddm-coord autoencoder show autoencoder --images public.npz
    """
    _describe(folder, None if images is None else _square(images, pixels), as_json=as_json)


def _describe(folder: Path, images: "Tensor | None", *, as_json: bool) -> None:
    from ddm_fed.autoencoders import read_folder
    from ddm_fed.autoencoders.scale import latent_toml, measure_latents

    opened = read_folder(folder)
    config = opened.config
    cut_off = error = None
    if images is not None:
        found = measure_latents(config, opened.network, images)
        scale, shift, cut_off = found
        error = _error(opened.network, config, images)
    elif config.scale is None:
        raise DataError(
            f"{folder / 'config.json'} has no scaling_factor",
            hint="give --images PUBLIC.npz, from which it is computed",
        )
    else:
        scale, shift = config.scale, config.shift
    try:
        lines = latent_toml(config, opened.sha256, scale, shift)
    except ValueError as problem:
        raise DataError(
            f"no plan can name {folder}: {problem}", hint="choose another autoencoder"
        ) from None
    if as_json:
        facts: dict[str, Any] = {
            "kind": config.kind,
            "sha256": opened.sha256,
            "channels": config.channels,
            "factor": config.factor,
            "scale": str(scale),
            "shift": str(shift),
            "image_channels": config.image_channels,
            "cut_off": cut_off,
            "mean_absolute_error": error,
        }
        console.show_json(facts)
        return
    console.show_text(lines)
    if cut_off is not None:
        warning = "WARNING: " if cut_off > LARGE_CUT else ""
        console.say(
            f"{warning}{cut_off:.2%} of these images' latents lie beyond 4 deviations, where they "
            f"are cut off. Pixels in [-1, 1] come back with a mean absolute error of {error:.4f}."
        )


def _error(network: Any, config: Any, images: "Tensor") -> float:
    """Returns the mean absolute error of at most 256 images, encoded and decoded."""
    import torch

    from ddm_fed.autoencoders.networks import moments, pictures

    with torch.inference_mode():
        errors = []
        for part in torch.split(images[:256], 16):
            shown = part.expand(-1, config.image_channels, -1, -1)
            back = pictures(network, moments(config, network, shown)[0]).clamp(-1, 1)
            errors.append(float((back - shown).abs().mean()) * len(part))
    return sum(errors) / min(256, len(images))


def _square(path: Path, pixels: int | None) -> "Tensor":
    """Returns public images cut to squares and brought to `pixels`, `(N, C, H, H)`."""
    from torch.nn import functional

    from ddm_fed.evaluation.inputs import read_public

    images = read_public(path, None).unit()
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    images = images[:, :, top : top + side, left : left + side]
    if pixels is None or pixels == side:
        return images.contiguous()
    size = (pixels, pixels)
    return functional.interpolate(images, size, mode="bilinear", antialias=True).clamp(-1, 1)
