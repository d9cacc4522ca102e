"""The ``specpolicy`` command: finds the sub-command, and answers mistakes in one line.

Nothing heavy is imported before :func:`main` runs, so that Ctrl-C is answered from the first moment on.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing takes milliseconds in which Ctrl-C would end in its traceback
if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; those of the process by default.

    Returns:
        The exit status: 0, 2 for an error with a message, 130 when interrupted.
    """
    debug, options = False, dict[str, str]()
    try:
        from specpolicy.commands import parse, run

        command, overrides, debug = parse(arguments)
        options = {name.lstrip("+~"): value for name, _, value in (each.partition("=") for each in overrides)}
        run(command, overrides)
    except KeyboardInterrupt:
        print("interrupted; what has finished is saved, the same command goes on from there", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        from specpolicy.utils.errors import explain, traceback_of

        if debug:
            print(traceback_of(error), file=sys.stderr, end="")
        print(f"error: {explain(error, options)}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
