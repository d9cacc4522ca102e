"""The same rounds in static shapes: compiled for a CPU, captured as CUDA graphs.

A round of :class:`specpolicy.SpeculativeSampler` asks the host again and again how far which chain has come. Here all
chains of a batch take part in every round, finished ones idly, every window is padded to one of a few widths, and
nothing in a round looks at a number: it can be compiled as one function and replayed as one launch.
"""

from .chain import CompiledChain as CompiledChain
from .filling import powers_up_to as powers_up_to
from .make import compile_sampler as compile_sampler
from .runners import Backend as Backend
from .sampler import CompiledSampler as CompiledSampler
