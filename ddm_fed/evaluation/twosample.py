"""Whether a classifier can tell samples from real images: the classifier two-sample test."""

import math
import warnings
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddm_fed.evaluation.intervals import LEVEL, Proportion, proportion

Kind = Literal["linear", "mlp"]
FOLDS = 5
HIDDEN, EPOCHS = 20, 100  # those of Lopez-Paz and Oquab, section 3


class TwoSample(NamedTuple):
    """Cross-validated accuracy of telling samples from real images; 0.5 is what chance does.

    `p_value`: how often chance alone would do as well, by the normal limit. Classifiers of folds
    share images, so accuracies of equal distributions spread about 1.3 times as far as those of as
    many independent trials. Interval and p-value allow for 1.5 times, by Nadeau and Bengio's
    correction, so they are on the careful side.
    """

    accuracy: Proportion
    p_value: float
    fold_deviation: float
    per_side: int
    folds: int
    classifier: Kind


def two_sample_test(
    real: NDArray[np.floating],
    drawn: NDArray[np.floating],
    *,
    generator: np.random.Generator,
    kind: Kind = "linear",
    folds: int = FOLDS,
) -> TwoSample:
    """Returns how well a classifier of features tells samples from real images it was not shown.

    Args:
        real: `(N, F)`.
        drawn: `(M, F)`.
        generator: Chooses as many of the larger set as the smaller has, the folds, and the weights.
        kind: Logistic regression, or a network with one hidden layer of 20.
        folds: Parts; each is predicted by a classifier of the others.

    Raises:
        ValueError: fewer images of a side than twice the folds.

    Source: Lopez-Paz and Oquab 2017, arXiv:1610.06545, section 3; Nadeau and Bengio 2003,
        doi:10.1023/A:1024068626366, the corrected resampled variance.
    """
    size = min(len(real), len(drawn))
    if size < 2 * folds:
        raise ValueError(f"{folds} folds take {2 * folds} images of each kind, got {size}")
    from scipy.stats import norm
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    chosen = [rows[generator.permutation(len(rows))[:size]] for rows in (real, drawn)]
    x = np.concatenate(chosen).astype(np.float64)
    y = np.repeat([0, 1], size)
    split_seed, seed = (int(n) for n in generator.integers(2**31, size=2))
    right = []
    for learn, judge in StratifiedKFold(folds, shuffle=True, random_state=split_seed).split(x, y):
        inner = (
            LogisticRegression(max_iter=1000)
            if kind == "linear"
            else MLPClassifier((HIDDEN,), max_iter=EPOCHS, random_state=seed)
        )
        model = make_pipeline(StandardScaler(), inner)
        with warnings.catch_warnings():
            # the number of epochs is the protocol; weights that still move are no error
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x[learn], y[learn])
        right.append(model.predict(x[judge]) == y[judge])
    spread = math.sqrt(1 + folds / (folds - 1))
    hits = int(sum(part.sum() for part in right))
    widened = 1 - 2 * norm.sf(spread * norm.isf((1 - LEVEL) / 2))
    accuracy = proportion(hits, 2 * size, level=widened)
    z = (accuracy.value - 0.5) * 2 * math.sqrt(2 * size) / spread
    return TwoSample(
        accuracy=accuracy,
        p_value=float(norm.sf(z)),
        fold_deviation=float(np.std([part.mean() for part in right], ddof=1)),
        per_side=size,
        folds=folds,
        classifier=kind,
    )
