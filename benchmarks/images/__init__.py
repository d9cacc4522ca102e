"""Image models on the package's samplers: training small ones, sampling pipelines, and measuring distances.

Run from the root of a checkout, e.g. ``python -m benchmarks.images.sample model=checkpoints/fashion_mnist``. The
package itself has :func:`specpolicy.accelerate` for diffusers pipelines; what is measured with it lives here.
"""
