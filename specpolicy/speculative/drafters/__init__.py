"""Drafters: where proposed steps come from."""

from specpolicy.speculative.drafters.base import Draft as Draft
from specpolicy.speculative.drafters.base import Drafter as Drafter
from specpolicy.speculative.drafters.base import DraftStart as DraftStart
from specpolicy.speculative.drafters.constant import FreeDrafter as FreeDrafter
from specpolicy.speculative.drafters.constant import FrozenDrafter as FrozenDrafter
from specpolicy.speculative.drafters.linear import LinearDrafter as LinearDrafter
from specpolicy.speculative.drafters.recycling import RecyclingDrafter as RecyclingDrafter
