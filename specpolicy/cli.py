"""The ``specpolicy`` command: finds the sub-command, and answers mistakes in one line."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence

from hydra.errors import InstantiationException

from specpolicy import __version__
from specpolicy.commands import COMMANDS
from specpolicy.config import available

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for an error with a message, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="specpolicy",
        description="Exact speculative sampling of robot diffusion policies.",
        epilog="Overrides are Hydra's: task=square sampler=[ddpm,free_block] sampler.window=40 seeds=0:20 out=runs/x. "
        f"Tasks: {', '.join(available('task'))}. Samplers: {', '.join(available('sampler'))}.",
    )
    parser.add_argument("--version", action="version", version=f"specpolicy {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    tasks = "; ".join(f"{name}: {command.__doc__}" for name, command in COMMANDS.items())
    parser.add_argument("command", choices=sorted(COMMANDS), help=tasks)
    parser.add_argument("overrides", nargs="*", metavar="name=value")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("specpolicy").setLevel(logging.INFO)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        COMMANDS[options.command](options.overrides)
    except KeyboardInterrupt:
        print("interrupted; what has finished is saved, the same command goes on from there", file=sys.stderr)
        return EXIT_INTERRUPTED
    except InstantiationException as error:
        print(f"error: {' '.join(str(error).splitlines()[:2])}", file=sys.stderr)
        return EXIT_USER_ERROR
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        if options.debug or not _is_ours(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def _is_ours(error: Exception) -> bool:
    """Errors that this library raised to speak to a user; anything else keeps its traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return raised_in.split(".")[0] in ("specpolicy", "specpolicy_envs")


if __name__ == "__main__":
    sys.exit(main())
