"""The sub-commands of ``specpolicy``, one a module: overrides in, plain objects handed to the library.

A command's docstring is its line in ``specpolicy --help``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .calibrate import calibrate
from .control import control
from .convert import convert
from .demonstrate import demonstrate
from .evaluate import evaluate
from .fidelity import fidelity
from .images import images
from .report import report
from .rollout import rollout
from .serve import serve
from .train import train
from .train_images import train_images
from .tune import tune

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
