"""Token caching for transformer denoisers, after SpecDiff (Pan et al. 2025). Not exact.

Neighbouring steps of a chain have similar features, so each evaluation computes only the most important tokens; the
others come from the cache, copied or extrapolated. The samples are close to those of the whole network, but of another
distribution: everything here says ``exact = False``. Exact samplers are in :mod:`specpolicy.speculative`.
"""

from specpolicy.approximate.specdiff.families import FAMILIES as FAMILIES
from specpolicy.approximate.specdiff.importance import CacheSettings as CacheSettings
from specpolicy.approximate.specdiff.importance import CachingError as CachingError
from specpolicy.approximate.specdiff.importance import count_operations as count_operations
from specpolicy.approximate.specdiff.importance import trajectory_of as trajectory_of
from specpolicy.approximate.specdiff.sampler import CachedResult as CachedResult
from specpolicy.approximate.specdiff.sampler import CachedSampler as CachedSampler
from specpolicy.approximate.specdiff.sampler import Caching as Caching
from specpolicy.approximate.specdiff.sampler import cache as cache
from specpolicy.approximate.specdiff.sampler import specdiff as specdiff
