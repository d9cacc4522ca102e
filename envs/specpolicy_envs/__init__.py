"""Gymnasium environments of the Robomimic tasks.

Importing this package registers the ids of :mod:`specpolicy_envs.registration` and nothing more: the simulator is
imported when an environment is made. ``gym.make("specpolicy_envs:specpolicy/Square-v0")`` does both at once.
"""

from __future__ import annotations

from .registration import register_environments as register_environments
from .rendering import RenderingUnavailable as RenderingUnavailable
from .rendering import rendering_available as rendering_available
from .rendering import rendering_problem as rendering_problem

register_environments()
