"""From what a network predicts, on the path it was trained on, to the linear path's velocity.

A state x_t of the linear path and a state of another path that has the same ratio of image to
noise differ by a factor only. So the network is asked at the time of its own path where alpha /
sigma is the same (the signal-to-noise ratio matches), with the state rescaled to that path, and
what it says of image and noise is used as it is. This is exact; no value is clamped.

Two predictions end where the linear velocity needs the other one by a division by zero, so such
an expert is asked only within a range of times:

| prediction        | velocity needs          | range of linear time                           |
| ----------------- | ----------------------- | ---------------------------------------------- |
| velocity          | nothing more            | all of [0, 1]; without 0 for vp                |
| noise             | x_0 = (x - s eps) / a   | up to a / s = LEAST_RATIO, as vp itself ends   |
| image             | eps = (x - a x_0) / s   | above 0, where no solver here asks             |

The path vp ends at a / s = 0.0066 whatever is predicted.

Source: Karras et al. 2022, arXiv:2206.00364, appendix C (rescaling between paths).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ddm_fed.flows.condition import Condition
from ddm_fed.flows.path import LINEAR, Path, like, path_named
from ddm_fed.records import PathName, Prediction

VelocityModel = Callable[[Tensor, Tensor, Condition | None], Tensor]
"""`(x_t (B, C, H, W), t (B,), condition or None) -> velocity (B, C, H, W)`."""

Network = VelocityModel
"""The same arguments; what comes back depends on what the network was trained to predict."""

LEAST_RATIO = 0.0066
"""alpha / sigma at the end of DDPM's schedule: no network was trained on noisier states."""


class Expert:
    """A network of any path and prediction, as a velocity on the linear path.

    Args:
        network: What was trained.
        path: The path it was trained on.
        prediction: What it returns.
    """

    def __init__(
        self, network: Network, path: PathName = "linear", prediction: Prediction = "velocity"
    ) -> None:
        self.network = network
        self._path_name, self._path, self._prediction = path, path_named(path), prediction

    @property
    def largest_time(self) -> float:
        """The largest linear time it may be asked at; 1 for most."""
        if self._path_name == "vp" or self._prediction == "noise":
            return 1 / (1 + LEAST_RATIO)
        return 1.0

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Returns the velocity of the linear path, `(B, C, H, W)`.

        Args:
            x_t: States of the linear path, `(B, C, H, W)`.
            t: Times of the linear path, `(B,)`.
            condition: What the images are asked to be, or None.
        """
        if self._path_name == "linear" and self._prediction == "velocity":
            return self.network(x_t, t, condition)
        if self._path_name == "linear":
            own_time, own_state = t, x_t
        else:
            alpha, sigma = LINEAR.alpha(t), LINEAR.sigma(t)
            own_time = self._path.time_of(alpha, sigma)
            # the larger of the two factors, so that neither end divides zero by zero
            own_alpha, own_sigma = self._path.alpha(own_time), self._path.sigma(own_time)
            scale = torch.where(alpha > sigma, own_alpha / alpha, own_sigma / sigma)
            own_state = like(scale, x_t) * x_t
        answer = self.network(own_state, own_time, condition)
        x_0, eps = estimates(answer, own_state, own_time, self._path, self._prediction)
        if self._prediction == "noise":
            return (eps - x_t) / like(LINEAR.alpha(t), x_t)
        if self._prediction == "image":
            return (x_t - x_0) / like(LINEAR.sigma(t), x_t)
        return eps - x_0


def estimates(
    answer: Tensor, x_t: Tensor, t: Tensor, path: Path, prediction: Prediction
) -> tuple[Tensor, Tensor]:
    """Returns image and noise that a network's `answer` at `(x_t, t)` of `path` implies.

    Solved from x_t = alpha x_0 + sigma eps and what was predicted; `(B, ...)` each. Not finite
    where the prediction does not determine them (see the table above).
    """
    t = like(t, x_t)
    alpha, sigma = path.alpha(t), path.sigma(t)
    match prediction:
        case "noise":
            return (x_t - sigma * answer) / alpha, answer
        case "image":
            return answer, (x_t - alpha * answer) / sigma
        case "velocity":
            alpha_rate, sigma_rate = path.alpha_rate(t), path.sigma_rate(t)
            scale = alpha * sigma_rate - sigma * alpha_rate
            x_0 = (sigma_rate * x_t - sigma * answer) / scale
            eps = (alpha * answer - alpha_rate * x_t) / scale
            return x_0, eps
