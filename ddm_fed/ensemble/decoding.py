"""Samples of an ensemble of latents become pictures only by the autoencoder of its plan."""

from pathlib import Path

from ddm_fed.autoencoders import Autoencoder, open_autoencoder
from ddm_fed.errors import OptionError
from ddm_fed.records import DataSpec


def open_decoder(
    folder: Path | None, data: DataSpec, device: str, *, keep_latents: bool
) -> Autoencoder | None:
    """Returns what decodes samples; None where they are pixels, or stay latents as asked for.

    Raises:
        OptionError: the plan has latents and it is not said what becomes of them, or it has none.
        DigestError: the folder holds another autoencoder than the plan's.
        DataError: the folder holds none that can be opened.
    """
    if keep_latents and data.latent is None:
        raise OptionError(
            "--latents is given, but the plan's images are pixels",
            hint="leave --latents out",
        )
    if folder is None and data.latent is not None:
        if keep_latents:
            return None
        raise OptionError(
            "--autoencoder is missing; the samples of this ensemble are latents, which it decodes",
            hint="name its folder with --autoencoder: `ddm-coord autoencoder show FOLDER` has to "
            f"print the sha256 {data.latent.sha256}; or keep them undecoded with --latents",
        )
    return open_autoencoder(folder, data, device)
