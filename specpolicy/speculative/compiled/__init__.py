"""The same rounds in static shapes: compiled for a CPU, captured as CUDA graphs.

A round of :class:`specpolicy.SpeculativeSampler` asks the host again and again how far which chain has come. Here all
chains of a batch take part in every round, finished ones idly, every window is padded to one of a few widths, and
nothing in a round looks at a number: it can be compiled as one function and replayed as one launch.
"""

from specpolicy.speculative.compiled.backends import Backend as Backend
from specpolicy.speculative.compiled.backends import batch_buckets as batch_buckets
from specpolicy.speculative.compiled.sampler import CompiledChain as CompiledChain
from specpolicy.speculative.compiled.sampler import CompiledSampler as CompiledSampler
from specpolicy.speculative.compiled.sampler import compile_sampler as compile_sampler
