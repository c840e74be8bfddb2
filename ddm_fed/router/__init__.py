"""Which site's expert answers: log p(k | x_t, t, c) from releases alone."""

from ddm_fed.router.base import Router as Router
from ddm_fed.router.fit import RouterKind as RouterKind
from ddm_fed.router.fit import SiteRelease as SiteRelease
from ddm_fed.router.fit import build_router as build_router
from ddm_fed.router.mixture import GaussianMixtures as GaussianMixtures
from ddm_fed.router.mixture import MixtureRouter as MixtureRouter
from ddm_fed.router.prior import PriorRouter as PriorRouter
from ddm_fed.router.statistics import ROUTER_PURPOSES as ROUTER_PURPOSES
from ddm_fed.router.statistics import release_statistics as release_statistics
from ddm_fed.router.statistics import release_tensors as release_tensors
from ddm_fed.router.statistics import router_shares as router_shares
