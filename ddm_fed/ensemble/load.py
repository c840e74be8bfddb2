"""From a verified ensemble to one that can be sampled: experts, releases and router in memory.

Only what was verified is loaded, and the digest is taken again of the very bytes that are parsed.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast, get_args

import torch

from ddm_fed.bundle.verify import (
    EXPERT_FILE,
    HEAD_FILE,
    ROUTER_FILE,
    VerifiedBundle,
    read_verified,
    read_weights,
)
from ddm_fed.embedding import Embedder
from ddm_fed.ensemble.folder import VerifiedEnsemble, require_common_reference
from ddm_fed.ensemble.pool import Elsewhere, ExpertPool, Precision
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.errors import OptionError, StateError
from ddm_fed.flows import Expert, VelocityModel
from ddm_fed.limits import MAX_ROUTER_BYTES
from ddm_fed.mixture import ImageMixture, MixtureVelocity, SiteRelease, fit_image_mixtures
from ddm_fed.models import build_expert
from ddm_fed.records import (
    BuiltRouter,
    ExpertDesign,
    RouterName,
    RouterTransformerSpec,
    StatisticsSpec,
    adds_to_mixture,
    network_of,
)
from ddm_fed.router import (
    ClosedForm,
    Router,
    build_router,
    built_tensors,
    heads_router,
    heads_spec,
    needs_heads,
    planned_centroid_router,
    restore_router,
    with_captions,
)
from ddm_fed.storage.files import open_regular
from ddm_fed.storage.tensors import check_tensor_file


def load_ensemble(
    verified: VerifiedEnsemble,
    *,
    router: RouterName | None = None,
    resident: int | None = None,
    devices: Sequence[torch.device | str] = ("cpu",),
    offload: bool = False,
    precision: Precision = "float32",
    embedder: Embedder | None = None,
    elsewhere: Elsewhere | None = None,
) -> Ensemble:
    """Returns the experts and the router of a verified ensemble, ready to sample from.

    Args:
        verified: Only a verified ensemble is read.
        router: Use another router than the one the ensemble was assembled with.
        resident: The most experts in memory at once, loaded when they are asked; by default all,
            loaded now.
        devices: Where experts run, in turn.
        offload: Keep experts that gave way in the processor's memory instead of loading them again.
        precision: What experts multiply in.
        embedder: As for `load_router`.
        elsewhere: What answers for the experts that stay at their sites, by site.

    Raises:
        DigestError: an expert's file changed after it was verified; with `resident` when the
            expert is asked.
        StateError: this router has to be built from samples, and the ensemble has none; or an
            expert stays at its site, and nothing answers for it.
        OptionError: experts that stay at their sites would have to be asked in another precision.
    """
    mixtures, answering = Mixtures(verified), _answering(verified, elsewhere or {}, precision)
    experts = ExpertPool(
        [partial(load_expert, verified, place, mixtures) for place in range(len(verified.bundles))],
        resident=resident,
        largest_time=min(_largest_time(bundle.submission.expert) for bundle in verified.bundles),
        devices=devices,
        offload=offload,
        precision=precision,
        elsewhere=answering,
    )
    if resident is None:
        experts.load_all()
    return Ensemble(experts, load_router(verified, router, embedder))


def held_experts(verified: VerifiedEnsemble) -> dict[str, str]:
    """Returns the digests of the experts that stay at their sites, by site."""
    found = {bundle.site: bundle.submission.held_expert for bundle in verified.bundles}
    return {site: digest for site, digest in found.items() if digest is not None}


def _answering(
    verified: VerifiedEnsemble, elsewhere: Elsewhere, precision: Precision
) -> dict[int, VelocityModel]:
    """Returns what answers for the experts that are not in the ensemble, by place."""
    held = held_experts(verified)
    if missing := sorted(held.keys() - elsewhere.keys()):
        raise _stays(missing)
    if held and precision != "float32":
        raise OptionError(
            f"--precision {precision}: experts that stay at their sites answer in float32",
            hint="leave it out",
        )
    places = {bundle.site: place for place, bundle in enumerate(verified.bundles)}
    return {places[site]: elsewhere[site] for site in held}


def _stays(sites: Sequence[str]) -> StateError:
    return StateError(
        f"the weights of {', '.join(sites)} stay at the site, so this ensemble cannot be asked "
        "from its folder alone",
        hint=f"the coordinator samples it with `--remote {sites[0]}=HOST:PORT` where `ddm-site "
        "serve-expert` listens; nothing else can use weights that are not there",
    )


def load_router(
    verified: VerifiedEnsemble,
    kind: RouterName | None = None,
    embedder: Embedder | None = None,
) -> Router:
    """Returns the router of a verified ensemble, or another that its releases can serve.

    Args:
        verified: The ensemble.
        kind: Another router than its own.
        embedder: That of the plan's centroids. A router that asks them and has none knows the
            shares only, and refuses to look at an image.

    Raises:
        OptionError: `kind` has to be built from samples, and the ensemble has none of it.
        DigestError: the router's file changed after it was verified.
    """
    plan, record = verified.trust.plan, verified.record
    kind = kind or record.router
    if record.built is not None and record.built.kind == kind:
        if verified.router_sha256 is None:  # verification required the file
            raise ValueError("a built router without a file")
        file = verified.folder / ROUTER_FILE
        return read_router(verified, record.built, file, verified.router_sha256, embedder)
    if kind == "centroid":
        centroids = planned_centroid_router(plan, load_releases(verified), embedder)
        return with_captions(plan, centroids, centroids)
    if kind == "heads":
        return heads_router(plan, load_heads(verified), load_releases(verified))
    if kind not in get_args(ClosedForm):
        raise OptionError(
            f"--router {kind}: the ensemble has no such router, it has a {record.router} router",
            hint=f"make one with `ddm-coord router build --kind {kind}` and assemble with it",
        )
    return build_router(plan, cast(ClosedForm, kind), load_releases(verified))


def read_router(
    verified: VerifiedEnsemble,
    built: BuiltRouter,
    file: Path,
    sha256: str,
    embedder: Embedder | None = None,
) -> Router:
    """Returns a router made from samples, over the sites of a verified ensemble.

    Args:
        verified: The ensemble.
        built: What the file holds.
        file: Its tensors.
        sha256: Their digest.
        embedder: As for `load_router`.

    Raises:
        RefusedError: the file holds something else.
    """
    plan = verified.trust.plan
    with open_regular(file) as opened:
        check_tensor_file(opened, built_tensors(plan.data, built), what="the router")
    tensors = read_verified(file, sha256, most_bytes=MAX_ROUTER_BYTES, what="the router")
    heads = load_heads(verified) if needs_heads(built) else []
    return restore_router(plan, built, tensors, load_releases(verified), heads, embedder)


def asks_centroids(verified: VerifiedEnsemble, kind: RouterName | None) -> bool:
    """Returns whether a router asks the sites' centroids; `kind` as for `load_router`."""
    kind, built = kind or verified.record.router, verified.record.built
    return kind == "centroid" or (
        built is not None and built.kind == kind and built.low == "centroid"
    )


def frequencies_seen(
    verified: VerifiedEnsemble, kind: RouterName | None, until: float
) -> int | None:
    """Returns the least DCT coefficients per channel that a router looks at up to time `until`.

    Fewer than a channel has pixels leave something of the image unseen; 0 is a router that looks
    at none, None one that looks at an embedding. A `hybrid` sees what its network does below the
    switch, and what both do from there on.

    Args:
        verified: The ensemble.
        kind: As for `load_router`.
        until: The largest time at which the router is asked.
    """
    kind, built = kind or verified.record.router, verified.record.built
    spec = verified.trust.plan.router
    released = spec.frequencies if isinstance(spec, StatisticsSpec) else 0
    if kind == "prior":
        return 0
    centroids = verified.trust.plan.centroids
    if kind == "centroid" and centroids is not None:
        return None if until <= float(centroids.until) else released
    if built is not None and built.kind == kind and built.low is not None:
        return None if built.switch is not None and until < float(built.switch) else released
    if built is None or built.kind != kind or built.network is None:
        return released
    height, width = verified.trust.plan.data.shape[1:]
    network, seen = built.network, height * width
    if not isinstance(network, RouterTransformerSpec):
        seen = network.frequencies
    if built.switch is not None and until >= float(built.switch):
        return min(released, seen)
    return seen


def load_releases(verified: VerifiedEnsemble) -> list[SiteRelease]:
    """Returns what every site released for the router, in the ensemble's order."""
    return [release_of(bundle) for bundle in verified.bundles]


def release_of(bundle: VerifiedBundle) -> SiteRelease:
    """Returns what the site of a verified bundle released."""
    vectors = {name: value.numpy() for name, value in read_weights(bundle, ROUTER_FILE).items()}
    return SiteRelease(vectors, bundle.noise_multipliers)


def load_heads(verified: VerifiedEnsemble) -> list[dict[str, torch.Tensor]]:
    """Returns the weights of every site's head, in the ensemble's order.

    Raises:
        StateError: the plan has no heads.
        PlanMismatchError: a site sent none, or they were trained against different references.
    """
    heads_spec(verified.trust.plan)
    require_common_reference({bundle.site: bundle.submission for bundle in verified.bundles})
    return [read_weights(bundle, HEAD_FILE) for bundle in verified.bundles]


def routers_without_samples(verified: VerifiedEnsemble) -> list[RouterName]:
    """Returns the routers that can be made of what the sites of an ensemble sent."""
    names: list[RouterName] = ["prior"]
    if isinstance(verified.trust.plan.router, StatisticsSpec):
        names.append("mixture")
    if verified.trust.plan.centroids is not None:
        names.append("centroid")
    references = {bundle.submission.reference_sha256 for bundle in verified.bundles}
    if len(references) == 1 and None not in references:
        names.append("heads")
    return names


class Mixtures:
    """What the releases of an ensemble's sites say of their images; fitted when it is asked.

    An expert that is a mixture knows the releases of all members, which are drawn together: sites
    that resemble one another lend each other what their noise hides. Without a member it is what it
    would have been if that had never joined. A network that adds to a mixture was trained beside
    its own site's, as the site alone knows it.

    Args:
        verified: Only a verified ensemble is read.
    """

    def __init__(self, verified: VerifiedEnsemble) -> None:
        self._verified = verified
        self._together: list[ImageMixture] | None = None

    def of(self, place: int) -> MixtureVelocity | None:
        """Returns what the expert at `place` is or adds to; None if it is a network alone."""
        plan = self._verified.trust.plan
        architecture = self._verified.bundles[place].submission.expert.architecture
        if not adds_to_mixture(architecture):
            return None
        if network_of(architecture) is not None:
            (own,) = fit_image_mixtures(plan, [release_of(self._verified.bundles[place])])
            return MixtureVelocity(plan, own, alone=False)
        if self._together is None:
            self._together = fit_image_mixtures(plan, load_releases(self._verified))
        return MixtureVelocity(plan, self._together[place])


def load_expert(verified: VerifiedEnsemble, place: int, mixtures: Mixtures) -> Expert:
    """Returns the expert at `place`. Its weights are in memory once, beside the file's bytes."""
    bundle = verified.bundles[place]
    design = bundle.submission.expert
    if bundle.submission.held_expert is not None:
        raise _stays([bundle.site])
    weights = read_weights(bundle, EXPERT_FILE) if EXPERT_FILE in bundle.files else None
    return build_expert(verified.trust.plan.data, design, weights, mixtures.of(place))


def _largest_time(design: ExpertDesign) -> float:
    return Expert(lambda x, *_: x, design.path, design.prediction).largest_time
