"""Composing configurations with Hydra, and saying which choices there are when one is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class ConfigError(ValueError):
    """A configuration that was asked for cannot be composed."""


def config_dir() -> Path:
    """The folder of configurations: inside an installed package, or at the top of a checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "configs", here.parent / "configs"):
        if folder.is_dir():
            return folder
    raise ConfigError(f"no configs folder in {here} or beside it; reinstall specpolicy")


def available(group: str) -> list[str]:
    """Names that ``group=`` can take."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def compose(command: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration of ``command`` with ``overrides`` such as ``task=square`` or ``sampler.window=40``.

    Raises:
        ConfigError: an override names an unknown choice or key; the message lists the known ones.
    """
    for override in overrides:
        name, separator, value = override.partition("=")
        if not separator and not override.startswith("~"):
            raise ConfigError(f"{override!r} is not an override; write name=value")
        group = name.lstrip("+")
        if (config_dir() / group).is_dir() and value not in available(group):
            raise ConfigError(f"unknown {group} {value!r}; known: {', '.join(available(group))}")
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return hydra_compose(command, overrides=list(overrides))
    except (ConfigCompositionException, HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"cannot compose {command!r} with {list(overrides)}: {error}") from error


def to_container(node: Any) -> Any:
    """Lists, dictionaries and numbers in place of OmegaConf's own."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def split_list_override(overrides: Sequence[str], name: str) -> tuple[list[str] | None, list[str]]:
    """Take ``name=a``, ``name=a,b`` or ``name=[a,b]`` out of ``overrides``.

    Returns:
        The values, None if the name is not among the overrides; and the other overrides.
    """
    values: list[str] | None = None
    rest: list[str] = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key != name:
            rest.append(override)
            continue
        values = [part.strip() for part in value.strip().removeprefix("[").removesuffix("]").split(",") if part.strip()]
        if not values:
            raise ConfigError(f"{override!r} names nothing; write {name}=one or {name}=[one,two]")
        if len(set(values)) < len(values):
            raise ConfigError(f"{override!r} names something twice")
    return values, rest


def split_folder(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """Take the one argument that is a folder, not an override, out of ``arguments``.

    Returns:
        The folder, and the overrides.

    Raises:
        ConfigError: there is none, or more than one.
    """
    folders = [each for each in arguments if "=" not in each or Path(each).is_dir()]
    if len(folders) != 1:
        found = f"these are {len(folders)}: {', '.join(folders)}" if folders else "there is none"
        raise ConfigError(f"give one results folder, such as runs/x, and then name=value; {found}")
    return Path(folders[0]), [each for each in arguments if each != folders[0]]


def parse_seeds(seeds: str | int | Sequence[int], counted_from: int | None = None) -> list[int]:
    """``"0:20"`` (end excluded), a number, or a list of seeds.

    Args:
        seeds: what was asked for.
        counted_from: a plain number asks for so many seeds from here on; None: it is itself the one seed.

    Raises:
        ConfigError: not of these forms, empty, negative, or a seed twice.
    """
    try:
        if isinstance(seeds, str) and ":" in seeds:
            first, end = (int(part) for part in seeds.split(":"))
            parsed = list(range(first, end))
        elif isinstance(seeds, str | int):
            parsed = [int(seeds)] if counted_from is None else list(range(counted_from, counted_from + int(seeds)))
        else:
            parsed = [int(seed) for seed in seeds]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"seeds={seeds!r}; write first:end (end excluded), one number, or a list [1,5,9]") from error
    if not parsed or min(parsed) < 0:
        raise ConfigError(f"seeds={seeds!r}: at least one seed, none negative")
    twice = sorted({seed for seed in parsed if parsed.count(seed) > 1}) if len(set(parsed)) < len(parsed) else []
    if twice:
        raise ConfigError(
            f"seeds={seeds!r}: {twice} are there twice and would give the same episodes again; for further episodes "
            "from a seed ask for repeats"
        )
    return parsed


def parse_repeats(repeats: int | str | Sequence[int | str], samplers: Sequence[str]) -> dict[str, int]:
    """Episodes for each seed, by sampler: ``3`` for all, or ``["ddpm:3", "asd:3"]`` and 1 for the others.

    A plain number in the list is for those that it does not name: ``[2, "ddpm:5"]``.

    Raises:
        ConfigError: not of these forms, below 1, or a sampler that is not among ``samplers``.
    """
    others, named = 1, dict[str, int]()
    for part in repeats if isinstance(repeats, Sequence) and not isinstance(repeats, str) else [repeats]:
        name, separator, count = str(part).rpartition(":")
        if separator and name not in samplers:
            raise ConfigError(f"repeats={repeats!r} names {name!r}, which does not take part; {', '.join(samplers)} do")
        try:
            if separator:
                named[name] = int(count)
            else:
                others = int(count)
        except ValueError as error:
            raise ConfigError(f"repeats={repeats!r}; write one number, or a list [ddpm:3,asd:3]") from error
    parsed = {name: named.get(name, others) for name in samplers}
    if min(parsed.values()) < 1:
        raise ConfigError(f"repeats={repeats!r}: every sampler needs at least one episode a seed")
    return parsed
