"""The exact velocity of a Gaussian mixture of images: an expert in closed form.

On the linear path x_t = (1 - t) x_0 + t eps, with a = 1 - t and s = t. If x_0 has coefficients
N(mu, V) in an orthonormal basis that diagonalises V, then those of x_t are N(a mu, a^2 V + s^2),
and with d = z - a mu

    E[v | x_t] = d (s - a V) / (a^2 V + s^2) - mu

coefficient by coefficient, without a division by t. A mixture's velocity is the mean of those of
its components, each weighted by its posterior probability given x_t. Low frequencies have a full
covariance per component; the others are independent, of one variance per class and band.

Shapes: B batch, G classes, C components of a class, D low-frequency coefficients, N = C H W pixels.
"""

import itertools
import math

import torch
from torch import Tensor, nn

from ddm_fed.embedding import dct_basis, dct_matrices, frequency_order
from ddm_fed.flows import NO_CLASS, ClassCondition, Condition
from ddm_fed.mixture.coefficients import band_edges
from ddm_fed.mixture.fit import ImageMixture
from ddm_fed.records import Plan, StatisticsSpec

ROWS_AT_ONCE = 256  # bounds memory: a row has C D numbers for every class it may be of


class MixtureVelocity(nn.Module):
    """E[v | x_t, t, c] of a mixture, `(B, C, H, W), (B,), condition -> (B, C, H, W)`, float32.

    Its tables are buffers that no checkpoint holds: they follow from a site's signed release.

    Args:
        plan: Gives the coefficients and the classes.
        mixture: The site's images, as its release describes them.
        alone: Whether nothing is added to it. Frequencies without a released variance are then 0 in
            an image; beside a network, their velocity is left to the network, from which the
            steep slope of a 0 at small t would be hard to take back.

    Raises:
        TypeError: the plan's sites release counts alone.
    """

    means: Tensor
    variances: Tensor
    axes: Tensor
    log_weights: Tensor
    rest: Tensor
    low: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, plan: Plan, mixture: ImageMixture, *, alone: bool = True) -> None:
        super().__init__()
        self.alone = alone
        spec = plan.router
        if not isinstance(spec, StatisticsSpec):
            raise TypeError("a mixture is made of a mixture router's release")
        self.shape, self.classes = plan.data.shape, len(plan.data.classes)
        channels, height, width = self.shape
        basis = dct_basis(self.shape, spec.frequencies)
        offset = float(spec.centre) * basis.sum(1)  # (D,): coefficients of the constant image
        groups = max(1, self.classes)  # without classes, all components are of one group
        d = len(basis)
        order = frequency_order(height, width)
        low = (torch.arange(channels)[:, None] * height * width + order[: spec.frequencies]).ravel()
        rest = torch.zeros((groups, channels, height * width), dtype=torch.float64)
        if spec.bands:
            of_group = mixture.bands
            if groups == 1:
                part = mixture.weights.sum(1, keepdim=True) / mixture.weights.sum()
                of_group = (part * mixture.bands).sum(0, keepdim=True)
            edges = band_edges(plan)
            for band, (start, end) in enumerate(itertools.pairwise(edges)):
                rest[:, :, order[start:end]] = of_group[:, band, None, None]
        tables = {
            "means": (mixture.means + offset).reshape(groups, -1, d),
            "variances": mixture.variances.reshape(groups, -1, d),
            "axes": mixture.axes.reshape(groups, -1, d, d),
            "log_weights": mixture.weights.reshape(groups, -1).log(),
            "rest": rest.flatten(1),
        }
        tables |= dict(zip(("rows", "columns"), dct_matrices(height, width), strict=True))
        for name, value in tables.items():
            self.register_buffer(name, value.float().contiguous(), persistent=False)
        self.register_buffer("low", low, persistent=False)

    @torch.no_grad()
    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Returns E[v | x_t, t, c], `(B, C, H, W)` float32.

        Args:
            x_t: States of the linear path, `(B, C, H, W)`.
            t: Their times, `(B,)`.
            condition: Classes, or None for any. A caption is of no class: a mixture says the same
                whatever is asked for.

        Raises:
            ValueError: a condition was given to a mixture without classes.
        """
        if isinstance(condition, ClassCondition) and not self.classes:
            raise ValueError("this mixture is unconditional: it takes no condition")
        with torch.autocast(x_t.device.type, enabled=False):
            z = (self.rows @ x_t.float() @ self.columns.T).flatten(1)  # (B, N)
            labels = torch.full((len(z),), NO_CLASS, device=z.device)
            if condition is not None:
                labels = condition.labels
            out = torch.empty_like(z)
            for label in torch.unique(labels).tolist():
                mine = (labels == label).nonzero()[:, 0]
                groups = slice(None) if label == NO_CLASS else slice(label, label + 1)
                for rows in torch.split(mine, ROWS_AT_ONCE):
                    out[rows] = self._of_groups(z[rows], t[rows].float(), groups)
            velocity: Tensor = self.rows.T @ out.reshape(-1, *self.shape) @ self.columns
            return velocity

    def _of_groups(self, z: Tensor, t: Tensor, groups: slice) -> Tensor:
        """Returns the velocity's coefficients `(B, N)` of a mixture of some classes.

        Args:
            z: Coefficients of x_t, `(B, N)`.
            t: Times, `(B,)`.
            groups: Which classes.
        """
        a, s = (1 - t)[:, None], t[:, None]  # (B, 1)
        means, axes = self.means[groups].flatten(0, 1), self.axes[groups].flatten(0, 1)
        variances = self.variances[groups].flatten(0, 1)  # (M, D)
        low = z[:, self.low]  # (B, D)
        apart = low - a * means[:, None]  # (M, B, D)
        along = apart @ axes  # (M, B, D)
        spread = a**2 * variances[:, None] + s**2  # (M, B, D)
        log_p = self.log_weights[groups].flatten()[:, None] - 0.5 * (
            along**2 / spread + spread.log()
        ).sum(2)  # (M, B)
        of_rest = self.rest[groups]  # (G, N)
        rest_spread = a**2 * of_rest[:, None] + s**2  # (G, B, N)
        # where no variance is known, and at t = 0, x_t is its coefficient alone: 0 says nothing
        log_rest = -0.5 * (z**2 / rest_spread + rest_spread.log())
        log_rest[:, :, self.low] = 0.0
        log_rest = torch.where(of_rest[:, None] > 0, log_rest, 0.0).sum(2)  # (G, B)
        log_p = log_p.reshape(len(of_rest), -1, len(z)) + log_rest[:, None]
        chance = log_p.flatten(0, 1).softmax(0)  # (M, B)
        gain = (s - a * variances[:, None]) / spread
        each = (along * gain) @ axes.transpose(1, 2) - means[:, None]  # (M, B, D)
        of_low = torch.einsum("mb,mbd->bd", chance, each)
        of_class = chance.reshape(len(of_rest), -1, len(z)).sum(1)  # (G, B)
        rest_gain = (s - a * of_rest[:, None]) / rest_spread.clamp(min=1e-12)
        if not self.alone:
            rest_gain = torch.where(of_rest[:, None] > 0, rest_gain, 0.0)
        out = torch.einsum("gb,gbn->bn", of_class, rest_gain) * z
        out[:, self.low] = of_low
        return out

    def sample(self, count: int, generator: torch.Generator, labels: Tensor | None) -> Tensor:
        """Returns draws of the mixture itself, `(count, C, H, W)` float32: no equation is solved.

        Args:
            count: How many.
            generator: Decides them.
            labels: Class of every draw, `(count,)`; None is any.
        """
        weights = self.log_weights.double().exp()  # (G, C)
        if labels is None:
            labels = torch.multinomial(weights.sum(1), count, replacement=True, generator=generator)
        z = torch.randn((count, math.prod(self.shape)), generator=generator)
        z = z * self.rest[labels].sqrt()
        for label in torch.unique(labels).tolist():
            mine = (labels == label).nonzero()[:, 0]
            of = torch.multinomial(weights[label], len(mine), replacement=True, generator=generator)
            for component in torch.unique(of).tolist():
                rows = mine[of == component]
                noise = torch.randn((len(rows), self.means.shape[2]), generator=generator)
                noise = noise * self.variances[label, component].sqrt()
                drawn = self.means[label, component] + noise @ self.axes[label, component].T
                z[rows[:, None], self.low] = drawn
        images: Tensor = self.rows.T @ z.reshape(-1, *self.shape) @ self.columns
        return images
