"""A training as TensorBoard shows it: its loss, its speed and its samples, on this machine only.

All of it is private. A loss says what images of the site the network knows, whatever noise the
weights have, and samples of an unfinished expert are nobody's release.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ddm_fed.errors import OptionError, StateError
from ddm_fed.progress import StepReport, Watch

if TYPE_CHECKING:
    from torch import Tensor

    from ddm_fed.autoencoders import Autoencoder

FLUSH_S = 30
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # of two letters and more: not a drive


def require_tensorboard(folder: Path, site: Path) -> None:
    """Refuses a folder that is no private one of this machine, and says what is not installed.

    Args:
        folder: Where a training is to be shown.
        site: The site's folder.

    Raises:
        OptionError: it is an address, which TensorBoard would write to, lies in the outbox, or is
            a file.
        StateError: TensorBoard is not installed.
    """
    if ADDRESS.match(str(folder)):  # a Path keeps one slash
        raise OptionError(
            f"--tensorboard {folder}: losses and samples are private and stay on this machine",
            hint="give a folder of this machine, such as private-board",
        )
    if folder.resolve().is_relative_to((site / "outbox").resolve()):
        raise OptionError(
            f"--tensorboard {folder}: what lies in the outbox is there to leave",
            hint="give another folder; nothing of it may leave",
        )
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"--tensorboard {folder}: this is a file", hint="give a folder")
    _writer_class()


@contextmanager
def shown_in_tensorboard(
    folder: Path, name: str, watch: Watch, autoencoder: "Autoencoder | None" = None
) -> Iterator[Watch]:
    """Yields a watch that tells `watch`, and writes into a folder that only its owner may enter.

    Where a run goes on from a checkpoint, the steps after it are shown once, as they were taken.

    Args:
        folder: Of several runs.
        name: Of this run's folder in it.
        watch: Told as well.
        autoencoder: Makes pictures of samples, where these are latents.
    """
    run = folder / name
    run.mkdir(parents=True, exist_ok=True, mode=0o700)
    run.chmod(0o700)
    board = _Board(run)

    def on_step(report: StepReport) -> None:
        board.show_step(report)
        watch.on_step(report)

    def on_sample(step: int, images: "Tensor") -> None:
        board.show_samples(step, images if autoencoder is None else autoencoder.decode(images))
        watch.on_sample(step, images)

    try:
        yield Watch(on_step, on_sample, watch.say, watch.advance)
    finally:
        board.close()


class _Board:
    """Writes one run; the file is begun with its first step, which says where it goes on."""

    def __init__(self, run: Path) -> None:
        self._run, self._writer = run, cast("Any", None)

    def show_step(self, report: StepReport) -> None:
        if self._writer is None:
            self._writer = _writer_class()(
                str(self._run), purge_step=report.step, flush_secs=FLUSH_S
            )
        self._writer.add_scalar("loss", report.loss, report.step)
        self._writer.add_scalar("images per second", report.images_per_s, report.step)

    def show_samples(self, step: int, images: "Tensor") -> None:
        if self._writer is not None:
            self._writer.add_images("samples", (images.clamp(-1, 1) + 1) / 2, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise StateError(
            f"TensorBoard cannot be imported ({error}), and --tensorboard needs it",
            hint="pip install 'ddm-fed[tensorboard]'",
        ) from None
    return SummaryWriter
