"""Image models on the same core: sampling a diffusers pipeline with several samplers, side by side."""

from specpolicy.images.measuring import Batch as Batch
from specpolicy.images.measuring import ImageJob as ImageJob
from specpolicy.images.measuring import acceptance_figure as acceptance_figure
from specpolicy.images.measuring import image_grid as image_grid
from specpolicy.images.measuring import load_pipeline as load_pipeline
from specpolicy.images.measuring import sample_images as sample_images
from specpolicy.images.pixels import PixelDiTPipeline as PixelDiTPipeline
