"""Executors × samplers × latencies × seeds, into one results folder, with intervals.

Results are kept by :class:`specpolicy.evaluation.ResultStore`; a cell of the experiment stands where an evaluation has
its sampler. The account of every tick is beside them in ``ticks/``.
"""

from specpolicy.control.controller import ControllerConfig as ControllerConfig
from specpolicy.control.controller import InjectedLatency as InjectedLatency
from specpolicy.control.controller import LatencyError as LatencyError
from specpolicy.control.controller import grid as grid
from specpolicy.control.controller import parse_latency as parse_latency
from specpolicy.evaluation.control.experiment import ControlExperiment as ControlExperiment
from specpolicy.evaluation.control.experiment import run_control as run_control
