"""From a policy, samplers and an environment to a table that survives a referee.

Success is counted over seeds (:func:`run_study` into a :class:`ResultStore`), latency is timed apart from it
(:func:`measure_latency`), :func:`summarize` joins both into rows with intervals and paired tests, and
:func:`rich_table` shows them. Pictures and clips are imported on their own, from ``specpolicy.evaluation.plot`` and
``specpolicy.evaluation.video``: the processes that run environments start faster without matplotlib.
"""

from specpolicy.locking import FolderInUse as FolderInUse

from . import _requirements as _requirements
from .episodes import EpisodeKey as EpisodeKey
from .episodes import EpisodeRecord as EpisodeRecord
from .episodes import episode_keys as episode_keys
from .latency import CallLog as CallLog
from .latency import LatencyRun as LatencyRun
from .latency import measure_latency as measure_latency
from .manifest import ConfigurationMismatch as ConfigurationMismatch
from .manifest import Manifest as Manifest
from .manifest import ManifestError as ManifestError
from .player import EpisodePlayer as EpisodePlayer
from .player import MakeEnv as MakeEnv
from .pool import EnvPool as EnvPool
from .provenance import checkpoint_digest as checkpoint_digest
from .provenance import collect_provenance as collect_provenance
from .rollout import EvaluationAborted as EvaluationAborted
from .rollout import rollout as rollout
from .seeding import episode_generator as episode_generator
from .shards import CorruptShardWarning as CorruptShardWarning
from .statistics import Estimate as Estimate
from .store import ResultStore as ResultStore
from .store import read_results as read_results
from .study import run_study as run_study
from .summary import LatencySummary as LatencySummary
from .summary import SummaryRow as SummaryRow
from .summary import summarize as summarize
from .table import json_table as json_table
from .table import markdown_table as markdown_table
from .table import rich_table as rich_table
from .tap import ObservationTap as ObservationTap
