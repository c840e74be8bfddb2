"""The router of centroids that a plan describes, from what its sites released."""

from collections.abc import Sequence
from typing import NoReturn

from torch import Tensor

from ddm_fed.embedding import ClipEmbedder, Embedder
from ddm_fed.errors import OptionError
from ddm_fed.mixture import (
    CENTROIDS,
    SiteRelease,
    decode_centroids,
    image_directions,
    planned_anchors,
    prompt_directions,
)
from ddm_fed.records import CentroidSpec, Plan, StatisticsSpec
from ddm_fed.router.base import Router
from ddm_fed.router.centroid import CentroidRouter, centroid_router
from ddm_fed.router.closed_form import build_router
from ddm_fed.router.prompted import PromptedRouter


def centroids_spec(plan: Plan) -> CentroidSpec:
    """Returns what the plan says of centroids.

    Raises:
        OptionError: its sites release none.
    """
    if plan.centroids is None:
        raise OptionError(
            "--router centroid, --low centroid: the plan's sites release no centroids",
            hint="choose another router, or publish a plan with `router.centroids`",
        )
    return plan.centroids


def planned_centroid_router(
    plan: Plan,
    releases: Sequence[SiteRelease],
    embedder: Embedder | None,
    *,
    above: Router | None = None,
) -> CentroidRouter:
    """Returns the router over the sites of `releases`, in their order.

    It compares estimates at `router.centroids.until` and below. Above, and for the shares, it asks
    the mixture where the plan's sites release one, and the counts otherwise.

    Args:
        plan: What was released.
        releases: One per site.
        embedder: The plan's. Without one the router knows the shares, and refuses to look at an
            image: strategies that ask no router need no embedder.
        above: Answers above, in place of what is said there.

    Raises:
        OptionError: the plan's sites release no centroids.
    """
    spec = centroids_spec(plan)
    anchors = planned_anchors(spec)
    sites = [
        decode_centroids(anchors, site.vectors[CENTROIDS], site.noise_multipliers[CENTROIDS])
        for site in releases
    ]
    if above is None:
        released = isinstance(plan.router, StatisticsSpec)
        above = build_router(plan, "mixture" if released else "prior", releases)
    texts = None
    if isinstance(embedder, ClipEmbedder) and spec.prompts:
        texts = prompt_directions(embedder, anchors, spec.prompts)
    return centroid_router(
        sites,
        _no_weights if embedder is None else image_directions(embedder, anchors),
        text_directions=texts,
        above=above,
        until=float(spec.until),
    )


def compares_captions(plan: Plan) -> bool:
    """Returns whether the sites of a sample can follow from its caption, by centroids.

    Captions are compared as the plan's text encoder left them, so it has to be the embedder of
    the centroids, by its digest; and the plan has to say which texts may be asked.
    """
    spec, text = plan.centroids, plan.data.text
    if spec is None or text is None:
        return False
    return spec.embedder == "clip" and bool(spec.prompts) and text.sha256 == spec.weights_sha256


def with_captions(plan: Plan, router: Router, centroids: CentroidRouter) -> Router:
    """Returns `router` with pi_k(c) of captions; as it is where they cannot be compared.

    Args:
        plan: What captions are.
        router: Any that asks `centroids`, or they themselves.
        centroids: Of the sites.
    """
    if not (compares_captions(plan) and centroids.knows_texts):
        return router
    return PromptedRouter(router, centroids.log_likelihood_of_texts)


def _no_weights(_: Tensor) -> NoReturn:
    raise OptionError(
        "--embedder-weights is missing: this router compares embeddings of images",
        hint="give the file whose digest is `router.centroids.weights_sha256` of the plan, or "
        "choose a router or a strategy that looks at no image, such as --strategy sticky",
    )
