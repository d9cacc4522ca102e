"""Composing configurations with Hydra, and saying which choices there are when one is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig
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


def choices(group: str) -> list[str]:
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
        if (config_dir() / group).is_dir() and value not in choices(group):
            raise ConfigError(f"unknown {group} {value!r}; known: {', '.join(choices(group))}")
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return hydra_compose(command, overrides=list(overrides))
    except (ConfigCompositionException, HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"cannot compose {command!r} with {list(overrides)}: {error}") from error


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


def parse_seeds(seeds: str | int | Sequence[int]) -> list[int]:
    """``"0:20"`` (end excluded), ``7`` or a list of seeds.

    Raises:
        ConfigError: not of these forms, empty, negative, or a seed twice.
    """
    try:
        if isinstance(seeds, str) and ":" in seeds:
            first, end = (int(part) for part in seeds.split(":"))
            parsed = list(range(first, end))
        elif isinstance(seeds, str | int):
            parsed = [int(seeds)]
        else:
            parsed = [int(seed) for seed in seeds]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"seeds={seeds!r}; write first:end (end excluded), one number, or a list [1,5,9]") from error
    if not parsed or min(parsed) < 0 or len(set(parsed)) < len(parsed):
        raise ConfigError(f"seeds={seeds!r}: at least one seed, none negative, none twice")
    return parsed
