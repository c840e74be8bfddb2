"""One owner's images as several islands: clusters of features, a shard of images for each.

Source: McAllister et al. 2025, arXiv:2501.05450, section 3.2; two stages of k-means: Ma et al.
2024 (MoDE), arXiv:2404.16030, section 3.1.
"""

from ddm_fed.partition.clusters import FINE as FINE
from ddm_fed.partition.clusters import at_random as at_random
from ddm_fed.partition.clusters import coarse_centres as coarse_centres
from ddm_fed.partition.clusters import nearest as nearest
from ddm_fed.partition.clusters import whole_units as whole_units
from ddm_fed.partition.division import CHANCE as CHANCE
from ddm_fed.partition.division import GIVEN_CENTRES as GIVEN_CENTRES
from ddm_fed.partition.division import OWN_CLUSTERS as OWN_CLUSTERS
from ddm_fed.partition.division import depends_on_others as depends_on_others
from ddm_fed.partition.features import Describe as Describe
from ddm_fed.partition.features import cosines as cosines
from ddm_fed.partition.features import described as described
from ddm_fed.partition.images import MappedImages as MappedImages
from ddm_fed.partition.images import open_images as open_images
from ddm_fed.partition.shards import Shard as Shard
from ddm_fed.partition.shards import write_shards as write_shards
