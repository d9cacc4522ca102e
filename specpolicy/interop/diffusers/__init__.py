"""Stock diffusers pipelines, sampled in few network passes.

>>> from specpolicy.interop.diffusers import accelerate
>>> with accelerate(pipeline) as fast:
...     image = pipeline(num_inference_steps=250).images[0]
>>> fast.account.passes

The pipeline runs its own code, encoders, decoders and safety checks included; the states of its denoising loop come
from a :class:`~specpolicy.SpeculativeSampler`. The images have exactly the law of the stock pipeline's.
"""

from .acceleration import Acceleration as Acceleration
from .acceleration import accelerate as accelerate
from .approximation import approximate as approximate
from .families import FAMILIES as FAMILIES
from .refusal import PipelineRefused as PipelineRefused
