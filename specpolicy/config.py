"""Composing configurations with Hydra, and saying which choices there are when one is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

if TYPE_CHECKING:
    import torch

SEALED_SEEDS = range(900_000, 900_300)
"""Initial states on which nothing is chosen: for a last comparison, once everything is decided."""
_SEALED = "sealed"
_LARGEST_SEED = 2**63 - 1  # what a results folder can hold
_MOST_SEEDS = 10**7


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
    """Compose the configuration of a command.

    Args:
        command: name of a file in the folder of configurations.
        overrides: such as ``task=square`` or ``sampler.window=40``, in Hydra's grammar.

    Returns:
        The configuration, with every interpolation resolved.

    Raises:
        ConfigError: an override cannot be read, names an unknown choice or option, or a device that is not there.
    """
    for override in overrides:
        name, separator, value = override.partition("=")
        if not separator and not override.startswith("~"):
            raise ConfigError(f"{override!r} is not an override; write name=value")
        group = name.lstrip("+")
        if (config_dir() / group).is_dir() and value not in available(group):
            raise ConfigError(f"unknown {group} {value!r}; known: {', '.join(available(group))}")
        _check_grammar(override)
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = hydra_compose(command, overrides=list(overrides))
        OmegaConf.resolve(config)
    except InterpolationKeyError as error:
        raise ConfigError(
            f"{_first_line(error)}; write the value itself, or ${{name}} of an existing option"
        ) from error
    except (ConfigCompositionException, HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_unknown_option(command, overrides) or f"{command}: {_first_line(error)}") from error
    if "device" in config:
        check_device(str(config.device))
    return config


def check_device(device: str | torch.device | int) -> torch.device:
    """Refuse a device that torch does not know or cannot reach.

    Args:
        device: such as ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; a number counts CUDA's.

    Returns:
        The device.

    Raises:
        ConfigError: it is none of these, or this machine has none.
    """
    import torch

    text = f"cuda:{device}" if isinstance(device, int) and not isinstance(device, bool) else str(device)
    try:
        found = torch.device(text)
    except RuntimeError as error:
        raise ConfigError(f"device={device}: unknown; use cpu, cuda, cuda:N or mps") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={device}: torch {torch.__version__} finds no CUDA device here; use device=cpu")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={device}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    if found.type not in ("cpu", "cuda"):
        try:
            reached = torch.ones(1, device=found).cpu()
        except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
            raise ConfigError(f"device={device}: torch finds no {found.type.upper()} device here; use cpu") from error
        assert len(reached) == 1
    return found


def _check_grammar(override: str) -> None:
    """Say how to quote a value that Hydra's grammar does not read, such as a path with ``=`` or ``(``."""
    try:
        if OverridesParser.create().parse_override(override).is_sweep_override():
            raise HydraException("a comma asks for a sweep")
    except HydraException as error:
        name, _, value = override.partition("=")
        bare = value.strip("\"'").replace('"', "")
        raise ConfigError(
            f"{name}={value}: a value with = ( ) {{ }} [ ] # , : or other special characters must be quoted twice, "
            f"for the shell and for Hydra: '{name}=\"{bare}\"'"
        ) from error


def _unknown_option(command: str, overrides: Sequence[str]) -> str | None:
    """The message about the first override whose option does not exist, with the nearest that does."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        groups = [each for each in overrides if (config_dir() / each.partition("=")[0]).is_dir()]
        known = hydra_compose(command, overrides=groups)
    for override in overrides:
        name = override.partition("=")[0].lstrip("+~")
        parent, _, leaf = name.rpartition(".")
        node = OmegaConf.select(known, parent) if parent else known
        if override.startswith("+") or (OmegaConf.is_dict(node) and leaf in node):
            continue
        names = [str(each) for each in node] if OmegaConf.is_dict(node) else [str(each) for each in known]
        near = get_close_matches(leaf, names, n=1)
        where = f"{command}, {parent}" if parent and OmegaConf.is_dict(node) else command
        return (
            f"unknown option {name!r} of {where}; " + (f"did you mean {near[0]!r}? " if near else "") + "Options: "
            f"{', '.join(sorted(names))}"
        )
    return None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


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


def is_sealed(seed: int) -> bool:
    """Tell whether a seed is one of :data:`SEALED_SEEDS`.

    Args:
        seed: of an environment's reset.
    """
    return seed in SEALED_SEEDS


def refuse_sealed(seeds: Sequence[int], option: str) -> None:
    """Refuse seeds that are sealed.

    Args:
        seeds: what something is developed on.
        option: what was asked for, for the message.

    Raises:
        ConfigError: one of them is.
    """
    if shared := [seed for seed in seeds if is_sealed(seed)]:
        raise ConfigError(
            f"{option:.80}: {shared[0]} is sealed, as all from {SEALED_SEEDS.start} to {SEALED_SEEDS.stop - 1} are: "
            "nothing is chosen on them; take others. `specpolicy evaluate seeds=sealed` opens them, once all is decided"
        )


def parse_seeds(seeds: str | int | Sequence[int], counted_from: int | None = None, may_open: bool = False) -> list[int]:
    """``"0:20"`` (end excluded), a number, a list of seeds, or ``"sealed"`` and ``"sealed:100"``, the first of them.

    Args:
        seeds: what was asked for.
        counted_from: a plain number asks for so many seeds from here on; None: it is itself the one seed.
        may_open: whether sealed seeds may be asked for, by that word.

    Raises:
        ConfigError: not of these forms, empty, negative, a seed twice, or sealed ones where they are not to be used.
    """
    if isinstance(seeds, str) and seeds.partition(":")[0] == _SEALED:
        if not may_open:
            refuse_sealed(SEALED_SEEDS, f"seeds={seeds}")
        _, separator, count = seeds.partition(":")
        number = int(count) if count.isdecimal() else 0 if separator else len(SEALED_SEEDS)
        if not 0 < number <= len(SEALED_SEEDS):
            raise ConfigError(f"seeds={seeds!r:.80}: write sealed, or sealed:N with at most {len(SEALED_SEEDS)}")
        return list(SEALED_SEEDS[:number])
    form = ConfigError(f"seeds={seeds!r:.80}; write first:end (end excluded), one number, or a list [1,5,9]")
    parsed: Sequence[int]
    try:
        if isinstance(seeds, str) and ":" in seeds:
            first, end = (int(part) for part in seeds.split(":"))
            parsed = range(first, end)
        elif isinstance(seeds, str | int):
            number = int(_whole(seeds))
            parsed = [number] if counted_from is None else range(counted_from, counted_from + number)
        else:
            parsed = [int(_whole(seed)) for seed in seeds]
    except (TypeError, ValueError) as error:
        raise form from error
    if not parsed or min(parsed[0], parsed[-1], *(parsed if isinstance(parsed, list) else ())) < 0:
        raise ConfigError(f"seeds={seeds!r:.80}: at least one seed, none negative")
    if len(parsed) > _MOST_SEEDS or max(parsed) > _LARGEST_SEED:
        raise ConfigError(f"seeds={seeds!r:.80}: at most {_MOST_SEEDS} seeds, none above {_LARGEST_SEED}")
    if twice := sorted(seed for seed, count in Counter(parsed).items() if count > 1):
        raise ConfigError(
            f"seeds={seeds!r:.80}: {twice!r:.80} are there twice and would give the same episodes again; for further "
            "episodes from a seed ask for repeats"
        )
    refuse_sealed(parsed, f"seeds={seeds}")
    return list(parsed)


def _whole(value: object) -> str | int:
    """A number as it is written, so that 1.7 and true are not taken for 1."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f"{value!r} is no whole number")
    return value


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
