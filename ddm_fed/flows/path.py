"""The path from an image to noise, and THE time convention of this project, stated here once.

t = 0 is data, t = 1 is noise. x_t = alpha_t x_0 + sigma_t eps, with alpha_t = 1 - t and
sigma_t = t on the linear path. Its velocity is v = dx_t/dt = eps - x_0, and sampling integrates
from t = 1 down to t = 0.

Source: McAllister et al. 2025, arXiv:2501.05450, section 3.
"""

from torch import Tensor


def alpha(t: Tensor) -> Tensor:
    """Returns how much of the image is left at `t`, same shape as `t`."""
    return 1 - t


def sigma(t: Tensor) -> Tensor:
    """Returns the standard deviation of the noise at `t`, same shape as `t`."""
    return t


def interpolate(x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Returns x_t = (1 - t) x_0 + t eps.

    Args:
        x_0: Images, `(B, ...)`.
        eps: Standard normal noise, same shape.
        t: Times in [0, 1], `(B,)`.
    """
    t = _like(t, x_0)
    return alpha(t) * x_0 + sigma(t) * eps


def velocity(x_0: Tensor, eps: Tensor) -> Tensor:
    """Returns the velocity dx_t/dt = eps - x_0 of the straight path; the same at every t."""
    return eps - x_0


def _like(t: Tensor, x: Tensor) -> Tensor:
    return t.reshape(-1, *(1,) * (x.ndim - 1))
