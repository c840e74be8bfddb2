"""The mathematics of flow matching: path, objective, solvers."""

from ddm_fed.flows.objective import VelocityModel as VelocityModel
from ddm_fed.flows.objective import logit_normal_times as logit_normal_times
from ddm_fed.flows.objective import uniform_times as uniform_times
from ddm_fed.flows.objective import velocity_loss as velocity_loss
from ddm_fed.flows.path import alpha as alpha
from ddm_fed.flows.path import interpolate as interpolate
from ddm_fed.flows.path import sigma as sigma
from ddm_fed.flows.path import velocity as velocity
from ddm_fed.flows.solvers import CALLS_PER_STEP as CALLS_PER_STEP
from ddm_fed.flows.solvers import Solver as Solver
from ddm_fed.flows.solvers import integrate as integrate
from ddm_fed.flows.solvers import time_grid as time_grid
