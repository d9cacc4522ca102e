"""The sub-commands of ``specpolicy``, one a module: overrides in, plain objects handed to the library."""

from __future__ import annotations

import argparse
import logging
import re
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from specpolicy import __version__
from specpolicy.config import available, config_dir

COMMANDS = {
    "rollout": "play a policy with several samplers: table, plot, video",
    "evaluate": "compare samplers over many seeds and tasks, on one machine or a cluster",
    "plan": "say which difference of success paired seeds can detect, before they are spent",
    "report": "write one HTML page about a results folder",
    "fidelity": "measure how far samplers are from the policy's own distribution",
    "demonstrate": "record demonstrations of a task's scripted expert",
    "certify": "test a sampler's exactness on a checkpoint, and time it beside its rivals",
    "inspect": "say what a checkpoint holds: ours, robomimic's, diffusion_policy's or LeRobot's",
    "convert": "convert a policy's checkpoint, or published demonstrations, into our formats",
    "export": "write a sampler's round as an ONNX graph, for controllers without Python",
    "train": "train a policy from robomimic HDF5",
    "calibrate": "fit the linear drafter and the initial guess to a checkpoint",
    "tune": "fit window lengths to a checkpoint and this device",
    "control": "run a control loop with latency: executors, clocks, safety filter",
    "serve": "answer robots over a websocket with a policy's actions",
    "ros": "run a policy as a node of ROS 2, with the topics of a configuration",
}
"""Each command, in the order of a project, with its line in ``specpolicy --help``."""


def parse(arguments: Sequence[str] | None = None) -> tuple[str, list[str], bool]:
    """Read the command line, or print help and exit.

    Args:
        arguments: without the program's name; those of the process by default.

    Returns:
        The command, its overrides, and whether tracebacks are wanted.
    """
    parser = argparse.ArgumentParser(
        prog="specpolicy",
        description="Exact speculative sampling of robot diffusion policies.",
        usage="specpolicy [--help] [--version] [--debug] COMMAND [name=value ...]",
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands (`specpolicy COMMAND --help` lists the options of each):\n"
        + "\n".join(f"  {name:<12} {line}" for name, line in COMMANDS.items()),
    )
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)  # in the usage: one screen is 24 lines
    parser.add_argument("--version", action="version", version=f"specpolicy {__version__}", help=argparse.SUPPRESS)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    overrides = [each for each in options.overrides if each != "--debug"]
    if {"-h", "--help"} & set(overrides):
        print(help_of(options.command))
        raise SystemExit(0)
    return options.command, overrides, options.debug or "--debug" in options.overrides


def help_of(command: str) -> str:
    """Describe a command, its options with their defaults, and give an example.

    Args:
        command: one of :data:`COMMANDS`.

    Returns:
        Text for a terminal, made from the comments of the command's configuration.
    """
    lines = (config_dir() / f"{command}.yaml").read_text(encoding="utf-8").splitlines()
    example = next((line.removeprefix("# ") for line in lines if line.startswith("# specpolicy")), "")
    groups = [match[1] for line in lines if (match := re.match(r"  - (?:optional )?(\w+): ", line))]
    text = [f"specpolicy {command}: {COMMANDS[command]}", "", f"example:\n  {example}", "", "options:"]
    for group in groups:
        text.append(f"  {group + '=':<24} one of: {', '.join(available(group))}")
    for line in lines:
        if match := re.match(r"(\w+): *([^#]*?)\s*(?:# (.*))?$", line):
            name, value, comment = match.groups()
            if name != "defaults" and value:
                text.append(f"  {f'{name}={value}':<24} {comment or ''}".rstrip())
    return "\n".join(text)


def run(command: str, overrides: Sequence[str]) -> None:
    """Run a command in this process.

    Args:
        command: one of :data:`COMMANDS`.
        overrides: ``name=value``, as Hydra reads them.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("specpolicy").setLevel(logging.INFO)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    getattr(import_module(f"specpolicy.commands.{command}"), command)(overrides)
