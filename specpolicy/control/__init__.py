"""The real-time loop: clocks, executors, guards, and an account of every tick.

A policy and an executor make a controller. The loop knows an environment through gymnasium's interface alone and a
policy through :class:`LoopPolicy`; many episodes at once are in :mod:`specpolicy.control.experiment`.
"""

from .account import EpisodeAccount as EpisodeAccount
from .account import Job as Job
from .account import TickRow as TickRow
from .actions import ActionMeaning as ActionMeaning
from .clocks import ChargedClock as ChargedClock
from .clocks import Clock as Clock
from .clocks import RealTimeClock as RealTimeClock
from .executors import Ahead as Ahead
from .executors import Asynchronous as Asynchronous
from .executors import Blocking as Blocking
from .executors import Executor as Executor
from .executors import Lockstep as Lockstep
from .executors import Meanwhile as Meanwhile
from .executors import PreDrafting as PreDrafting
from .executors import RecedingHorizon as RecedingHorizon
from .executors import Rules as Rules
from .guards import Fault as Fault
from .guards import Guards as Guards
from .guards import Response as Response
from .latency import Constant as Constant
from .latency import Empirical as Empirical
from .latency import Latency as Latency
from .latency import LogNormal as LogNormal
from .latency import Measured as Measured
from .loop import ControlLoop as ControlLoop
from .plan import Ensemble as Ensemble
from .plan import Newest as Newest
from .predictors import LastObservation as LastObservation
from .predictors import LinearObservation as LinearObservation
from .questions import Answer as Answer
from .questions import Kind as Kind
from .questions import LoopPolicy as LoopPolicy
from .questions import Question as Question
from .sampled import SampledPolicy as SampledPolicy
