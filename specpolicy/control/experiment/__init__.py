"""Executors × samplers × latencies × seeds, into one results folder, with intervals.

Results are kept by :class:`specpolicy.evaluation.ResultStore`; a cell of the experiment stands where an evaluation has
its sampler. The account of every tick is beside them in ``ticks/``.
"""

from .cells import Cell as Cell
from .cells import cross as cross
from .experiment import ControlExperiment as ControlExperiment
from .experiment import run_control as run_control
from .latencies import Charge as Charge
from .latencies import LatencyError as LatencyError
from .latencies import parse_charge as parse_charge
