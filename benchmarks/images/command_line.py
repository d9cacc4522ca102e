"""Hydra configurations of the image scripts, and their exit status."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from specpolicy.config import ConfigError, config_dir
from specpolicy.utils.errors import explain, one_line, raised_in

CONFIGS = Path(__file__).resolve().parent / "configs"
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def compose_script(name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose the configuration of a script; samplers come from the package's own configurations.

    Args:
        name: file in ``benchmarks/images/configs``, without its ending.
        overrides: Hydra's, e.g. ``["sampler=ddpm", "images=4"]``.

    Returns:
        The configuration.

    Raises:
        ConfigError: an override names an unknown choice or key.
    """
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return hydra_compose(name, overrides=[f"hydra.searchpath=[file://{config_dir()}]", *overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"cannot compose {name!r} with {list(overrides)}: {error}") from error


def run_script(script: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> int:
    """Run a script; mistakes of the user are answered in one line.

    Args:
        script: takes the overrides.
        arguments: of the command line; None takes the process's own.

    Returns:
        0, 2 after a mistake, 130 when interrupted.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("specpolicy").setLevel(logging.INFO)
    try:
        script(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print("interrupted; what has finished is saved, the same command continues from there", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        ours = raised_in(error).startswith("benchmarks.")
        print(f"error: {one_line(error) if ours else explain(error)}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0
