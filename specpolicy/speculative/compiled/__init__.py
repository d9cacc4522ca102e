"""The same rounds in static shapes: compiled for a CPU, captured as CUDA graphs.

A round of :class:`specpolicy.SpeculativeSampler` asks the host again and again how far which chain has come. Here all
chains of a batch take part in every round, finished ones idly, every window is padded to one of a few widths, and
nothing in a round looks at a number: it can be compiled as one function and replayed as one launch. Or the network
alone is handed to another runtime, and the rounds stay as they are.
"""

from specpolicy.speculative.compiled.backends import Backend as Backend
from specpolicy.speculative.compiled.backends import batch_buckets as batch_buckets
from specpolicy.speculative.compiled.openvino_network import OpenVINODenoiser as OpenVINODenoiser
from specpolicy.speculative.compiled.runtime import RuntimeChain as RuntimeChain
from specpolicy.speculative.compiled.runtime import RuntimeSampler as RuntimeSampler
from specpolicy.speculative.compiled.sampler import CompiledChain as CompiledChain
from specpolicy.speculative.compiled.sampler import CompiledSampler as CompiledSampler
from specpolicy.speculative.compiled.sampler import compile_sampler as compile_sampler
