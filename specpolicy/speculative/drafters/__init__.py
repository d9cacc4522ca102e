"""Drafters: where proposed steps come from."""

from .base import Draft as Draft
from .base import Drafter as Drafter
from .base import DraftStart as DraftStart
from .held import FreeDrafter as FreeDrafter
from .held import FrozenDrafter as FrozenDrafter
from .linear import LinearDrafter as LinearDrafter
from .recycling import RecyclingDrafter as RecyclingDrafter
