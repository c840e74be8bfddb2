"""Routers from the experts' own samples. Nothing new leaves a site.

Images are drawn from every expert alone, and labelled with it. A network learns to tell them apart
at every noise level (`replay`), or a closed-form router is calibrated on them, or both. This is
post-processing: whatever privacy the experts and releases have, the router has.

A quarter of the images calibrates, another judges, the rest trains.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ddm_fed.embedding import Embedder
from ddm_fed.ensemble.folder import VerifiedEnsemble
from ddm_fed.ensemble.load import load_ensemble, load_heads, load_releases
from ddm_fed.ensemble.pool import ExpertPool
from ddm_fed.ensemble.sampling import SamplingOptions, sample
from ddm_fed.ensemble.strategy import Strategy
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.errors import OptionError
from ddm_fed.flows import ClassCondition, Condition, VelocityModel
from ddm_fed.mixture import released_weights
from ddm_fed.progress import QUIET, Advance, Watch
from ddm_fed.records import (
    LEARNED_ROUTERS,
    BuiltRouter,
    DataSpec,
    LearnedNetworkSpec,
    RouterName,
)
from ddm_fed.router import (
    Estimate,
    LearnedNetwork,
    PriorRouter,
    Router,
    TimeQuality,
    basis_read,
    built_tensors,
    calibration_tensors,
    centroids_spec,
    fit_calibration,
    knots_about,
    needs_heads,
    network_tensors,
    posterior_quality,
    restore_router,
    router_network,
    train_classifier,
)

JUDGED_AT = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class ReplaySet:
    """Images `(N, C, H, W)` in [-1, 1], their sites `(N,)` and classes `(N,)`, or None."""

    images: Tensor
    sites: Tensor
    labels: Tensor | None

    def rows(self, rows: Tensor) -> "ReplaySet":
        """Returns some of them."""
        labels = None if self.labels is None else self.labels[rows]
        return ReplaySet(self.images[rows], self.sites[rows], labels)


@dataclass(frozen=True)
class BuildOptions:
    """How a router is made from samples; see `ddm-coord router build --help`."""

    kind: RouterName
    samples_per_site: int = 1000
    solver_steps: int = 20
    seed: int = 0
    network: LearnedNetworkSpec | None = None
    low: Literal["centroid"] | None = None
    switch: float = 0.7
    calibrate: bool = True
    batch_size: int = 256
    resident: int | None = None
    devices: tuple[str, ...] = ("cpu",)
    embedder: Embedder | None = None


@dataclass(frozen=True)
class RouterBuilt:
    """A router made from samples: the record, its tensors, and how good it is before and after.

    `before` is the router without calibration; both are measured on images that neither trained
    nor calibrated it.
    """

    record: BuiltRouter
    tensors: dict[str, Tensor]
    before: list[TimeQuality]
    after: list[TimeQuality]


def build_from_samples(
    verified: VerifiedEnsemble, options: BuildOptions, watch: Watch = QUIET
) -> RouterBuilt:
    """Returns the router that `options` ask for, made from samples of the experts.

    The same options make the same router on the same machine type.

    Raises:
        OptionError: the plan's releases do not serve this router, or the options do not fit.
    """
    plan = verified.trust.plan
    if options.kind == "prior":
        raise OptionError(
            "--kind prior: a prior router looks at no image, so samples cannot improve it",
            hint="give --kind mixture, heads, replay or hybrid",
        )
    _require_centroids(verified, options)
    network = options.network if options.kind in LEARNED_ROUTERS else None
    if options.kind not in LEARNED_ROUTERS and not options.calibrate:
        raise OptionError(
            f"--no-calibrate: a {options.kind} router without calibration needs no samples",
            hint=f"leave --no-calibrate out, or assemble with --router {options.kind}",
        )
    releases = load_releases(verified)
    switch = options.switch if options.kind == "hybrid" else None
    knots, judged_at = knots_about(switch), knots_about(switch, JUDGED_AT)
    generator = torch.Generator().manual_seed(options.seed)
    record = BuiltRouter(
        kind=options.kind,
        submissions=tuple(member.submission_sha256 for member in verified.record.members),
        samples_per_site=options.samples_per_site,
        solver_steps=options.solver_steps,
        seed=options.seed,
        network=network,
        low=options.low,
        switch=None if switch is None else _decimal(switch),
        knots=tuple(_decimal(time) for time in knots) if options.calibrate else (),
    )
    built_tensors(plan.data, record)  # a network that cannot be is refused before images are drawn
    heads = load_heads(verified) if needs_heads(record) else []
    weights = released_weights(plan, releases)
    drawn = draw_from_experts(verified, weights, options, watch.advance)
    train, fit, judge = _split(drawn, len(weights), generator)
    tensors: dict[str, Tensor] = {}
    if network is not None:
        trained = _train(train, plan.data, weights, network, generator, watch)
        tensors |= network_tensors(trained)
    embedder, estimate = options.embedder, estimate_of(verified, weights, options)
    uncalibrated = record.model_copy(update={"knots": ()})
    plain = restore_router(plan, uncalibrated, tensors, releases, heads, embedder)
    shares = weights.sum(1) / weights.sum()
    fit, judge = _by_share(fit, shares), _by_share(judge, shares)
    before = _quality(plain, judge, options.seed, judged_at, estimate)
    if not options.calibrate:
        return RouterBuilt(record, tensors, before, before)
    calibration = fit_calibration(
        plain, fit.images, fit.sites, fit.labels, generator, times=knots, estimate=estimate
    )
    tensors |= calibration_tensors(calibration)
    calibrated = restore_router(plan, record, tensors, releases, heads, embedder)
    after = _quality(calibrated, judge, options.seed, judged_at, estimate)
    return RouterBuilt(record, tensors, before, after)


def draw_from_experts(
    verified: VerifiedEnsemble,
    weights: Tensor,
    options: BuildOptions,
    advance: Advance = lambda _: None,
) -> ReplaySet:
    """Returns `samples_per_site` images of every expert alone, site after site.

    Args:
        verified: The ensemble.
        weights: Mass of every class at every site, `(K, G)`, or `(K, 1)` without classes. A site's
            images are asked of it by these, so that its labels are distributed as it released.
        options: How many, and how they are drawn.
        advance: Told how many images just went one solver step further.
    """
    plan = verified.trust.plan
    pool = load_ensemble(
        verified, router="prior", resident=options.resident, devices=options.devices
    ).experts
    images, labels = [], []
    for site in range(len(pool)):
        wanted = None
        if plan.data.classes:
            wanted = _labels(weights[site], options.samples_per_site)
            labels.append(wanted)
        alone = ExpertPool(
            [partial(_of_site, pool, site)],
            largest_time=pool.largest_time,
            devices=[pool.device],
        )
        one = PriorRouter(torch.ones((1, max(1, len(plan.data.classes)))))
        sampling = SamplingOptions(
            strategy=Strategy.parse("sticky"),
            steps=options.solver_steps,
            solver="dpm++2m",
            seed=options.seed * 1_000_003 + site,
            batch_size=options.batch_size,
        )
        condition = None if wanted is None else ClassCondition(wanted)
        drawn = sample(
            Ensemble(alone, one),
            plan.data.shape,
            options.samples_per_site,
            sampling,
            condition=condition,
            bound=float(plan.data.bound),
            advance=advance,
        )
        images.append(drawn.images)
    sites = torch.arange(len(pool)).repeat_interleave(options.samples_per_site)
    return ReplaySet(torch.cat(images), sites, torch.cat(labels) if labels else None)


def estimate_of(
    verified: VerifiedEnsemble, weights: Tensor, options: BuildOptions
) -> Estimate | None:
    """Returns what makes image estimates for a router to look at; None without centroids.

    An estimate is that of all experts by the shares of their sites: the expert that drew an image
    would give the answer away. Above the plan's `until` nobody looks, and x_t is returned as it is.

    Args:
        verified: The ensemble.
        weights: As for `draw_from_experts`.
        options: Where experts run, and how many at once.
    """
    spec = verified.trust.plan.centroids
    if spec is None or options.embedder is None:
        return None
    pool = load_ensemble(
        verified, router="prior", resident=options.resident, devices=options.devices
    ).experts
    everybody, until = Ensemble(pool, PriorRouter(weights)), float(spec.until)
    full = Strategy.parse("full")

    def estimate(x_t: Tensor, t: Tensor, condition: ClassCondition | None) -> Tensor:
        if float(t.min()) > until:
            return x_t
        x, at = x_t.to(pool.device), t.to(pool.device)
        asked = None if condition is None else condition.to(pool.device)
        v = everybody.velocity(x, at, asked, strategy=full, batch_size=options.batch_size)
        return (x - at.view(-1, 1, 1, 1) * v).float().cpu()

    return estimate


def judge_router(
    router: Router,
    drawn: ReplaySet,
    shares: Tensor,
    seed: int,
    times: Sequence[float] = JUDGED_AT,
    estimate: Estimate | None = None,
) -> list[TimeQuality]:
    """Returns how well `router` knows the sites of images it was not made from, by time.

    Args:
        router: Over the sites of `drawn`.
        drawn: As many images of every site.
        shares: Share of every site, `(K,)`: images count by it.
        seed: Decides the noise.
        times: At which it is judged.
        estimate: Makes image estimates, for routers that look at them.
    """
    return _quality(router, _by_share(drawn, shares), seed, times, estimate)


def _require_centroids(verified: VerifiedEnsemble, options: BuildOptions) -> None:
    """Refuses centroids where they cannot be asked.

    Raises:
        OptionError: the plan has none, they are asked at times they do not see, or the embedder's
            weights are not at hand.
    """
    if options.kind != "centroid" and options.low is None:
        return
    until = float(centroids_spec(verified.trust.plan).until)
    if options.low is not None and options.switch > until:
        raise OptionError(
            f"--switch {options.switch:g}: centroids are asked at times up to {until:g}, and above "
            "they know the shares only",
            hint=f"give --switch {until:g} or less",
        )
    if options.embedder is None:
        raise OptionError(
            "--embedder-weights is missing: centroids compare embeddings of images",
            hint="give the file whose digest is `router.centroids.weights_sha256` of the plan",
        )


def _of_site(pool: ExpertPool, site: int) -> VelocityModel:
    def ask(x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        return pool.ask(site, x_t, t, condition)

    return ask


def _labels(weights: Tensor, count: int) -> Tensor:
    """Returns `count` class indices in the proportions of `weights (G,)`, the remainders first."""
    exact = weights / weights.sum() * count
    whole = exact.floor().long()
    rest = count - int(whole.sum())
    whole[(exact - whole).topk(rest).indices] += 1
    return torch.arange(len(weights)).repeat_interleave(whole)


def _split(
    drawn: ReplaySet, sites: int, generator: torch.Generator
) -> tuple[ReplaySet, ReplaySet, ReplaySet]:
    """Returns what trains, calibrates and judges: of every site a half, a quarter, a quarter."""
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for site in range(sites):
        own = (drawn.sites == site).nonzero()[:, 0]
        own = own[torch.randperm(len(own), generator=generator)]
        quarter = math.ceil(len(own) / 4)
        cuts = (own[2 * quarter :], own[:quarter], own[quarter : 2 * quarter])
        for part, rows in zip(parts, cuts, strict=True):
            part.append(rows)
    train, fit, judge = (drawn.rows(torch.cat(part)) for part in parts)
    return train, fit, judge


def _by_share(drawn: ReplaySet, shares: Tensor) -> ReplaySet:
    """Returns images of every site in the proportion of its share; the largest gives all."""
    kept = []
    for site, share in enumerate((shares / shares.max()).tolist()):
        own = (drawn.sites == site).nonzero()[:, 0]
        kept.append(own[: max(1, round(share * len(own)))])
    return drawn.rows(torch.cat(kept))


def _train(
    train: ReplaySet,
    data: DataSpec,
    weights: Tensor,
    spec: LearnedNetworkSpec,
    generator: torch.Generator,
    watch: Watch,
) -> LearnedNetwork:
    network = router_network(data, spec, len(weights))
    basis, read = basis_read(data, spec), train.images
    if basis is not None:
        read = (read.flatten(1).double() @ basis.T).float()  # (N, D)
    sets = []
    for site in range(len(weights)):
        own = train.sites == site
        sets.append((read[own], None if train.labels is None else train.labels[own]))
    train_classifier(
        network,
        sets,
        weights.sum(1),
        steps=spec.steps,
        batch_size=spec.batch_size,
        learning_rate=float(spec.learning_rate),
        generator=generator,
        watch=watch,
    )
    return network


def _quality(
    router: Router,
    judge: ReplaySet,
    seed: int,
    times: Sequence[float],
    estimate: Estimate | None = None,
) -> list[TimeQuality]:
    generator = torch.Generator().manual_seed(seed)
    return posterior_quality(
        router, judge.images, judge.sites, judge.labels, times, generator, estimate=estimate
    )


def _decimal(value: float) -> Decimal:
    return Decimal(str(value))
