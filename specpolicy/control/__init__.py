"""The real-time loop: clocks, executors, guards, and an account of every tick.

A policy and an executor make a controller. The loop knows an environment through gymnasium's interface alone and a
policy through :class:`LoopPolicy`; many episodes at once are in :mod:`specpolicy.evaluation.control`.
"""

from specpolicy.control.action_buffer import LatestOnly as LatestOnly
from specpolicy.control.action_buffer import TemporalEnsemble as TemporalEnsemble
from specpolicy.control.action_space import ActionSpec as ActionSpec
from specpolicy.control.clocks import Clock as Clock
from specpolicy.control.clocks import RealTimeClock as RealTimeClock
from specpolicy.control.clocks import SimulatedLatencyClock as SimulatedLatencyClock
from specpolicy.control.executors import Asynchronous as Asynchronous
from specpolicy.control.executors import Blocking as Blocking
from specpolicy.control.executors import Executor as Executor
from specpolicy.control.executors import ExecutorConfig as ExecutorConfig
from specpolicy.control.executors import IdleBehavior as IdleBehavior
from specpolicy.control.executors import LastObservation as LastObservation
from specpolicy.control.executors import LinearObservation as LinearObservation
from specpolicy.control.executors import Lockstep as Lockstep
from specpolicy.control.executors import PredraftConfig as PredraftConfig
from specpolicy.control.executors import PreDrafting as PreDrafting
from specpolicy.control.executors import RecedingHorizon as RecedingHorizon
from specpolicy.control.guards import Fault as Fault
from specpolicy.control.guards import Guards as Guards
from specpolicy.control.guards import Response as Response
from specpolicy.control.inference import InferenceKind as InferenceKind
from specpolicy.control.inference import InferenceRequest as InferenceRequest
from specpolicy.control.inference import InferenceResult as InferenceResult
from specpolicy.control.inference import LoopPolicy as LoopPolicy
from specpolicy.control.inference import PolicyRunner as PolicyRunner
from specpolicy.control.interpolation import Interpolation as Interpolation
from specpolicy.control.latency import Constant as Constant
from specpolicy.control.latency import Empirical as Empirical
from specpolicy.control.latency import Latency as Latency
from specpolicy.control.latency import LogNormal as LogNormal
from specpolicy.control.latency import Measured as Measured
from specpolicy.control.loop import ControlLoop as ControlLoop
from specpolicy.control.motion_limits import MotionLimits as MotionLimits
from specpolicy.control.motion_limits import Orientation as Orientation
from specpolicy.control.motion_limits import Workspace as Workspace
from specpolicy.control.realtime import request_real_time as request_real_time
from specpolicy.control.trace import EpisodeTrace as EpisodeTrace
from specpolicy.control.trace import InferenceRecord as InferenceRecord
from specpolicy.control.trace import StepRecord as StepRecord
from specpolicy.control.watchdog import Watchdog as Watchdog
from specpolicy.control.watchdog import WatchdogConfig as WatchdogConfig
from specpolicy.control.watchdog import WatchdogTripped as WatchdogTripped
