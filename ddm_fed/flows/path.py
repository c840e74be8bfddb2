"""Paths from an image to noise, and THE time convention of this project, stated here once.

t = 0 is data, t = 1 is noise, and x_t = alpha_t x_0 + sigma_t eps. The velocity is
v = dx_t/dt = alpha'_t x_0 + sigma'_t eps, and sampling integrates from t = 1 down to t = 0.

| path   | alpha_t                | sigma_t             | alpha / sigma at t = 1 |
| ------ | ---------------------- | ------------------- | ---------------------- |
| linear | 1 - t                  | t                   | 0                      |
| cosine | cos(pi t / 2)          | sin(pi t / 2)       | 0                      |
| vp     | exp(-B(t) / 2)         | sqrt(1 - alpha_t^2) | 0.0066                 |

with B(t) = 0.1 t + 9.95 t^2, the integral of DDPM's linear schedule of beta.

An ensemble is integrated on the linear path; `convert` brings experts of other paths there.

Source: McAllister et al. 2025, arXiv:2501.05450, section 3 (linear, and the direction of time);
Nichol and Dhariwal 2021, arXiv:2102.09672 (cosine, without its offset); Song et al. 2021,
arXiv:2011.13456, appendix C (vp).
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from ddm_fed.records import PathName

BETA_MIN, BETA_MAX = 0.1, 20.0


class Path(Protocol):
    """How much of image and of noise is in x_t. Every function keeps the shape of its argument."""

    def alpha(self, t: Tensor) -> Tensor:
        """Returns the factor of the image."""
        ...

    def sigma(self, t: Tensor) -> Tensor:
        """Returns the factor of the noise: its standard deviation."""
        ...

    def alpha_rate(self, t: Tensor) -> Tensor:
        """Returns d alpha / dt."""
        ...

    def sigma_rate(self, t: Tensor) -> Tensor:
        """Returns d sigma / dt."""
        ...

    def time_of(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Returns the time at which this path has the ratio `alpha` / `sigma`; its inverse."""
        ...


class LinearPath:
    """The straight path of flow matching.

    Example:
        >>> path = LinearPath()
        >>> t = torch.tensor([0.0, 0.25, 1.0])
        >>> path.alpha(t).tolist(), path.sigma(t).tolist()
        ([1.0, 0.75, 0.0], [0.0, 0.25, 1.0])
        >>> velocity(torch.full((3, 1), 2.0), torch.full((3, 1), 5.0), t, path)[:, 0].tolist()
        [3.0, 3.0, 3.0]
    """

    def alpha(self, t: Tensor) -> Tensor:
        """Returns 1 - t."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """Returns t."""
        return t

    def alpha_rate(self, t: Tensor) -> Tensor:
        """Returns -1."""
        return -torch.ones_like(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        """Returns 1."""
        return torch.ones_like(t)

    def time_of(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Returns sigma / (alpha + sigma)."""
        return sigma / (alpha + sigma)


class CosinePath:
    """The quarter circle: alpha^2 + sigma^2 = 1, at constant speed."""

    def alpha(self, t: Tensor) -> Tensor:
        """Returns cos(pi t / 2)."""
        return torch.cos(math.pi / 2 * t)

    def sigma(self, t: Tensor) -> Tensor:
        """Returns sin(pi t / 2)."""
        return torch.sin(math.pi / 2 * t)

    def alpha_rate(self, t: Tensor) -> Tensor:
        """Returns -pi/2 sin(pi t / 2)."""
        return -math.pi / 2 * self.sigma(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        """Returns pi/2 cos(pi t / 2)."""
        return math.pi / 2 * self.alpha(t)

    def time_of(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Returns the angle of (alpha, sigma) as a part of the quarter circle."""
        return torch.atan2(sigma, alpha) * 2 / math.pi


class VpPath:
    """The variance-preserving path of DDPM in continuous time."""

    def alpha(self, t: Tensor) -> Tensor:
        """Returns exp(-B(t) / 2)."""
        return torch.exp(-_beta_integral(t) / 2)

    def sigma(self, t: Tensor) -> Tensor:
        """Returns sqrt(1 - exp(-B(t)))."""
        return torch.sqrt(-torch.expm1(-_beta_integral(t)))

    def alpha_rate(self, t: Tensor) -> Tensor:
        """Returns -beta(t) alpha / 2."""
        return -_beta(t) / 2 * self.alpha(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        """Returns beta(t) alpha^2 / (2 sigma); infinite at t = 0."""
        return _beta(t) / 2 * self.alpha(t).square() / self.sigma(t)

    def time_of(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Returns the root of B(t) = log(1 + (sigma / alpha)^2), a quadratic in t."""
        integral = torch.log1p((sigma / alpha).square())
        # the form of the quadratic's root that loses no digits at small t
        slope = BETA_MAX - BETA_MIN
        return 2 * integral / (BETA_MIN + torch.sqrt(BETA_MIN**2 + 2 * slope * integral))


def _beta(t: Tensor) -> Tensor:
    return BETA_MIN + (BETA_MAX - BETA_MIN) * t


def _beta_integral(t: Tensor) -> Tensor:
    return BETA_MIN * t + (BETA_MAX - BETA_MIN) / 2 * t.square()


LINEAR: Path = LinearPath()
_PATHS: dict[PathName, Path] = {"linear": LINEAR, "cosine": CosinePath(), "vp": VpPath()}


def path_named(name: PathName) -> Path:
    """Returns the path a plan calls `name`."""
    return _PATHS[name]


def interpolate(x_0: Tensor, eps: Tensor, t: Tensor, path: Path = LINEAR) -> Tensor:
    """Returns x_t = alpha_t x_0 + sigma_t eps.

    Args:
        x_0: Images, `(B, ...)`.
        eps: Standard normal noise, same shape.
        t: Times in [0, 1], `(B,)`.
        path: Which path.
    """
    t = like(t, x_0)
    return path.alpha(t) * x_0 + path.sigma(t) * eps


def velocity(x_0: Tensor, eps: Tensor, t: Tensor, path: Path = LINEAR) -> Tensor:
    """Returns dx_t/dt = alpha'_t x_0 + sigma'_t eps; arguments as for `interpolate`."""
    t = like(t, x_0)
    return path.alpha_rate(t) * x_0 + path.sigma_rate(t) * eps


def like(t: Tensor, x: Tensor) -> Tensor:
    """Returns times `(B,)`, or a scalar, in a shape that broadcasts over `x (B, ...)`."""
    return t.reshape(-1, *(1,) * (x.ndim - 1))
