"""How many frequencies and components a release should have: a rule of public numbers alone.

A covariance of D coefficients is sent as directions whose noise shows eigenvalues up to an edge of
sqrt(2 D) s by itself, where s is the deviation of a number. Directions have eigenvalues of 1 / D on
average. So

    load = edge / (1 / D) = D sqrt(2 D) C / (mu sqrt(share) n sqrt(K))

says how deep the spectrum of a Gaussian drowns: mu = 1 / sigma of all that is released, `share` the
part of the privacy that directions take, n the units of a cell at a site, C its components and K
the sites, whose errors average out in the pool of their samples.

What an image looks like is decided by its frequencies, and those that drown are flattened by their
known noise: so they are kept up to a large load. Components are finer than a class only where each
is known well. Both limits were chosen on scikit-learn's digits and on MedNIST; docs/adr/0035.
"""

import math
from typing import NamedTuple

from ddm_fed.mixture.messages import DIRECTIONS, FIRST_ROUND
from ddm_fed.privacy import gaussian_events

# more do not pay: benchmarks/results/mixture_frequencies_cpu_20261129.md
FREQUENCIES = (16, 25, 36, 49, 64, 81, 100)
COMPONENTS = (1, 2, 4, 8)
MOST_LOAD, MOST_LOAD_OF_COMPONENTS = 20.0, 3.0
OF_PIXELS = 0.8  # the highest frequencies of small images are noise of the camera
MOST_COEFFICIENTS = 200  # of all channels: what is sent grows with the square


class MixtureChoice(NamedTuple):
    """What a plan's router should say.

    Attributes:
        frequencies: Per channel.
        components: Of a class.
        load: Of that choice; see the module.
    """

    frequencies: int
    components: int
    load: float

    def toml(self) -> str:
        """Returns the lines that belong into `[router]`."""
        return f"frequencies = {self.frequencies}\ncomponents = {self.components}"


def mixture_rule(
    epsilon: float,
    delta: float,
    units: int,
    classes: int = 0,
    channels: int = 1,
    *,
    pixels: int,
    sites: int = 1,
) -> MixtureChoice:
    """Returns the most frequencies, and then the most components, that the noise leaves useful.

    Args:
        epsilon: Of the whole release.
        delta: At which it holds.
        units: A public guess of the images (or patients) of a typical site; never a count.
        classes: Of the plan; 0 where it has none.
        channels: Of an image.
        pixels: Of a channel.
        sites: How many sites resemble one another; 1 if each stands alone.

    Example:
        >>> mixture_rule(10, 1e-5, 50_000, classes=10, pixels=28 * 28).toml().splitlines()
        ['frequencies = 100', 'components = 8']
    """
    (event,) = gaussian_events(epsilon, delta, [1.0])
    of_cell = units / max(1, classes)
    most = min(MOST_COEFFICIENTS / channels, OF_PIXELS * pixels)
    allowed = [count for count in FREQUENCIES if count <= most] or [max(1, int(most))]

    def load(frequencies: int, components: int) -> float:
        d = frequencies * channels
        share = DIRECTIONS * (1 - FIRST_ROUND) if components > 1 else DIRECTIONS
        noise = float(event.noise_multiplier) / math.sqrt(share * sites)
        return d * math.sqrt(2 * d) * components * noise / of_cell

    bearable = [count for count in allowed if load(count, 1) <= MOST_LOAD] or allowed[:1]
    frequencies = bearable[-1]
    components = max(
        count
        for count in COMPONENTS
        if count == 1 or load(frequencies, count) <= MOST_LOAD_OF_COMPONENTS
    )
    return MixtureChoice(frequencies, components, load(frequencies, components))
