"""What a demonstration file tells about its environment, so that robomimic can make it again."""

from __future__ import annotations

import json
import re
from importlib import metadata
from typing import Any

import gymnasium

from .layout import GYM_ENVIRONMENT, ROBOSUITE_ENVIRONMENT


def environment_arguments(env: gymnasium.Env[Any, Any]) -> dict[str, Any]:
    """robomimic's ``env_args`` of an unwrapped environment.

    Args:
        env: one whose ``task`` gives ``robosuite_arguments()`` is described as the robosuite environment that it
            wraps; any other as a gymnasium environment, by its id.
    """
    describe = getattr(getattr(env, "task", None), "robosuite_arguments", None)
    if describe is not None:
        kwargs = dict(describe())
        name, version, kind = kwargs.pop("env_name"), metadata.version("robosuite"), ROBOSUITE_ENVIRONMENT
    else:
        spec = env.spec
        name, kwargs = (spec.id, dict(spec.kwargs)) if spec is not None else (type(env).__name__, {})
        version, kind = metadata.version("gymnasium"), GYM_ENVIRONMENT
    plain: dict[str, Any] = json.loads(
        json.dumps({"env_name": name, "env_version": version, "type": kind, "env_kwargs": kwargs})
    )
    return plain


def scene_xml(env: gymnasium.Env[Any, Any]) -> str | None:
    """The scene as MuJoCo's XML, None if it is not robosuite's.

    Paths of meshes and textures begin at the package ``robosuite``: robosuite puts its own folder in front when it
    loads them, and the text does not depend on where this machine keeps it.
    """
    robosuite = getattr(env, "robosuite", None)
    if robosuite is None:
        return None
    xml: str = robosuite.sim.model.get_xml()
    return re.sub(r'file="[^"]*/(robosuite/models/)', r'file="\1', xml)
