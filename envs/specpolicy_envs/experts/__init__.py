"""Experts: they play the tasks from privileged state, to make demonstrations from which policies learn."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specpolicy_envs.experts.base import Expert

EXPERTS: dict[str, str] = {
    "square": "specpolicy_envs.experts.square:SquareExpert",
    "tool_hang": "specpolicy_envs.experts.tool_hang:ToolHangExpert",
    "transport": "specpolicy_envs.experts.transport:TransportExpert",
}
"""task → entry point of its expert. Entry points are strings, so that nothing is imported early."""


def load_expert(task: str) -> Expert:
    """The expert of a task.

    Raises:
        ValueError: there is none; the message names those there are.
    """
    if task not in EXPERTS:
        raise ValueError(f"there is no expert for {task!r}; there is one for {', '.join(EXPERTS)}")
    module, _, name = EXPERTS[task].partition(":")
    expert: Expert = getattr(import_module(module), name)()
    return expert
