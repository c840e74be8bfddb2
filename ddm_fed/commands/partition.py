"""`partition` of both programs: one owner's images as islands that train apart."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddm_fed import console
from ddm_fed.commands.options import JsonOption, part_of
from ddm_fed.errors import DataError, OptionError, PlanError, StateError, guess

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ddm_fed.partition import Describe, MappedImages, Shard

COSINES, RANDOM = "cosines", "random"
LEAST_SHARE = 0.2  # of an even share: an island below it learns little
# the line below [training]: heads and central images have a `batch_size` of their own
BATCH_LINE = re.compile(
    r"(?m)(^[ \t]*\[[ \t]*training[ \t]*\].*\n(?:(?![ \t]*\[).*\n)*?"
    r"[ \t]*batch_size[ \t]*=[ \t]*)[0-9_]+\b"
)


def partition(
    images: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGES",
            help="Images of one size: an .npy with NAME.labels.npy beside it, read from the disk "
            "however large it is, or an .npz with `images`, or MedMNIST's `train_images`.",
            exists=True,
            dir_okay=False,
        ),
    ],
    islands: Annotated[
        int, typer.Option(help="Number of islands, each with an expert.", min=2, max=1000)
    ],
    out: Annotated[Path, typer.Option(help="Folder to make. A stopped run goes on in it.")],
    plan: Annotated[
        Path | None,
        typer.Option(
            help="plan.toml of one network for all images. The islands' plan is written beside "
            "the shards: the same, with the batch divided by their number.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            help="What images are clustered by: cosines; clip or timm:NETWORK, which photographs "
            "need; or random, which is the control."
        ),
    ] = COSINES,
    weights: Annotated[
        Path | None,
        typer.Option(help="Safetensors file of that network.", exists=True, dir_okay=False),
    ] = None,
    frequencies: Annotated[
        int | None,
        typer.Option(
            help="Lowest frequencies per channel of cosines.", min=1, max=4096, show_default="64"
        ),
    ] = None,
    given: Annotated[
        Path | None,
        typer.Option(
            "--centres",
            help="centres.npy of a division of public images, by the same features: every unit of "
            "privacy goes where most of its images are nearest, and nothing is learned from these "
            "images. A site that promises privacy divides its images so.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    fine: Annotated[
        int | None,
        typer.Option(help="Number of fine clusters, at most.", min=2, show_default="1024"),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**32 - 1, help="Decides where clusters start.", show_default="0"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images described at once.", min=1)] = 256,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Describe the I-th of N parts of the images only, such as 3/8: one machine or job "
            "each. The same command without it then checks the parts and puts them together, in "
            "the folder that they share or into whose features/ all .part-* were copied.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Divide one owner's images among islands, by clusters of features or by chance.

    Every image is in one island. Memory does not grow with their number. Each shard is what
    `ddm-site train --data` takes; examples/islands runs them.

    This looks at all images, so it is for one owner: of several machines, or a site that submits
    several experts. Institutions that may not pool their images are islands already.

    Example: ddm-coord partition images.npy --islands 4 --out islands --plan plan.toml
    """
    import numpy as np

    from ddm_fed.partition import (
        CHANCE,
        FINE,
        GIVEN_CENTRES,
        OWN_CLUSTERS,
        at_random,
        coarse_centres,
        described,
        nearest,
        open_images,
        whole_units,
        write_shards,
    )
    from ddm_fed.storage.files import write_atomically

    target = out / "shards"
    if target.exists():
        raise StateError(f"{target} exists already", hint="choose another --out, or delete it")
    found = open_images(images)
    if not len(found):
        raise DataError(f"{images} holds no images", hint="check the path")
    if len(found) < islands:
        raise OptionError(
            f"--islands {islands}: there are {len(found)} images", hint="choose fewer islands"
        )
    _require_learned(features, given, fine, seed)
    if fine is not None and fine < islands:
        raise OptionError(
            f"--fine {fine}: {islands} islands are made of no fewer fine clusters",
            hint="leave --fine out, or choose more",
        )
    chosen_part = part_of(part)
    describe = _describe(found, features, weights, frequencies)
    centres = None if given is None else _given(given, islands, describe)
    if describe is None and chosen_part is not None:
        raise OptionError(
            "--part: --features random describes no image, so there is nothing to spread",
            hint="leave --part out",
        )
    text = None if plan is None else _divided(plan, islands, found)
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    if describe is None:
        by, chosen = CHANCE, at_random(len(found), islands, seed or 0)
    else:
        by = OWN_CLUSTERS if centres is None else GIVEN_CENTRES
        own = len(found) if chosen_part is None else -(-len(found) // chosen_part[1])
        with console.advancing("describing", own, "images") as advance:
            seen = described(
                found,
                images,
                describe,
                out / "features",
                batch_size=batch_size,
                part=chosen_part,
                advance=advance,
            )
        if seen is None:
            console.say(
                f"part {part} of {len(found):,} images is described in {out}. When all parts are, "
                "run the same without --part"
            )
            return
        with console.waiting("clustering"):
            if centres is None:
                centres = coarse_centres(seen, islands, seed or 0, fine or FINE)
            chosen = nearest(seen, centres)
        np.save(out / "centres.npy", centres, allow_pickle=False)
    if "units" in found.beside:
        chosen = whole_units(chosen, found.beside["units"])
    if text is not None:  # before the shards, which say that all is done
        write_atomically(out / "plan.toml", text.encode())
    with console.advancing("writing", len(found), "images") as copied:
        shards = write_shards(found, chosen, islands, target, by=by, advance=copied)
    _show(shards, len(found), out, by=by, planned=text is not None, as_json=as_json)


def _require_learned(features: str, given: Path | None, fine: int | None, seed: int | None) -> None:
    """Refuses what decides about clusters where none are learned."""
    if fine is not None and (given is not None or features == RANDOM):
        raise OptionError(
            "--fine belongs to clusters that are learned from these images", hint="leave --fine out"
        )
    if seed is not None and given is not None:
        raise OptionError(
            "--seed decides nothing where --centres are given", hint="leave --seed out"
        )


def _given(path: Path, islands: int, describe: "Describe | None") -> "NDArray[Any]":
    """Returns public centres, `(K, E)`, that fit the number of islands and the features."""
    import numpy as np

    from ddm_fed.storage.files import UNREADABLE_ARCHIVE

    if describe is None:
        raise OptionError("--centres: --features random has no centres", hint="leave --centres out")
    try:
        centres = np.load(path, allow_pickle=False)
    except UNREADABLE_ARCHIVE as error:
        raise DataError(
            f"{path} cannot be read: {error}", hint="give the centres.npy that `partition` wrote"
        ) from None
    if not isinstance(centres, np.ndarray) or centres.dtype.kind != "f" or centres.ndim != 2:
        raise DataError(
            f"{path} holds no centres", hint="give the centres.npy that `partition` wrote"
        )
    if centres.shape != (islands, describe.dimension) or not np.isfinite(centres).all():
        count, width = centres.shape
        raise OptionError(
            f"--centres: {path} holds {count} centres of {width} numbers, and {islands} islands "
            f"by {describe.name} need {islands} finite ones of {describe.dimension}",
            hint="give the --islands, --features and --frequencies of the division they are from",
        )
    return np.asarray(centres, np.float32)


def _describe(
    found: "MappedImages", features: str, weights: Path | None, frequencies: int | None
) -> "Describe | None":
    """Returns what images are clustered by; None if by nothing."""
    from ddm_fed.embedding import open_embedder
    from ddm_fed.partition import Describe, cosines
    from ddm_fed.storage.digests import sha256_of

    network = features == "clip" or features.startswith("timm:")
    if not network and features not in (COSINES, RANDOM):
        raise OptionError(
            f"--features {features} is not known{guess(features, (COSINES, 'clip', RANDOM))}",
            hint="give cosines, clip, timm:NETWORK or random",
        )
    if network != (weights is not None):
        missing = "is missing: the network's file" if network else "belongs to clip and timm"
        raise OptionError(
            f"--weights {missing}", hint="nothing is downloaded; docs/routers.md says how to get it"
        )
    if frequencies is not None and features != COSINES:
        raise OptionError(
            "--frequencies belongs to --features cosines", hint="leave --frequencies out"
        )
    if features == RANDOM:
        return None
    if weights is not None:
        return Describe.of(open_embedder(features, weights, sha256_of(weights)))
    _, height, width = found.shape
    chosen = frequencies or min(64, height * width)
    if chosen > height * width:
        raise OptionError(
            f"--frequencies {chosen}: a channel of these images has {height * width} pixels",
            hint="choose fewer",
        )
    return cosines(found.shape, chosen)


def _require_classes(labels: "NDArray[Any]", classes: Sequence[str], plan: Path) -> None:
    """Refuses labels that islands would refuse, before any image is described."""
    import unicodedata

    import numpy as np

    if labels.size != max(labels.shape, default=1) or labels.dtype.kind not in "iuU":
        raise DataError(
            f"the images have labels of {labels.dtype} and shape {labels.shape}, and islands take "
            "one whole number or name for each image",
            hint="if they are one-hot, store labels.argmax(axis=1)",
        )
    names = {unicodedata.normalize("NFC", name) for name in classes}
    strange = [
        value
        for value in np.unique(labels).tolist()
        if not (
            unicodedata.normalize("NFC", value.strip()) in names
            if isinstance(value, str)
            else 0 <= value < len(classes)
        )
    ]
    if strange:
        raise DataError(
            f"the images have labels that are no classes of {plan}: "
            f"{', '.join(map(repr, strange[:5]))}{', …' if len(strange) > 5 else ''}",
            hint=f"number them from 0 to {len(classes) - 1} in the order of `data.classes`, or "
            "write names of classes",
        )


def _divided(plan: Path, islands: int, images: "MappedImages") -> str:
    """Returns the text of a plan with its batch divided by the number of islands.

    Raises:
        DataError: the plan needs labels or captions, and the images have none.
        OptionError: the batch cannot be divided, or its line is not found.
    """
    from ddm_fed.records import read_plan_file, read_plan_toml

    agreed, text = read_plan_file(plan), plan.read_text(encoding="utf-8-sig")
    needed = {"class": "labels", "text": "captions"}.get(agreed.data.conditioning)
    if needed is not None and needed not in images.beside:
        raise DataError(
            f"the images have no {needed}, and `data.conditioning` of {plan} needs them",
            hint=f"add `{needed}` to the .npz, or NAME.{needed}.npy beside the .npy",
        )
    if needed == "labels":
        _require_classes(images.beside["labels"], agreed.data.classes, plan)
    size = agreed.training.batch_size
    if size % islands:
        raise OptionError(
            f"--islands {islands}: `training.batch_size` {size} cannot be divided by it",
            hint="the islands together do the arithmetic of one network if each has an equal part "
            "of its batch: choose a batch size that is a multiple",
        )
    divided = BATCH_LINE.sub(rf"\g<1>{size // islands}", text)
    expected = agreed.model_copy(
        update={
            "training": agreed.training.model_copy(update={"batch_size": size // islands}),
        }
    )
    try:
        understood = read_plan_toml(divided) == expected
    except PlanError:  # such as half of 0x40
        understood = False
    if not understood:
        raise OptionError(
            f"--plan {plan}: its line of `training.batch_size` was not understood",
            hint=f"write a line of its own, `batch_size = {size}`, below [training]",
        )
    return divided


def _show(
    shards: "list[Shard]", total: int, out: Path, *, by: str, planned: bool, as_json: bool
) -> None:
    from ddm_fed.partition import GIVEN_CENTRES

    even = total / len(shards)
    small = [shard.name for shard in shards if shard.images < LEAST_SHARE * even]
    if as_json:
        console.show_json(
            {
                "divided_by": by,
                "shards": [{"file": str(s.file), "images": s.images} for s in shards],
                "small": small,
            }
        )
        return
    console.show_table(
        f"{total:,} images on {len(shards)} islands",
        ["island", "images", "share", "file"],
        [
            [shard.name, f"{shard.images:,}", f"{shard.images / total:.3f}", str(shard.file)]
            for shard in shards
        ],
    )
    if small:
        console.say(
            f"WARNING: {', '.join(small)} has less than a fifth of an even share: its expert sees "
            "the same images again and again. Choose fewer --islands, or other --features."
        )
    if planned:
        console.say(f"The islands' plan is {out / 'plan.toml'}: its batch is divided among them.")
        console.next_step(console.typed("ddm-coord", "publish", out / "plan.toml"))
    elif by == GIVEN_CENTRES:
        console.next_step(
            "make a site for every part, and train it on its file: "
            + console.typed("ddm-site", "train", "--data", shards[0].file)
        )
    else:
        console.next_step("publish a plan whose batch is divided by the number of islands")
