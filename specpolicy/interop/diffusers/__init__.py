"""Stock diffusers pipelines, sampled in few sequential network evaluations.

>>> from specpolicy import accelerate
>>> with accelerate(pipeline) as fast:
...     image = pipeline(num_inference_steps=250).images[0]
>>> fast.account.passes

The pipeline runs its own code, encoders, decoders and safety checks included; the states of its denoising loop come
from a :class:`~specpolicy.SpeculativeSampler`. The images follow exactly the distribution of the stock pipeline's.
"""

from specpolicy.interop.diffusers.accelerate import Acceleration as Acceleration
from specpolicy.interop.diffusers.accelerate import accelerate_pipeline as accelerate_pipeline
from specpolicy.interop.diffusers.accelerate import acceleration_of as acceleration_of
from specpolicy.interop.diffusers.accelerate import approximate as approximate
from specpolicy.interop.diffusers.families import FAMILIES as FAMILIES
from specpolicy.interop.diffusers.families import UnsupportedPipeline as UnsupportedPipeline
