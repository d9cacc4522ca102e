"""How far two sets of images are apart, in the features of a network that was trained on ImageNet."""

from .features import ImageNetFeatures as ImageNetFeatures
from .frechet import FrechetScale as FrechetScale
from .frechet import Measured as Measured
