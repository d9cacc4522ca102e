"""Training image networks of one channel."""

from .idx import DataError as DataError
from .idx import LabelledImages as LabelledImages
from .idx import read_images as read_images
from .saving import save_model as save_model
from .train import train_image_model as train_image_model
