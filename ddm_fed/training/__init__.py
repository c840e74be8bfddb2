"""One site's expert, trained in isolation: a loop that a kill cannot change.

Everything random in step s is drawn from a generator seeded by (seed, s), and the batch of step s
is a function of (seed, s, N). So a checkpoint needs no random state, and a run that was killed and
resumed ends with the same weights, bit for bit, as one that never stopped: on the same machine
type, with the same torch, precision, threads, processes, micro-batches and compilation, which the
checkpoint records.
"""

from ddm_fed.training.batches import seeded as seeded
from ddm_fed.training.extension import FinishedRun as FinishedRun
from ddm_fed.training.gradients import build_gradients as build_gradients
from ddm_fed.training.gradients import made_up_units as made_up_units
from ddm_fed.training.gradients import row_loss as row_loss
from ddm_fed.training.known_velocity import KnownVelocity as KnownVelocity
from ddm_fed.training.loop import require_possible as require_possible
from ddm_fed.training.loop import train_expert as train_expert
from ddm_fed.training.mean_images import draw_central as draw_central
from ddm_fed.training.options import RunOptions as RunOptions
from ddm_fed.training.options import TrainedExpert as TrainedExpert
from ddm_fed.training.parallel import process_rank as process_rank
from ddm_fed.training.precision import Precision as Precision
from ddm_fed.training.precision import choose_precision as choose_precision
from ddm_fed.training.private_loop import help_private_expert as help_private_expert
from ddm_fed.training.private_loop import train_private_expert as train_private_expert
from ddm_fed.training.private_options import CentralImages as CentralImages
from ddm_fed.training.private_options import Paid as Paid
from ddm_fed.training.private_options import Payment as Payment
from ddm_fed.training.private_options import PrivateTraining as PrivateTraining
from ddm_fed.training.private_run import PrivateRun as PrivateRun
from ddm_fed.training.private_run import Source as Source
from ddm_fed.training.state import read_identity as read_identity
from ddm_fed.training.state import read_trained as read_trained
from ddm_fed.training.state import steps_done as steps_done
from ddm_fed.training.trainable import TrainedPart as TrainedPart
from ddm_fed.training.trainable import trained_weights as trained_weights
from ddm_fed.training.trainable import training_cost as training_cost
from ddm_fed.training.trial_run import trial_run as trial_run
from ddm_fed.training.unit_rows import UnitDraws as UnitDraws
from ddm_fed.training.warmstart import require_base as require_base
