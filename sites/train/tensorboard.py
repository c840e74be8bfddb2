"""A training as TensorBoard shows it: its loss, its speed and its samples, on this machine only."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ddm_fed.errors import StateError
from ddm_fed.progress import StepReport, Watch
from sites.train.shown import require_private, scalars_of, shown_by

if TYPE_CHECKING:
    from torch import Tensor

    from ddm_fed.autoencoders import Autoencoder

FLUSH_S = 30


def require_tensorboard(folder: Path, site: Path) -> None:
    """Refuses a folder that is no private one of this machine, and says what is not installed.

    Args:
        folder: Where a training is to be shown.
        site: The site's folder.

    Raises:
        OptionError: it is an address, lies in the outbox, or is a file.
        StateError: TensorBoard is not installed.
    """
    require_private("--tensorboard", folder, site)
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

    def on_sample(step: int, images: "Tensor") -> None:
        board.show_samples(step, images if autoencoder is None else autoencoder.decode(images))
        watch.on_sample(step, images)

    with shown_by(board, watch) as shown:
        yield replace(shown, on_sample=on_sample)


class _Board:
    """Writes one run; the file is begun with its first step, which says where it goes on."""

    def __init__(self, run: Path) -> None:
        self._run, self._writer = run, cast("Any", None)

    def write(self, report: StepReport) -> None:
        if self._writer is None:
            self._writer = _writer_class()(
                str(self._run), purge_step=report.step, flush_secs=FLUSH_S
            )
        for name, value in scalars_of(report).items():
            self._writer.add_scalar(name, value, report.step)

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
