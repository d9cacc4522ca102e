"""Networks whose blocks can be cached, and how each lets the cache in."""

from .family import FAMILIES as FAMILIES
from .family import Family as Family
from .family import find_network as find_network
