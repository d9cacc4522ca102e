"""From a policy or a pipeline's scheduler to a caching sampler, for ``configs/sampler``."""

from __future__ import annotations

from specpolicy.policies import DiffusionPolicy
from specpolicy.recipes import Trained, ddim, sequential

from .families import find_network
from .sampler import CachedSampler
from .settings import CacheSettings
from .speculation import course_of


def specdiff(
    policy: Trained,
    num_inference_steps: int,
    ratio: float = 0.5,
    copied: float = 0.1,
    speculative: int = 2,
    eta: float | None = None,
) -> CachedSampler:
    """A chain whose passes take part of the action tokens from a cache, after SpecDiff. Approximate.

    Args:
        policy: with a transformer network; or the scheduler of a pipeline with one.
        num_inference_steps: K.
        ratio, copied, speculative: see :class:`CacheSettings`.
        eta: None for the DDPM chain, otherwise DDIM's.

    Raises:
        CachingError: the policy's network has no tokens.
        ValueError: a setting is out of its range.
    """
    scheduler = policy
    if isinstance(policy, DiffusionPolicy):
        find_network(policy)
        scheduler = policy.scheduler
    steps = sequential(policy, num_inference_steps) if eta is None else ddim(policy, num_inference_steps, eta)
    return CachedSampler(steps, CacheSettings(ratio, copied, speculative), course_of(scheduler))
