"""Gives every hospital pictures of its own kind: of MedNIST, or drawn by a formula.

    python examples/hospitals/pictures.py FOLDER [--data FILE.npz | --data MedNIST/]

writes FOLDER/hospital-1.npz and so on, private to each, and FOLDER/public.npz, which no hospital
has: what is measured is measured with these. README.md here says what --data may be.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32
SIZES = (1.0, 0.75, 0.5, 0.4, 0.3, 0.2)  # of the hospitals, in parts of --most
PUBLIC = 0.125  # of each kind, in parts of --most
Kinds = dict[str, np.ndarray]  # name to (N, 32, 32) uint8


def main() -> None:
    """Divides the kinds among the hospitals."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--hospitals", type=int, default=len(SIZES))
    parser.add_argument("--most", type=int, default=4000, help="pictures of the largest hospital")
    options = parser.parse_args()
    held_back = round(PUBLIC * options.most)
    if options.data is None:
        kinds = {kind: draw(kind, options.most + held_back) for kind in SHAPES}
    else:
        kinds = read(options.data, options.most + held_back)
    options.folder.mkdir(parents=True)
    public: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for number in range(1, options.hospitals + 1):
        kind, images = list(kinds.items())[number - 1]
        size = SIZES[number - 1]  # of the public ones too: kinds are as frequent there as here
        own, rest = images[:-held_back], images[-held_back:]
        own = own[: round(size * options.most)]
        for part, half in (("train", rest[::2]), ("test", rest[1::2])):
            public[part].append(half[: round(size * len(half))])
        np.savez_compressed(options.folder / f"hospital-{number}.npz", images=own)
        print(f"hospital-{number}: {len(own)} pictures, {kind}")
    parts = {f"{part}_images": np.concatenate(found) for part, found in public.items()}
    for part, found in public.items():
        parts[f"{part}_labels"] = np.repeat(np.arange(len(found)), list(map(len, found)))
    np.savez_compressed(options.folder / "public.npz", **parts)


def read(source: Path, most: int) -> Kinds:
    """Returns the pictures of a folder with one subfolder per kind, or of an archive.

    What an archive has as its test images comes last.
    """
    if source.is_dir():
        folders = sorted(path for path in source.iterdir() if path.is_dir())[: len(SIZES)]
        return {path.name: read_files(sorted(path.iterdir())[:most]) for path in folders}
    with np.load(source) as archive:
        parts = [part for part in ("train", "test") if f"{part}_images" in archive]
        images = np.concatenate([archive[f"{part}_images"] for part in parts])
        labels = np.concatenate([archive[f"{part}_labels"].reshape(-1) for part in parts])
        names = archive["label_names"] if "label_names" in archive else np.unique(labels)
    chosen = np.unique(labels)[: len(SIZES)]
    return {str(names[n]): resized(images[labels == label]) for n, label in enumerate(chosen)}


def read_files(paths: list[Path]) -> np.ndarray:
    """Returns picture files as `(N, 32, 32)`, grey."""
    return np.stack(
        [
            np.asarray(Image.open(path, formats=["JPEG"]).convert("L").resize((SIDE, SIDE)))
            for path in paths
        ]
    )


def resized(images: np.ndarray) -> np.ndarray:
    """Returns pictures as `(N, 32, 32)`, grey."""
    if images.shape[1:] == (SIDE, SIDE):
        return images
    return np.stack(
        [np.asarray(Image.fromarray(each).convert("L").resize((SIDE, SIDE))) for each in images]
    )


# Pictures by formula: soft ellipses, a little elsewhere in every picture. An ellipse is its centre
# (x, y) and half axes, in parts of the picture, and how much brighter it makes what it covers.
Ellipse = tuple[float, float, float, float, float]
BODY: Ellipse = (0.5, 0.5, 0.42, 0.34, 0.45)
SHAPES: dict[str, list[Ellipse]] = {
    "abdomen": [BODY, (0.35, 0.42, 0.16, 0.12, 0.25), (0.62, 0.5, 0.1, 0.1, -0.2),
                (0.5, 0.72, 0.06, 0.06, 0.45)],
    "breast": [(0.28, 0.62, 0.2, 0.26, 0.6), (0.72, 0.62, 0.2, 0.26, 0.6),
               (0.28, 0.66, 0.1, 0.12, -0.25), (0.72, 0.66, 0.1, 0.12, -0.25)],
    "chest film": [(0.5, 0.5, 0.7, 0.7, 0.7), (0.3, 0.5, 0.15, 0.3, -0.5),
                   (0.7, 0.5, 0.15, 0.3, -0.5), (0.58, 0.66, 0.14, 0.14, 0.3)],
    "chest slice": [BODY, (0.3, 0.48, 0.14, 0.2, -0.4), (0.7, 0.48, 0.14, 0.2, -0.4),
                    (0.5, 0.74, 0.06, 0.06, 0.45)],
    "hand": [(0.5, 0.72, 0.2, 0.2, 0.6)]
    + [(0.26 + 0.12 * n, 0.32 + 0.03 * (n - 2) ** 2, 0.045, 0.24, 0.6) for n in range(5)],
    "head": [(0.5, 0.5, 0.34, 0.42, 0.9), (0.5, 0.5, 0.29, 0.37, -0.5),
             (0.45, 0.48, 0.05, 0.14, -0.25), (0.55, 0.48, 0.05, 0.14, -0.25)],
}  # fmt: skip


def draw(kind: str, count: int) -> np.ndarray:
    """Returns pictures of a kind, `(count, 32, 32)`: everybody's, since they are nobody's."""
    rng = np.random.default_rng(sum(kind.encode()))
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1)
    size = rng.normal(1, 0.06, (count, 1, 1))
    shift_x, shift_y, turn = rng.normal(0, [[0.03], [0.03], [0.08]], (3, count))[..., None, None]
    picture = np.zeros((count, SIDE, SIDE))
    for centre_x, centre_y, half_x, half_y, light in SHAPES[kind]:
        own = rng.normal(1, 0.08, (2, count, 1, 1))  # no two organs are of one size
        dx, dy = x - centre_x - shift_x, y - centre_y - shift_y
        far_x = (dx + turn * dy) / (half_x * size * own[0])
        far_y = (dy - turn * dx) / (half_y * size * own[1])
        picture += light / (1 + np.exp(np.clip(12 * (np.hypot(far_x, far_y) - 1), -50, 50)))
    picture = picture * rng.normal(1, 0.1, (count, 1, 1)) + rng.normal(0, 0.02, picture.shape)
    return (255 * np.clip(picture, 0, 1)).astype(np.uint8)


if __name__ == "__main__":
    main()
