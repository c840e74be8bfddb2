"""Everything that makes a value safe to leave, and the price of letting it."""

from ddm_fed.privacy.accountant import accountant_name as accountant_name
from ddm_fed.privacy.accountant import check_chain as check_chain
from ddm_fed.privacy.accountant import epsilon as epsilon
from ddm_fed.privacy.accountant import epsilon_text as epsilon_text
from ddm_fed.privacy.accountant import gaussian_events as gaussian_events
from ddm_fed.privacy.accountant import private_events as private_events
from ddm_fed.privacy.mechanisms import BoundedStatistic as BoundedStatistic
from ddm_fed.privacy.mechanisms import Release as Release
from ddm_fed.privacy.mechanisms import Spend as Spend
from ddm_fed.privacy.mechanisms import release as release
from ddm_fed.privacy.private import ImageSet as ImageSet
from ddm_fed.privacy.private import Private as Private
from ddm_fed.privacy.private import to_unit_range as to_unit_range
