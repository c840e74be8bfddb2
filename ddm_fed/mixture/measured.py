"""What samples of a site's mixture were worth in a study, by images and epsilon.

The figures are those of `benchmarks/results/private_mixtures_cpu_20261129.md`: Fashion-MNIST, ten
classes, one site, frequencies and components by `mixture_rule`; accuracy on real test images of a
small classifier that was trained on 10,000 samples alone. On other images the values are others;
how they fall with fewer images and less epsilon is what a site can take from them.
"""

from typing import NamedTuple

REAL = "0.884"  # of the same classifier, trained on 20,000 real images
EPSILONS = ("0.5", "1", "2", "4", "10")
MEASURED = {
    50_000: ("0.795", "0.807", "0.816", "0.819", "0.833"),
    5_000: ("0.593", "0.669", "0.731", "0.785", "0.794"),
    1_000: ("0.292", "0.480", "0.597", "0.666", "0.715"),
    300: ("0.100", "0.064", "0.294", "0.493", "0.614"),
}


class Measured(NamedTuple):
    """A row and column of the study, neither above what a site has.

    Attributes:
        images: Of the studied site.
        epsilon: Of its release.
        accuracy: Of a classifier of its samples.
    """

    images: int
    epsilon: str
    accuracy: str


def measured(units: int, epsilon: float) -> Measured | None:
    """Returns what was measured of a site with at most these units and epsilon; None if nothing.

    Args:
        units: Images or patients.
        epsilon: Of the release.

    Example:
        >>> measured(7_000, 2.5)
        Measured(images=5000, epsilon='2', accuracy='0.731')
    """
    images = max((count for count in MEASURED if count <= units), default=None)
    columns = [at for at, level in enumerate(EPSILONS) if float(level) <= epsilon]
    if images is None or not columns:
        return None
    return Measured(images, EPSILONS[columns[-1]], MEASURED[images][columns[-1]])
