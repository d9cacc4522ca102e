"""Image models on the same core: sampling a diffusers pipeline with several samplers, side by side."""

from .figures import acceptance_figure as acceptance_figure
from .figures import image_grid as image_grid
from .job import ImageJob as ImageJob
from .job import sample_images as sample_images
from .pipelines import load_pipeline as load_pipeline
from .pixels import PixelDiTPipeline as PixelDiTPipeline
from .record import Batch as Batch
