"""The routers that are computed from releases alone."""

from collections.abc import Sequence
from typing import Literal

from ddm_fed.embedding import dct_basis
from ddm_fed.errors import OptionError
from ddm_fed.mixture import SiteRelease, fit_mixtures, released_weights
from ddm_fed.records import Plan, StatisticsSpec
from ddm_fed.router.base import Router
from ddm_fed.router.mixture import MixtureRouter
from ddm_fed.router.prior import PriorRouter

ClosedForm = Literal["prior", "mixture"]  # those that are computed from releases alone


def build_router(plan: Plan, kind: ClosedForm, releases: Sequence[SiteRelease]) -> Router:
    """Returns the router over the sites of `releases`, in their order.

    Args:
        plan: What was released, and about which centre.
        kind: A `mixture` release also serves a `prior` router.
        releases: One per site.

    Raises:
        OptionError: `mixture` was asked for, but the plan releases counts only.
        StateError: no site released a usable count.

    Example:
        With a plan and the releases of three sites:

        >>> router = build_router(plan, "prior", releases)
        >>> shares = router.log_prior(None).exp()
        >>> len(shares), round(shares.sum().item(), 6)
        (3, 1.0)
    """
    if kind == "prior":
        return PriorRouter(released_weights(plan, releases))
    spec = plan.router
    if not isinstance(spec, StatisticsSpec):
        raise OptionError(
            "--router mixture: the plan's sites release counts only, which cannot make a mixture",
            hint='assemble with --router prior, or publish a plan with router.kind = "mixture"',
        )
    return MixtureRouter(
        fit_mixtures(plan, releases),
        dct_basis(plan.data.shape, spec.frequencies),
        centre=float(spec.centre),
        cells_are_classes=bool(plan.data.classes),
    )
