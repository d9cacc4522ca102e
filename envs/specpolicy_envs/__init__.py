"""Gymnasium environments of the Robomimic tasks.

Importing this package registers the ids of :mod:`specpolicy_envs.robosuite_tasks` and nothing more: the simulator is
imported when an environment is made. ``gym.make("specpolicy_envs:specpolicy/Square-v0")`` does both at once.
"""

from __future__ import annotations

from specpolicy_envs.rendering import RenderingUnavailable as RenderingUnavailable
from specpolicy_envs.rendering import rendering_available as rendering_available
from specpolicy_envs.rendering import rendering_problem as rendering_problem
from specpolicy_envs.robosuite_tasks import register_environments as register_environments

register_environments()
