"""Public descriptions of images, in which statistics are taken."""

from ddm_fed.embedding.base import Embedder as Embedder
from ddm_fed.embedding.base import FeatureEmbedder as FeatureEmbedder
from ddm_fed.embedding.base import TextEmbedder as TextEmbedder
from ddm_fed.embedding.basis import dct_basis as dct_basis
from ddm_fed.embedding.basis import dct_matrices as dct_matrices
from ddm_fed.embedding.basis import frequency_order as frequency_order
from ddm_fed.embedding.captions import encode_texts as encode_texts
from ddm_fed.embedding.captions import open_text_encoder as open_text_encoder
from ddm_fed.embedding.captions import text_spec as text_spec
from ddm_fed.embedding.clip import ClipEmbedder as ClipEmbedder
from ddm_fed.embedding.fixed_images import fixed_images as fixed_images
from ddm_fed.embedding.opening import open_embedder as open_embedder
from ddm_fed.embedding.timm import TimmEmbedder as TimmEmbedder
