"""How good an ensemble is, and how fair."""

from ddm_fed.evaluation.shares import ShareError as ShareError
from ddm_fed.evaluation.shares import site_share_error as site_share_error
