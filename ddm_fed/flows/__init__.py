"""The mathematics of flow matching: path, conversion, objective, solvers."""

from ddm_fed.flows.condition import NO_CLASS as NO_CLASS
from ddm_fed.flows.condition import ClassCondition as ClassCondition
from ddm_fed.flows.condition import Condition as Condition
from ddm_fed.flows.condition import rows_of as rows_of
from ddm_fed.flows.convert import Expert as Expert
from ddm_fed.flows.convert import Network as Network
from ddm_fed.flows.convert import VelocityModel as VelocityModel
from ddm_fed.flows.convert import estimates as estimates
from ddm_fed.flows.objective import denoising_loss as denoising_loss
from ddm_fed.flows.objective import logit_normal_times as logit_normal_times
from ddm_fed.flows.objective import shift_times as shift_times
from ddm_fed.flows.objective import uniform_times as uniform_times
from ddm_fed.flows.objective import without_known as without_known
from ddm_fed.flows.path import LINEAR as LINEAR
from ddm_fed.flows.path import Path as Path
from ddm_fed.flows.path import interpolate as interpolate
from ddm_fed.flows.path import path_named as path_named
from ddm_fed.flows.path import velocity as velocity
from ddm_fed.flows.solvers import CALLS_PER_STEP as CALLS_PER_STEP
from ddm_fed.flows.solvers import Solver as Solver
from ddm_fed.flows.solvers import State as State
from ddm_fed.flows.solvers import advance as advance
from ddm_fed.flows.solvers import integrate as integrate
from ddm_fed.flows.solvers import join as join
from ddm_fed.flows.solvers import time_grid as time_grid
