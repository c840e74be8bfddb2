"""Public autoencoders: from pixels to latents and back, from a local folder, by digest."""

from ddm_fed.autoencoders.autoencoder import Autoencoder as Autoencoder
from ddm_fed.autoencoders.autoencoder import AutoencoderCost as AutoencoderCost
from ddm_fed.autoencoders.autoencoder import open_autoencoder as open_autoencoder
from ddm_fed.autoencoders.autoencoder import require_named as require_named
from ddm_fed.autoencoders.folder import OpenedFolder as OpenedFolder
from ddm_fed.autoencoders.folder import read_folder as read_folder
