"""Public descriptions of images, in which statistics are taken."""

from ddm_fed.embedding.basis import dct_basis as dct_basis
