"""Samplers that are *not* exact: they trade the law of the chain for fewer passes of the target network.

Everything here says ``exact = False``. What samples the chain's own law is in :mod:`specpolicy.speculative`.
"""

from .asdsv import AsdsvSampler as AsdsvSampler
from .asdsv import Stages as Stages
from .asdsv import asdsv_fast as asdsv_fast
from .asdsv import asdsv_slow as asdsv_slow
from .recipe import asdsv as asdsv
from .result import AsdsvResult as AsdsvResult
from .threshold import ThresholdVerifier as ThresholdVerifier
