"""Which of the routers that an ensemble can have knows best whose image it sees."""

from collections.abc import Sequence
from pathlib import Path

from ddm_fed.ensemble.folder import VerifiedEnsemble
from ddm_fed.ensemble.load import (
    load_releases,
    load_router,
    read_router,
    routers_without_samples,
)
from ddm_fed.ensemble.replay import (
    JUDGED_AT,
    BuildOptions,
    draw_from_experts,
    estimate_of,
    judge_router,
)
from ddm_fed.ensemble.router_folder import read_built
from ddm_fed.errors import OptionError, StateError
from ddm_fed.mixture import released_weights
from ddm_fed.router import Router, TimeQuality, knots_about
from ddm_fed.storage.digests import sha256_of


def compare_routers(
    verified: VerifiedEnsemble, built: Sequence[Path], options: BuildOptions
) -> dict[str, list[TimeQuality]]:
    """Returns the quality of every router on the same fresh samples of the experts, by its name.

    Args:
        verified: The ensemble.
        built: Folders of routers made from samples of the same experts.
        options: How many samples, and how they are drawn.

    Raises:
        StateError: a router was made from other experts.
        OptionError: one was made from these very samples.
    """
    times = set(JUDGED_AT)
    hybrids = [verified.record.built]
    routers: dict[str, Router] = {"prior": load_router(verified, "prior")}
    for name in (verified.record.router, *routers_without_samples(verified)):
        if name == "centroid" and options.embedder is None and name != verified.record.router:
            continue  # it sees nothing without the weights of its embedder
        label = f"{name} of the ensemble" if name == verified.record.router else name
        routers.setdefault(label, load_router(verified, name, options.embedder))
    members = tuple(member.submission_sha256 for member in verified.record.members)
    for folder in built:
        record, file = read_built(folder)
        if record.submissions != members:
            raise StateError(
                f"the router in {folder} was made from samples of other experts",
                hint="build it anew from this ensemble",
            )
        if record.seed == options.seed:
            raise OptionError(
                f"--seed {record.seed}: the router in {folder} was made from the samples of this "
                "seed, which cannot judge it",
                hint="give another --seed",
            )
        hybrids.append(record)
        routers[str(folder)] = read_router(
            verified, record, file, sha256_of(file), options.embedder
        )
    for made in hybrids:
        if made is not None and made.switch is not None:  # all are judged where its parts meet
            times.update(knots_about(float(made.switch), ()))
    weights = released_weights(verified.trust.plan, load_releases(verified))
    shares = weights.sum(1) / weights.sum()
    estimate = estimate_of(verified, weights, options)
    drawn = draw_from_experts(verified, weights, options)
    return {
        name: judge_router(router, drawn, shares, options.seed, sorted(times), estimate)
        for name, router in routers.items()
    }
