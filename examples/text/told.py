"""Says how many samples show what their prompt asked for, as a classifier of real digits tells.

python examples/text/told.py samples
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.svm import SVC


def main() -> None:
    """Prints one line for each prompt, and the mean."""
    digits = load_digits()
    judge = SVC(gamma=0.001).fit(digits.data, digits.target)
    with np.load(Path(sys.argv[1]) / "samples.npz") as archive:
        images, asked = archive["images"], archive["prompts"]
    told = judge.predict(images.reshape(len(images), -1) / 255 * 16)
    for digit in range(10):
        right = (told[asked == digit] == digit).mean()
        print(f"prompt {digit}: {right:.2f} of its samples are taken for a {digit}")
    print(f"of all {len(told)} samples: {(told == asked).mean():.2f}; by chance 0.10")


if __name__ == "__main__":
    main()
