"""The schedulers of diffusers without what they import on the way: 3.7 s of processor time when a policy is loaded.

``import diffusers`` loads ``torch._dynamo`` and sympy, 2.6 s, for a decorator that some of its image networks carry;
here they are loaded when that decorator is first used. ``from_config`` imports every scheduler that could be meant, and
scipy with them, 1.1 s; :func:`scheduler_from_config` does not.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"


class _CompilerOnDemand(ModuleType):
    """Stands for ``torch._dynamo`` while diffusers is imported; all else comes from the real one."""

    @staticmethod
    def allow_in_graph(function: Callable[..., Any]) -> Any:
        """As ``torch._dynamo.allow_in_graph``, which is imported now."""
        return importlib.import_module(_COMPILER).allow_in_graph(function)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system looks whether this is a package
            raise AttributeError(name)
        if sys.modules.get(_COMPILER) is self:
            del sys.modules[_COMPILER]
        return getattr(importlib.import_module(_COMPILER), name)


@contextmanager
def _compiler_on_demand() -> Iterator[None]:
    """Put off the import of ``torch._dynamo``, unless it is there or another thread might want it meanwhile."""
    if _COMPILER in sys.modules or threading.active_count() > 1:
        yield
        return
    importlib.import_module("torch")
    stand_in = sys.modules[_COMPILER] = _CompilerOnDemand(_COMPILER)
    try:
        yield
    finally:
        if sys.modules.get(_COMPILER) is stand_in:
            del sys.modules[_COMPILER]


with _compiler_on_demand():
    from diffusers import DDIMScheduler as DDIMScheduler
    from diffusers import DDPMScheduler as DDPMScheduler


def scheduler_from_config(kind: Any, config: Mapping[str, Any], **changes: Any) -> Any:
    """Make a scheduler as ``kind.from_config`` does.

    Args:
        kind: a scheduler's class.
        config: of a scheduler, maybe of another class: what ``kind`` does not take is kept, and not used.
        **changes: settings of ``kind`` in the place of those of ``config``.

    Returns:
        The scheduler; settings that ``config`` only has by default are those of ``kind``.
    """
    by_default = {"_use_default_values", *config.get("_use_default_values", ())}
    settings = {key: value for key, value in config.items() if key not in by_default} | changes
    taken = inspect.signature(kind.__init__).parameters
    scheduler = kind(**{key: value for key, value in settings.items() if key in taken})
    others = {key: value for key, value in settings.items() if key not in taken}
    scheduler.register_to_config(**others | ({"_class_name": kind.__name__} if "_class_name" in others else {}))
    return scheduler
