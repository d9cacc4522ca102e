"""Diffusion policies: networks, normalization, observation encoding, checkpoints."""

from .checkpoint import CheckpointError as CheckpointError
from .checkpoint import load_policy as load_policy
from .config import PolicyConfig as PolicyConfig
from .diffusion_policy import ActionChunk as ActionChunk
from .diffusion_policy import DiffusionPolicy as DiffusionPolicy
from .networks import ConditionalUnet1d as ConditionalUnet1d
from .networks import ResidualMlp as ResidualMlp
from .networks import TransformerDenoiser as TransformerDenoiser
from .normalizer import MinMaxNormalizer as MinMaxNormalizer
from .observations import ObservationError as ObservationError
from .observations import ObservationSpec as ObservationSpec
