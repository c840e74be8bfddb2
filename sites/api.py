"""A site's work from Python: `import sites.api`, in a notebook at the site.

These are the steps of `ddm-site train`, `review` and `release`: the same checks, the same lock, and
the same ledger, which `train` writes before anything is released. There is no other way past it.
"""

from pathlib import Path

from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import EgressRecord, Plan
from ddm_fed.training import RunOptions
from sites.cli.options import open_published, read_images
from sites.cli.train import chosen_design, lead
from sites.data import DataReport
from sites.outbox import stages
from sites.train.expert import TrainingOptions
from sites.workspace import SiteFolder

__all__ = ["release", "review", "train"]


def train(
    site: str | Path,
    plan: str | Path,
    data: str,
    *,
    value_range: tuple[float, float] | None = None,
    max_bad_fraction: float = 0.05,
    architecture: str | None = None,
    options: RunOptions | None = None,
    restart: bool = False,
    text_encoder: str | Path | None = None,
    autoencoder: str | Path | None = None,
    embedder_weights: str | Path | None = None,
    yes: bool = False,
) -> Path:
    """Does what `ddm-site train` does, and returns the signed draft. Continues after a kill.

    Args:
        site: The site's folder.
        plan: The coordinator's published folder.
        data: What `--data` takes: `digits`, an .npz, a folder, a table, shards.
        value_range: The values of black and white, if the dtype does not tell.
        max_bad_fraction: The largest fraction of files in a folder that may be unreadable.
        architecture: One of the plan's; by default its first.
        options: How it is computed: precision, micro-batches and the like.
        restart: Whether to forget the checkpoint.
        text_encoder: The plan's text encoder, where it has captions.
        autoencoder: Folder of the plan's autoencoder, where it has latents.
        embedder_weights: File of the embedder of the plan's centroids.
        yes: Go on if something about the data looks like a mistake; otherwise it is refused.

    Raises:
        DataError: the data cannot be read, or look like a mistake.
        BudgetError: it would exceed a limit, or the site's policy forbids it; nothing was spent.
        StateError: the site is no member, or the plan does not allow what was chosen.
    """

    def choose(agreed: Plan) -> TrainingOptions:
        return TrainingOptions(
            options or RunOptions(),
            chosen_design(agreed, architecture, None, None),
            restart,
            embedder_weights=_path(embedder_weights),
        )

    def load(home: SiteFolder, agreed: Plan) -> tuple[Private[ImageSet], DataReport]:
        return read_images(home, data, agreed, value_range, max_bad_fraction)

    at, published = Path(site), Path(plan)
    return lead(at, published, choose, load, _path(text_encoder), _path(autoencoder), yes=yes)


def review(site: str | Path, plan: str | Path) -> EgressRecord:
    """Returns exactly what would leave with the newest draft, and what it costs. Sends nothing.

    Raises:
        StateError: there is no draft.
    """
    home, published = open_published(Path(site), Path(plan))
    with home.changing():
        return stages.review(home, published.trust).egress


def release(site: str | Path, plan: str | Path) -> Path:
    """Moves the reviewed draft to outbox/released, the only place that is ever sent; returns it.

    Raises:
        StateError: nobody reviewed this very draft.
        CountersignatureError: the officer has not signed it.
    """
    home, published = open_published(Path(site), Path(plan))
    with home.changing():
        return stages.release(home, published.trust)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
