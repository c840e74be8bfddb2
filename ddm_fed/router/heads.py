"""A head per site: what the plan says of it, how a site trains its own, how they become a router.

every site's releases -> PooledReference -> fit_head at each site -> heads_router
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ddm_fed.embedding import dct_basis
from ddm_fed.errors import StateError
from ddm_fed.mixture import SiteRelease, fit_mixtures, released_weights
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.progress import QUIET, Watch
from ddm_fed.records import HeadsRouterSpec, Plan
from ddm_fed.router.learned import HeadsRouter
from ddm_fed.router.network import CoefficientNetwork
from ddm_fed.router.pooled_reference import PooledReference
from ddm_fed.router.prior import PriorRouter
from ddm_fed.router.train import train_head
from ddm_fed.storage.tensors import TensorTable

ROWS_AT_ONCE = 1024


def heads_spec(plan: Plan) -> HeadsRouterSpec:
    """Returns what the plan says of heads.

    Raises:
        StateError: it has none.
    """
    if isinstance(plan.router, HeadsRouterSpec):
        return plan.router
    raise StateError(
        f"the plan has a {plan.router.kind} router, which needs no heads",
        hint='heads are trained under a plan with router.kind = "heads"',
    )


def head_tensors(plan: Plan) -> TensorTable:
    """Returns the tensors of `head.safetensors` under `plan`. Allocates nothing."""
    with torch.device("meta"):
        state = head_network(plan).state_dict()
    return {name: ("F32", tuple(value.shape)) for name, value in state.items()}


def pooled_reference(plan: Plan, releases: Sequence[SiteRelease]) -> PooledReference:
    """Returns the pool of what `releases` describe: the reference of all heads."""
    spec = heads_spec(plan)
    basis = dct_basis(plan.data.shape, spec.frequencies)
    return PooledReference(
        fit_mixtures(plan, releases),
        float(spec.centre) * basis.sum(1),
        cells_are_classes=bool(plan.data.classes),
    )


def fit_head(
    data: Private[ImageSet],
    plan: Plan,
    reference: PooledReference,
    generator: torch.Generator,
    watch: Watch = QUIET,
) -> dict[str, Tensor]:
    """Returns the weights of a site's head, trained on its own images without noise.

    What comes back was shaped by private images and has no formal guarantee.

    Args:
        data: The site's images.
        plan: Gives the network and its training.
        reference: The pool all sites train against.
        generator: Decides all draws. Its seed is as private as the images.
        watch: Told how it goes.
    """
    spec, images = heads_spec(plan).head, data.reveal()
    network = head_network(plan)
    train_head(
        network,
        (own_coefficients(images, plan), images.labels if plan.data.classes else None),
        reference,
        steps=spec.steps,
        batch_size=spec.batch_size,
        learning_rate=float(spec.learning_rate),
        generator=generator,
        watch=watch,
    )
    return network.state_dict()


def heads_router(
    plan: Plan, heads: Sequence[Mapping[str, Tensor]], releases: Sequence[SiteRelease]
) -> HeadsRouter:
    """Returns the router that the sites' heads compose to.

    Args:
        plan: Gives the network.
        heads: Weights of each site's head; all trained against one reference, which is not needed
            any more.
        releases: What each released, in the same order, for the shares.
    """
    networks = []
    for weights in heads:
        network = head_network(plan)
        network.load_state_dict(dict(weights))
        networks.append(network.eval().requires_grad_(False))
    prior = PriorRouter(released_weights(plan, releases))
    return HeadsRouter(networks, dct_basis(plan.data.shape, heads_spec(plan).frequencies), prior)


def head_network(plan: Plan) -> CoefficientNetwork:
    """Returns the network of a head, weights still to be set."""
    spec = heads_spec(plan)
    coefficients = plan.data.shape[0] * spec.frequencies
    return CoefficientNetwork(
        coefficients, 1, len(plan.data.classes), spec.head.width, spec.head.depth
    )


def own_coefficients(images: ImageSet, plan: Plan) -> Tensor:
    """Returns the coefficients of all images, `(N, D)` float32."""
    basis = dct_basis(plan.data.shape, heads_spec(plan).frequencies)
    starts = range(0, len(images), ROWS_AT_ONCE)
    rows = [
        images.batch(slice(start, start + ROWS_AT_ONCE)).flatten(1).double() for start in starts
    ]
    return torch.cat([(block @ basis.T).float() for block in rows])
