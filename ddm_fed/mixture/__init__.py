"""What a site releases about its images, and which Gaussian mixture that describes."""

from ddm_fed.mixture.bounds import require_plausible as require_plausible
from ddm_fed.mixture.fit import ImageMixture as ImageMixture
from ddm_fed.mixture.fit import fit_image_mixtures as fit_image_mixtures
from ddm_fed.mixture.fit import fit_mixtures as fit_mixtures
from ddm_fed.mixture.gaussians import GaussianMixtures as GaussianMixtures
from ddm_fed.mixture.location import Location as Location
from ddm_fed.mixture.location import decode_location as decode_location
from ddm_fed.mixture.max_share import capped as capped
from ddm_fed.mixture.messages import LOCATION as LOCATION
from ddm_fed.mixture.messages import ROUTER_PURPOSES as ROUTER_PURPOSES
from ddm_fed.mixture.messages import message_named as message_named
from ddm_fed.mixture.messages import messages as messages
from ddm_fed.mixture.messages import release_tensors as release_tensors
from ddm_fed.mixture.messages import router_events as router_events
from ddm_fed.mixture.messages import router_shares as router_shares
from ddm_fed.mixture.noisy_vector import Ints as Ints
from ddm_fed.mixture.released import SiteRelease as SiteRelease
from ddm_fed.mixture.released import location_of as location_of
from ddm_fed.mixture.released import released_totals as released_totals
from ddm_fed.mixture.released import released_weights as released_weights
from ddm_fed.mixture.rule import MixtureChoice as MixtureChoice
from ddm_fed.mixture.rule import mixture_rule as mixture_rule
from ddm_fed.mixture.statistics import exact_statistics as exact_statistics
from ddm_fed.mixture.statistics import examine_messages as examine_messages
from ddm_fed.mixture.statistics import release_statistics as release_statistics
from ddm_fed.mixture.velocity import MixtureVelocity as MixtureVelocity
