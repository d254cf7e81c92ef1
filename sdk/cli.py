"""The `tiermesh` command: runs it and turns whatever goes wrong into a line on stderr and an exit status.

0 is success, 1 failure, 2 wrong use, 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from tiermesh.common.errors import TiermeshError


def main() -> None:
    """The entry point of the installed command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns the exit status."""
    try:
        import typer

        from .cli_app import app
    except ModuleNotFoundError as exc:
        return _fail(f"the command line needs {exc.name}: pip install 'tiermesh[cli]'", 1)
    try:
        status = app(args=list(arguments), prog_name="tiermesh", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except typer.TyperException as exc:
        return _fail(f"{exc.format_message()} ('tiermesh --help', or --help after a command, shows how)", exc.exit_code)
    except TiermeshError as exc:
        return _fail(_told(exc), 1)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader went away (`tiermesh status | head`); keep the interpreter from complaining when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _told(error: TiermeshError) -> str:
    wait = f"; try again in {error.retry_after_s:.1f} s" if error.retry_after_s else ""
    return f"{error.message}{wait} [{error.reason}]"


def _fail(message: str, status: int) -> int:
    print(f"tiermesh: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
