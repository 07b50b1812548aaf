"""The entry point: runs the command and turns every failure into a paragraph and an exit code."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Sequence

from trt_layermerge.cli.app import app
from trt_layermerge.cli.console import error_console, print_error
from trt_layermerge.cli.verb import Interrupted
from trt_layermerge.errors import DeviceError, LayerMergeError, UsageError

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (default: of this process) and returns its exit code."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(typed, prog_name="trt-layermerge")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except (Exception, KeyboardInterrupt) as error:
        code, paragraph = explain(error)
        if verbosity(typed) >= 2:
            traceback.print_exception(error)
        print_error(error_console(), paragraph)
        return code
    return 0


def verbosity(arguments: Sequence[str]) -> int:
    """Returns how often ``-v`` or ``--verbose`` was typed."""
    short = sum(len(a) - 1 for a in arguments if a.startswith("-v") and set(a[1:]) == {"v"})
    return short + arguments.count("--verbose")


def explain(error: BaseException) -> tuple[int, str]:
    """Returns exit code and one paragraph: what happened, why, and what to type."""
    if isinstance(error, LayerMergeError):
        return error.exit_code, str(error)
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        return INTERRUPTED, "interrupted; type the same command to continue"
    if isinstance(error, MemoryError):
        return DeviceError.exit_code, (
            "out of memory; close other programs or use a smaller --batch, then type the same "
            "command to continue"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DeviceError.exit_code, (
            f"the disk is full{_at(error)}; free space or choose another folder "
            "(--runs-dir DIR), then type the same command to continue"
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UsageError.exit_code, (
            f"no permission to use a file{_at(error)}: {error.strerror}; choose another file "
            "or folder"
        )
    return LayerMergeError.exit_code, (
        f"{type(error).__name__}: {error or 'no message'}. This is a bug in trt-layermerge; "
        "please report it with the output of the same command and -v -v"
    )


def _at(error: OSError) -> str:
    return f" at {error.filename}" if error.filename else ""
