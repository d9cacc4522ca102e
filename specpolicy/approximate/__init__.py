"""Samplers that are *not* exact: they give up the distribution of the chain for fewer network evaluations.

Everything here says ``exact = False``. Exact samplers are in :mod:`specpolicy.speculative`.
"""

from specpolicy.approximate.asdsv import AsdsvResult as AsdsvResult
from specpolicy.approximate.asdsv import AsdsvSampler as AsdsvSampler
from specpolicy.approximate.asdsv import DraftSchedule as DraftSchedule
from specpolicy.approximate.asdsv import ThresholdVerifier as ThresholdVerifier
from specpolicy.approximate.asdsv import asdsv as asdsv
from specpolicy.approximate.asdsv import asdsv_fast as asdsv_fast
from specpolicy.approximate.asdsv import asdsv_slow as asdsv_slow
from specpolicy.approximate.warm_ddim import WarmDDIM as WarmDDIM
from specpolicy.approximate.warm_ddim import warm_ddim as warm_ddim
