"""What the command lines share: one-line errors and exit codes."""

import logging
import os
import sys
from collections.abc import Callable

from absl import app, flags
from absl import logging as absl_logging

from sip.structs import UserError
from sip.training.loop import Stopped

MENDABLE = 2


def run(main: Callable[[list[str]], None]) -> None:
    """Runs `main(argv)` after parsing flags. Exits 0 when done, or stopped and saved; 2, with one
    line, where the user can mend it."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("orbax").setLevel(logging.ERROR)
    app.run(lambda argv: sys.exit(code(main, argv)), flags_parser=_parse)


def _parse(argv):
    for arg in argv[1:]:
        if arg.startswith("--config="):  # a config may import its siblings
            file = arg.removeprefix("--config=").rpartition(".py")[0]
            sys.path.insert(0, os.path.dirname(os.path.abspath(file)))
    try:
        return flags.FLAGS(argv)
    except Exception as e:  # a config file is the user's code: whatever it raises is theirs to mend
        _say(e)
        sys.exit(MENDABLE)


def code(main, argv) -> int:
    """The exit code of `main(argv)`."""
    try:
        main(argv)
    except UserError as e:
        _say(e)
        return MENDABLE
    except Stopped as e:
        print(f"{e}; saved, the same command goes on", file=sys.stderr)
    return 0


def _say(error) -> None:
    text = str(error).strip().splitlines() or [type(error).__name__]
    print(f"error: {text[0]}", file=sys.stderr)
