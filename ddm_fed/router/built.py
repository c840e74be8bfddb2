"""A router that was trained or calibrated on samples of the experts: its tensors, and back.

The record says which parts there are (`BuiltRouter`), so the tensors a file must hold follow from
record and plan, and nothing else is read from it.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ddm_fed.embedding import Embedder, dct_basis
from ddm_fed.errors import OptionError
from ddm_fed.mixture import SiteRelease, released_weights
from ddm_fed.records import (
    BuiltRouter,
    DataSpec,
    LearnedNetworkSpec,
    Plan,
    RouterTransformerSpec,
    require_fit,
)
from ddm_fed.router.base import Router
from ddm_fed.router.calibration import CalibratedRouter, Calibration
from ddm_fed.router.centroid import CentroidRouter
from ddm_fed.router.closed_form import build_router
from ddm_fed.router.heads import heads_router
from ddm_fed.router.hybrid import HybridRouter
from ddm_fed.router.learned import ClassifierRouter
from ddm_fed.router.network import CoefficientNetwork
from ddm_fed.router.planned_centroids import planned_centroid_router, with_captions
from ddm_fed.router.prior import PriorRouter
from ddm_fed.router.train import LearnedNetwork
from ddm_fed.router.transformer import ImageTransformer
from ddm_fed.storage.tensors import TensorTable

NETWORK, TEMPERATURE, BIAS = "network.", "calibration.log_temperature", "calibration.bias"


def router_network(data: DataSpec, spec: LearnedNetworkSpec, sites: int) -> LearnedNetwork:
    """Returns the network of a learned router over `sites` sites, with undefined weights.

    Raises:
        OptionError: the network wants more frequencies than an image has pixels, or patches that
            do not tile it.
    """
    channels, height, width = data.shape
    if isinstance(spec, RouterTransformerSpec):
        try:
            require_fit(spec.architecture, height, width)
        except ValueError as problem:
            raise OptionError(f"--network {problem}", hint="choose another patch") from None
        return ImageTransformer(data.shape, spec.parsed, sites, len(data.classes))
    if spec.frequencies > height * width:
        raise OptionError(
            f"--frequencies {spec.frequencies}: a channel of these images has {height * width} "
            "pixels, and no more frequencies than pixels",
            hint="choose fewer, or leave it out to read all",
        )
    return CoefficientNetwork(
        channels * spec.frequencies, sites, len(data.classes), spec.width, spec.depth
    )


def basis_read(data: DataSpec, spec: LearnedNetworkSpec) -> Tensor | None:
    """Returns the rows P, `(D, N)`, whose coefficients a network reads; None for whole images."""
    if isinstance(spec, RouterTransformerSpec):
        return None
    return dct_basis(data.shape, spec.frequencies)


def built_tensors(data: DataSpec, built: BuiltRouter) -> TensorTable:
    """Returns the tensors that the file of a built router holds."""
    sites, table = len(built.submissions), TensorTable()
    if built.network is not None:
        with torch.device("meta"):
            state = router_network(data, built.network, sites).state_dict()
        table |= {NETWORK + name: ("F32", tuple(value.shape)) for name, value in state.items()}
    if built.knots:
        table[TEMPERATURE] = ("F32", (len(built.knots),))
        table[BIAS] = ("F32", (len(built.knots), sites))
    return table


def network_tensors(network: LearnedNetwork) -> dict[str, Tensor]:
    """Returns the tensors of a trained network as the file of a built router names them."""
    return {NETWORK + name: value for name, value in network.state_dict().items()}


def calibration_tensors(calibration: Calibration) -> dict[str, Tensor]:
    """Returns the tensors of a calibration as the file names them; its times are in the record."""
    return {
        TEMPERATURE: calibration.log_temperature.float(),
        BIAS: calibration.bias.float(),
    }


def restore_router(
    plan: Plan,
    built: BuiltRouter,
    tensors: Mapping[str, Tensor],
    releases: Sequence[SiteRelease],
    heads: Sequence[Mapping[str, Tensor]] = (),
    embedder: Embedder | None = None,
) -> Router:
    """Returns the router that `built` describes.

    Args:
        plan: What was released.
        built: Which parts there are.
        tensors: Those of `built_tensors`.
        releases: One per site, in the order of `built.submissions`.
        heads: The weights of each site's head, where `needs_heads(built)`.
        embedder: That of the plan's centroids; without it they only know the shares.
    """
    calibration = None
    if built.knots:
        times = torch.tensor([float(knot) for knot in built.knots], dtype=torch.float64)
        logs, biases = tensors[TEMPERATURE].double(), tensors[BIAS].double()
        calibration = Calibration(times, logs, biases)
    if built.kind in ("prior", "mixture"):
        return _calibrated(build_router(plan, built.kind, releases), calibration)
    centroids: CentroidRouter | None = None
    if built.kind == "centroid":
        centroids = planned_centroid_router(plan, releases, embedder)
        return with_captions(plan, _calibrated(centroids, calibration), centroids)
    if built.low == "centroid":
        shares = build_router(plan, "prior", releases)
        centroids = planned_centroid_router(plan, releases, embedder, above=shares)
        low: Router = centroids
    elif built.network is None:
        low = heads_router(plan, heads, releases)
    else:
        low = _learned(plan, built.network, tensors, releases)
    if built.switch is None:
        return _calibrated(low, calibration)
    high = build_router(plan, "mixture", releases)
    hybrid = calibrated_hybrid(high, low, float(built.switch), calibration)
    return hybrid if centroids is None else with_captions(plan, hybrid, centroids)


def calibrated_hybrid(
    high: Router, low: Router, switch: float, calibration: Calibration | None
) -> HybridRouter:
    """Returns the hybrid whose parts are calibrated each by itself.

    Args:
        high: From the time `switch` up.
        low: Below it.
        switch: Where the parts meet.
        calibration: Knots from `switch` up are those of `high`, the others those of `low`.
    """
    if calibration is not None:
        above = calibration.times >= switch
        high = _calibrated(high, calibration.rows(above))
        low = _calibrated(low, calibration.rows(~above))
    return HybridRouter(high, low, switch)


def _calibrated(router: Router, calibration: Calibration | None) -> Router:
    if calibration is None or not len(calibration.times):
        return router
    return CalibratedRouter(router, calibration)


def needs_heads(built: BuiltRouter) -> bool:
    """Returns whether the router asks the sites' heads, which are in their bundles."""
    hybrid = built.kind == "hybrid" and built.network is None and built.low is None
    return built.kind == "heads" or hybrid


def _learned(
    plan: Plan,
    spec: LearnedNetworkSpec,
    tensors: Mapping[str, Tensor],
    releases: Sequence[SiteRelease],
) -> ClassifierRouter:
    network = router_network(plan.data, spec, len(releases))
    network.load_state_dict(
        {
            name.removeprefix(NETWORK): value
            for name, value in tensors.items()
            if name.startswith(NETWORK)
        }
    )
    return ClassifierRouter(
        network.eval().requires_grad_(False),
        basis_read(plan.data, spec),
        PriorRouter(released_weights(plan, releases)),
    )
