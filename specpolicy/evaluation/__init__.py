"""From a policy, samplers and an environment to a table with intervals and paired tests.

Success is counted over seeds (:func:`run_episodes`, kept in a :class:`ResultStore`), latency is timed apart from it
(:func:`measure_latency`), :func:`summarize` joins both into rows with intervals and paired tests, and
:func:`rich_table` shows them. Pictures and clips are imported on their own, from ``specpolicy.evaluation.plots`` and
``specpolicy.evaluation.video``: the processes that run environments start faster without matplotlib.
"""

# ruff: noqa: E402
from specpolicy.utils.extras import require_all as _require_all

_require_all(("scipy", "pyarrow", "matplotlib", "imageio_ffmpeg", "jinja2"), "eval")  # before anything imports one

from specpolicy.control.inference import episode_generator as episode_generator
from specpolicy.control.latency_log import CallLog as CallLog
from specpolicy.control.latency_log import LatencyRun as LatencyRun
from specpolicy.evaluation.latency import measure_latency as measure_latency
from specpolicy.evaluation.manifest import ConfigurationMismatch as ConfigurationMismatch
from specpolicy.evaluation.manifest import Manifest as Manifest
from specpolicy.evaluation.manifest import ManifestError as ManifestError
from specpolicy.evaluation.manifest import ResultsError as ResultsError
from specpolicy.evaluation.results import CorruptShardWarning as CorruptShardWarning
from specpolicy.evaluation.results import ResultStore as ResultStore
from specpolicy.evaluation.results import read_results as read_results
from specpolicy.evaluation.statistics import Estimate as Estimate
from specpolicy.evaluation.summary import LatencySummary as LatencySummary
from specpolicy.evaluation.summary import SummaryRow as SummaryRow
from specpolicy.evaluation.summary import summarize as summarize
from specpolicy.evaluation.tables import json_table as json_table
from specpolicy.evaluation.tables import markdown_table as markdown_table
from specpolicy.evaluation.tables import rich_table as rich_table
from specpolicy.rollout.env_worker import EnvPool as EnvPool
from specpolicy.rollout.env_worker import MakeEnv as MakeEnv
from specpolicy.rollout.env_worker import WorkerConfig as WorkerConfig
from specpolicy.rollout.episodes import EpisodeKey as EpisodeKey
from specpolicy.rollout.episodes import EpisodeResult as EpisodeResult
from specpolicy.rollout.episodes import EpisodeSpec as EpisodeSpec
from specpolicy.rollout.episodes import episode_keys as episode_keys
from specpolicy.rollout.runner import EvaluationAborted as EvaluationAborted
from specpolicy.rollout.runner import ObservationRecorder as ObservationRecorder
from specpolicy.rollout.runner import run_episodes as run_episodes
from specpolicy.utils.digests import checkpoint_digest as checkpoint_digest
from specpolicy.utils.files import FolderInUse as FolderInUse
from specpolicy.utils.provenance import collect_provenance as collect_provenance
