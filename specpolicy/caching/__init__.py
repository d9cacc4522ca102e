"""Token caching for transformer denoisers, after SpecDiff (Pan et al. 2025). *Not exact.*

Neighbouring steps of a chain find similar features. So only the most important tokens of each pass are computed; the
others come from the cache, copied or extrapolated. The samples are near those of the whole network, and of another
law: everything here says ``exact = False``. What samples the chain's own law is in :mod:`specpolicy.speculative`.
"""

from .families import FAMILIES as FAMILIES
from .operations import count_operations as count_operations
from .pipelines import Caching as Caching
from .pipelines import cache as cache
from .recipe import specdiff as specdiff
from .result import CachedResult as CachedResult
from .sampler import CachedSampler as CachedSampler
from .settings import CacheSettings as CacheSettings
from .settings import CachingError as CachingError
from .speculation import course_of as course_of
