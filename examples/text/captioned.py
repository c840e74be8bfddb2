"""Writes the pictures of two hospitals, each with a caption: scikit-learn's digits.

    python examples/text/captioned.py FOLDER

An archive for `--data` holds `images` and, for each, a string in `captions`; an empty one means
that nothing is said. The hospitals have every other picture, and words of their own.
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
PHRASES = {
    "north": ["a handwritten {}", "{}, in pencil"],
    "south": ["a handwritten {}", "{}, written by hand"],
}


def main() -> None:
    """Writes north.npz and south.npz."""
    digits = load_digits()
    images = (digits.images * (255 / 16)).astype(np.uint8)
    for place, (name, phrases) in enumerate(PHRASES.items()):
        own = slice(place, None, len(PHRASES))
        captions = [
            phrases[number % len(phrases)].format(WORDS[digit])
            for number, digit in enumerate(digits.target[own])
        ]
        captions[:5] = [""] * 5  # of these nothing is said
        path = Path(sys.argv[1]) / f"{name}.npz"
        np.savez_compressed(path, images=images[own], captions=np.array(captions))
        print(f"{path}: {len(captions)} pictures, such as {captions[5]!r}")


if __name__ == "__main__":
    main()
