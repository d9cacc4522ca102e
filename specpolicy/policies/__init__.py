"""Diffusion policies: networks, normalization, observation encoding, checkpoints."""

from specpolicy.policies.checkpoint import CheckpointError as CheckpointError
from specpolicy.policies.config import PolicyConfig as PolicyConfig
from specpolicy.policies.diffusion_policy import ActionChunk as ActionChunk
from specpolicy.policies.diffusion_policy import DiffusionPolicy as DiffusionPolicy
from specpolicy.policies.networks.mlp import ResidualMlp as ResidualMlp
from specpolicy.policies.networks.transformer import TransformerDenoiser as TransformerDenoiser
from specpolicy.policies.networks.unet1d import ConditionalUnet1d as ConditionalUnet1d
from specpolicy.policies.normalizer import AffineNormalizer as AffineNormalizer
from specpolicy.policies.normalizer import MinMaxNormalizer as MinMaxNormalizer
from specpolicy.policies.observations import ObservationError as ObservationError
from specpolicy.policies.observations import ObservationSpec as ObservationSpec
