"""The sub-commands of ``specpolicy``, one a module: overrides in, plain objects handed to the library.

A command's docstring is its line in ``specpolicy --help``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specpolicy.commands.calibrate import calibrate
from specpolicy.commands.control import control
from specpolicy.commands.convert import convert
from specpolicy.commands.demonstrate import demonstrate
from specpolicy.commands.evaluate import evaluate
from specpolicy.commands.fidelity import fidelity
from specpolicy.commands.images import images
from specpolicy.commands.report import report
from specpolicy.commands.rollout import rollout
from specpolicy.commands.serve import serve
from specpolicy.commands.train import train
from specpolicy.commands.train_images import train_images
from specpolicy.commands.tune import tune

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    command.__name__: command
    for command in (
        calibrate,
        control,
        convert,
        demonstrate,
        evaluate,
        fidelity,
        images,
        report,
        rollout,
        serve,
        train,
        train_images,
        tune,
    )
}
