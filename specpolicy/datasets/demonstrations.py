"""What a training takes from a demonstration file, and what the file says about it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpolicy.datasets.robomimic import Attribute, DemonstrationError, DemonstrationFile
from specpolicy.utils.checks import check_integer, shown
from specpolicy.utils.errors import one_line

ALL = "all"
"""Filter key that takes every episode, whatever the masks say."""

_FAR = 1.5  # relative actions lie in [−1, 1]; what is farther out is something else


@dataclass(frozen=True)
class Demonstration:
    """One episode as a training reads it.

    Attributes:
        name: of the episode in its file.
        observations: all vectors joined, shape ``(T, observation dim)``.
        actions: shape ``(T, action dim)``.
        seed: names its initial state; None if the file does not tell, as for human demonstrations.
        taught: shape ``(T,)``; false where an action is no example: a fault that an expert makes in order to show its
            repair. None: all are.
        images: of each camera, bytes, shape ``(T, H, W, C)``.
        others: vectors that are not observed, shape ``(T, dim)``.
        executed: what was played where that is not ``actions``, of the same shape: an expert's actions with the
            disturbances that it had to correct. None: ``actions``.
    """

    name: str
    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    seed: int | None = None
    taught: NDArray[np.bool_] | None = None
    images: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    others: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    executed: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class DemonstrationInfo:
    """What a file says about its demonstrations.

    Attributes:
        path: the file.
        split: where training and validation episodes come from, in words.
        env_name: of ``env_args``; None where it does not tell.
        env_version: likewise.
        control_delta: whether actions are relative (true) or absolute; None where ``env_args`` does not tell.
        unread: datasets of the first episode that nothing reads.
    """

    path: Path
    split: str
    env_name: str | None = None
    env_version: str | None = None
    control_delta: bool | None = None
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class DemonstrationSet:
    """Episodes of a file, or of several, split for training and validation.

    Attributes:
        train: episodes to learn from.
        valid: episodes to validate on.
        infos: what each file says about them.
    """

    train: list[Demonstration]
    valid: list[Demonstration]
    infos: tuple[DemonstrationInfo, ...]

    @property
    def info(self) -> DemonstrationInfo:
        """What the file says, where there is one."""
        (info,) = self.infos
        return info

    @property
    def place(self) -> str:
        """The files, as an error names them."""
        return ", ".join(str(info.path) for info in self.infos)

    @property
    def action_range(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Smallest and largest value of each action coordinate in the training episodes, shapes ``(dim,)``."""
        actions = np.concatenate([episode.actions for episode in self.train])
        return actions.min(axis=0), actions.max(axis=0)

    def summary(self) -> str:
        """Say in a few lines what is used: demonstrations, masks, control mode, ranges, and what is not read."""
        info, low, high = self.info, *self.action_range
        steps = sum(len(episode.actions) for episode in self.train)
        untaught = sum(int((~each.taught).sum()) for each in self.train if each.taught is not None)
        mode = {True: "relative actions", False: "absolute actions", None: "control mode not told, actions"}
        environment = " ".join(each for each in (info.env_name, info.env_version) if each) or "unknown (no env_args)"
        lines = [
            f"{info.path}: {len(self.train)} demonstrations to learn from ({steps} steps), {len(self.valid)} to "
            f"validate on; {info.split}",
            f"  environment: {environment}; {mode[info.control_delta]} of {len(low)} coordinates, "
            f"from {_range(low, high)}",
        ]
        if untaught:
            lines.append(f"  left out by 'taught': {untaught} steps")
        if info.unread:
            lines.append(f"  not read: {', '.join(info.unread)}")
        return "\n".join(lines)


def read_demonstrations(
    path: str | Path,
    keys: Mapping[str, int],
    validation_demos: int = 10,
    images: Mapping[str, tuple[int, ...]] | None = None,
    others: Sequence[str] = (),
    action_dim: int | None = None,
    filter_key: str | None = None,
) -> DemonstrationSet:
    """Read the demonstrations of a robomimic file into memory.

    Args:
        path: HDF5 file with ``data/<demo>/{actions, obs/<key>}`` and, if present, ``mask/<filter key>``.
        keys: vectors to read and their lengths; joined in this order.
        validation_demos: how many episodes to validate on at least. All of ``mask/valid`` are; where these are fewer,
            the last ones of the others are added.
        images: cameras to read and the shape of one image, (H, W, C) as robomimic stores them.
        others: keys of further vectors to read, of any length.
        action_dim: coordinates that an action must have; None: as many as in the first episode.
        filter_key: name of a mask: only its episodes are used. None: those of ``mask/train`` if the file has it, else
            all that are not in ``mask/valid``. ``"all"``: every episode, ``validation_demos`` of them for validation,
            those of ``mask/valid`` first.

    Returns:
        The episodes, and what the file says about them.

    Raises:
        DemonstrationError: the file is missing, damaged or no HDF5; a key is missing or has another length; values are
            no numbers, not finite, or were never written; masks or attributes contradict the episodes; or too few
            episodes are left to train on. One line that names the file and the place in it.
    """
    check_integer("validation_demos", validation_demos, 0)
    with DemonstrationFile(path) as file:
        train, valid, split = _split(file, validation_demos, filter_key)
        wanted = _Wanted(keys, images or {}, others, action_dim)
        first = train[0]
        read = {"actions", "executed_actions", "taught", *(f"obs/{key}" for key in (*keys, *wanted.images, *others))}
        there = [*file.keys(first), *(f"obs/{key}" for key in file.keys(first, "obs"))]
        environment = _environment(file)
        episodes: dict[str, Demonstration] = {}
        for name in (*train, *valid):
            episodes[name] = _read_episode(file, name, wanted)
            if wanted.action_dim is None:
                wanted = _Wanted(keys, wanted.images, others, episodes[name].actions.shape[1])
        unread = tuple(name for name in there if name not in read)
    info = DemonstrationInfo(file.path, split, unread=unread, **environment)
    return DemonstrationSet([episodes[name] for name in train], [episodes[name] for name in valid], (info,))


def join_demonstrations(sets: Sequence[DemonstrationSet]) -> DemonstrationSet:
    """Put the episodes of several files together.

    Args:
        sets: one for each file, read with the same keys; at least one.

    Returns:
        The episodes, those of the first file first.

    Raises:
        DemonstrationError: no file, one given twice, or actions that are relative in one and absolute in another.
    """
    if not sets:
        raise DemonstrationError("dataset=[] names no file; give one or more robomimic HDF5 files")
    kinds: dict[bool, Path] = {}
    for info in (info for each in sets for info in each.infos):
        if info.control_delta is not None:
            kinds.setdefault(info.control_delta, info.path)
    if len(kinds) == 2:
        raise DemonstrationError(
            f"actions are relative in {kinds[True]}, but absolute in {kinds[False]}: one policy cannot learn both; "
            "give files of one kind"
        )
    paths = [info.path.resolve() for each in sets for info in each.infos]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise DemonstrationError(f"dataset= names {twice[0]} twice; name each file once")
    return DemonstrationSet(
        [episode for each in sets for episode in each.train],
        [episode for each in sets for episode in each.valid],
        tuple(info for each in sets for info in each.infos),
    )


def check_environment(data: DemonstrationSet, expected: Mapping[str, Any]) -> list[str]:
    """Check that demonstrations are of the environment in which the policy will act.

    Args:
        data: the demonstrations.
        expected: what ``env_args`` must say: ``env_name``, ``env_version`` and ``control_delta``; any may be left out.

    Returns:
        Warnings: what differs without making the demonstrations useless.

    Raises:
        DemonstrationError: they are of another environment, or their actions are of the other kind.
    """
    info, warnings = data.info, list[str]()
    regardless = "or set task.demonstrations=null to train on them regardless"
    name = expected.get("env_name")
    # gymnasium's own ids do not name the module that registers them, which ours do
    if name is not None and info.env_name is not None and info.env_name not in (name, name.partition(":")[2]):
        raise DemonstrationError(
            f"{info.path}, data.attrs['env_args']: env_name is {info.env_name!r}; this task's is {name!r}: choose the "
            f"task of these demonstrations, {regardless}"
        )
    version = expected.get("env_version")
    if version is not None and info.env_version is not None and _minor(version) != _minor(info.env_version):
        warnings.append(
            f"{info.path} was recorded with version {info.env_version} of {info.env_name or 'its simulator'}, this "
            f"library plays {version}: observations and dynamics may differ"
        )
    delta = expected.get("control_delta")
    if delta is not None and info.control_delta is not None and bool(delta) != info.control_delta:
        kinds = ("absolute", "relative")
        raise DemonstrationError(
            f"{info.path}, data.attrs['env_args']: control_delta is {str(info.control_delta).lower()}, so that actions "
            f"are {kinds[info.control_delta]}; this task plays {kinds[bool(delta)]} ones: choose other demonstrations, "
            f"{regardless}"
        )
    if delta:
        low, high = data.action_range
        worst = int(np.maximum(-low, high).argmax())
        reach = float(max(-low[worst], high[worst]))
        if reach > _FAR:
            raise DemonstrationError(
                f"{info.path}: actions reach {_range(low[worst : worst + 1], high[worst : worst + 1])} (coordinate "
                f"{worst}); relative actions lie in [-1, 1]. If these are absolute poses, the task cannot play them: "
                f"choose other demonstrations, {regardless}"
            )
        if reach > 1.001:
            warnings.append(
                f"{info.path}: actions reach {reach:.4g} (coordinate {worst}); the simulator clips them to [-1, 1]"
            )
    return warnings


@dataclass(frozen=True)
class _Wanted:
    keys: Mapping[str, int]
    images: Mapping[str, tuple[int, ...]]
    others: Sequence[str]
    action_dim: int | None


def _split(
    file: DemonstrationFile, validation_demos: int, filter_key: str | None
) -> tuple[list[str], list[str], str]:  # fmt: skip
    """Names to learn from, names to validate on, and where the split comes from."""
    masks, names = file.masks(), file.names
    masked = masks.get("valid", [])
    if filter_key == ALL:
        valid = [*masked, *(name for name in reversed(names) if name not in masked)][:validation_demos]
        train = [name for name in names if name not in valid]
        split = "masks are not looked at (filter_key=all)"
    else:
        key = "train" if filter_key is None and "train" in masks else filter_key
        if key is not None and key not in masks:
            file.refuse("mask:", f"there is no filter key {key!r}; found {sorted(masks)}")
        if filter_key is None and (both := sorted(set(masks.get("train", [])) & set(masked))):
            file.refuse("mask:", f"{shown(both)} are in train and in valid; correct a mask, or set filter_key=all")
        listed = names if key is None else [name for name in names if name in masks[key]]
        candidates = [name for name in listed if name not in masked]
        valid = [name for name in masked if filter_key is None or name in listed]
        more = candidates[::-1][: max(0, validation_demos - len(valid))]
        valid, train = [*valid, *more], [name for name in candidates if name not in more]
        used = [f"mask/{each}" for each in (key, "valid") if each in masks]
        unused = len(names) - len(train) - len(valid)
        split = f"split by {' and '.join(used)}" if used else "the file has no masks: the last ones validate"
        split += f", {unused} in neither are not used" if unused else ""
    if not train:
        raise DemonstrationError(f"{file.path}: {len(names)} episodes, {len(valid)} held out: none left to train on")
    return train, valid, split


def _environment(file: DemonstrationFile) -> dict[str, Any]:
    """Name, version and control mode of the environment, from ``env_args``."""
    place, given = "data.attrs['env_args']", file.attributes().get("env_args")
    if given is None:
        return {}
    try:
        arguments = json.loads(str(given))
    except (ValueError, RecursionError) as error:
        file.refuse(place, f"is no JSON ({one_line(error)}); correct or remove it", error)
    if not isinstance(arguments, dict):
        file.refuse(place, f"is {shown(arguments)}; expected a JSON object with env_name and env_kwargs")
    texts = {key: arguments.get(key) for key in ("env_name", "env_version")}
    for key, value in texts.items():
        if value is not None and not isinstance(value, str):
            file.refuse(f"{place}:", f"{key} is {shown(value)}; expected text")
    return {**texts, "control_delta": _control_delta(file, place, arguments.get("env_kwargs"))}


def _control_delta(file: DemonstrationFile, place: str, options: Any) -> bool | None:
    """Find the control mode in robosuite's arguments: of 1.4, or of 1.5, where each part of the body has its own."""
    configs = options.get("controller_configs") if isinstance(options, Mapping) else None
    found: set[bool] = set()
    for each in configs if isinstance(configs, list) else [configs]:
        if not isinstance(each, Mapping):
            continue
        if isinstance(mode := each.get("control_delta"), bool):
            found.add(mode)
        elif mode is not None:
            file.refuse(f"{place}:", f"control_delta is {shown(mode)}; expected true or false")
        parts = each.get("body_parts")
        for part in parts.values() if isinstance(parts, Mapping) else ():
            if isinstance(part, Mapping) and part.get("input_type") in ("delta", "absolute"):
                found.add(part["input_type"] == "delta")
    if len(found) > 1:
        file.refuse(f"{place}:", "control_delta differs between arms; a policy needs one kind of actions")
    return next(iter(found), None)


def _read_episode(file: DemonstrationFile, name: str, wanted: _Wanted) -> Demonstration:
    place = f"data/{name}"
    stored = [*file.keys(name), *(["obs"] if file.keys(name, "obs") else [])]
    for needed in ("actions", "obs"):
        if needed not in stored:
            file.refuse(f"{place}:", f"{needed!r} is missing; found {shown(sorted(stored))}")
    actions = _numbers(file, name, "actions")
    steps = len(actions)
    dims = "dim" if wanted.action_dim is None else wanted.action_dim
    if actions.ndim != 2 or (wanted.action_dim is not None and actions.shape[1] != wanted.action_dim):
        file.refuse(f"{place}/actions", f"has shape {actions.shape}; expected (steps, {dims})")
    if not steps:
        file.refuse(f"{place}/actions", "has no step; remove this episode")
    there = file.keys(name, "obs")
    if missing := [key for key in (*wanted.keys, *wanted.images, *wanted.others) if key not in there]:
        file.refuse(f"{place}/obs", f"lacks {missing}; found {shown(sorted(there))}")
    parts = []
    for key, dim in wanted.keys.items():
        part = _numbers(file, name, f"obs/{key}")
        if part.shape != (steps, dim):
            file.refuse(f"{place}/obs/{key}", f"has shape {part.shape}; expected {(steps, dim)}")
        parts.append(part)
    further = {key: _numbers(file, name, f"obs/{key}") for key in wanted.others}
    for key, values in further.items():
        if len(values) != steps:
            file.refuse(f"{place}/obs/{key}", f"has {len(values)} rows; expected {steps}")
    taught = file.read(name, "taught") != 0 if "taught" in stored else None
    if taught is not None and taught.shape != (steps,):
        file.refuse(f"{place}/taught", f"has shape {taught.shape}; expected {(steps,)}")
    executed = _numbers(file, name, "executed_actions") if "executed_actions" in stored else None
    if executed is not None and executed.shape != actions.shape:
        file.refuse(
            f"{place}/executed_actions", f"has shape {executed.shape}; expected that of actions, {actions.shape}"
        )
    attributes = file.attributes(name)
    samples = attributes.get("num_samples")
    if samples is not None and samples != steps:
        file.refuse(f"{place}:", f"num_samples says {shown(samples)}, but there are {steps} actions; record it again")
    return Demonstration(
        name,
        np.concatenate(parts, axis=-1) if parts else np.zeros((steps, 0), np.float32),
        actions,
        _seed(file, place, attributes),
        taught,
        {key: _images(file, name, f"obs/{key}", (steps, *shape)) for key, shape in wanted.images.items()},
        {key: values.reshape(steps, -1) for key, values in further.items()},
        executed,
    )


def _numbers(file: DemonstrationFile, name: str, dataset: str) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        values = file.read(name, dataset).astype(np.float32)
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0][0])
        file.refuse(
            f"data/{name}/{dataset}", f"contains NaN, infinity or what float32 cannot hold (step {row}); remove or "
            "repair this episode"
        )  # fmt: skip
    return values


def _images(file: DemonstrationFile, name: str, dataset: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    images, place = file.read(name, dataset), f"data/{name}/{dataset}"
    if images.shape != shape:
        file.refuse(place, f"has shape {images.shape}; expected {shape}: steps, then one image")
    if images.dtype != np.uint8:
        file.refuse(place, f"has type {images.dtype}; expected uint8, an image's bytes from 0 to 255")
    return images


def _seed(file: DemonstrationFile, place: str, attributes: Mapping[str, Attribute]) -> int | None:
    seed = attributes.get("seed")
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        file.refuse(f"{place}:", f"attribute seed is {shown(seed)}; expected a whole number from 0 on")
    return seed


def _range(low: NDArray[np.float32], high: NDArray[np.float32]) -> str:
    return f"{_short(float(low.min()))} to {_short(float(high.max()))}"


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else str(value)


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]
