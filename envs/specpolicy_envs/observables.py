"""robosuite's observables and success, without what a policy does not see."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


def observe(env: Any, names: Collection[str]) -> tuple[dict[str, NDArray[np.float64]], bool]:
    """What the present state looks like to a policy, and whether it is a success.

    The numbers are those of ``env._get_observations(force_update=True)`` and ``env._check_success()``, bit for bit.

    Args:
        env: a robosuite environment whose derived quantities are current.
        names: names of observables, or ``"object"`` for those of all objects together, robosuite's ``object-state``.

    Returns:
        Name → array, in the order of ``names``; and success.
    """
    wanted = set(names)
    with _plain_contacts(env.sim):
        objects = []
        for name, observable in env._observables.items():
            is_object = observable.modality == "object"
            # objects' poses in the frame of a hand are made from the hand's pose
            if name in wanted or is_object or name.endswith(("eef_pos", "eef_quat")):
                observable.update(timestep=env.model_timestep, obs_cache=env._obs_cache, force=True)
                if is_object and observable.is_active():
                    objects.append(np.atleast_1d(observable.obs))
        values = {name: np.concatenate(objects) if name == "object" else env._observables[name].obs for name in names}
        return {name: np.array(value, dtype=np.float64) for name, value in values.items()}, bool(env._check_success())


class _Contact(NamedTuple):
    geom1: int
    geom2: int


@contextmanager
def _plain_contacts(sim: Any) -> Iterator[None]:
    """Let robosuite read contacts from a list: it asks for them geom by geom, which MuJoCo's own answers slowly."""
    data = sim.data
    sim.data = copy(data)
    sim.data.__class__ = _with_plain_contacts(data.__class__)
    try:
        yield
    finally:
        sim.data = data


@cache
def _with_plain_contacts(data_class: Any) -> Any:
    contact = cached_property(lambda data: [_Contact(*pair) for pair in data._data.contact.geom.tolist()])
    # type's own constructor: that of robosuite's metaclass would put MuJoCo's attributes over the inherited ones
    return type.__new__(type(data_class), "DataWithPlainContacts", (data_class,), {"contact": contact})
