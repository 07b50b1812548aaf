"""The entry point: runs the command and turns every failure into a paragraph and an exit code."""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Sequence

from trt_layermerge.cli.app import app
from trt_layermerge.cli.console import error_console, print_error, print_result
from trt_layermerge.cli.explain import explain


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (default: of this process) and returns its exit code."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        ended = app(typed, prog_name="trt-layermerge", standalone_mode=False)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException as error:
        code, paragraph = explain(error)
        if verbosity(typed) >= 2:
            traceback.print_exception(error)
        if "--json" in typed:
            told = {"exit_code": code, "kind": type(error).__name__, "message": paragraph}
            print_result({**(getattr(error, "result", None) or {}), "error": told}, None)
        if paragraph:  # else the help was asked for, and is on the screen
            print_error(error_console(), paragraph)
        return code
    return ended if isinstance(ended, int) else 0


def verbosity(arguments: Sequence[str]) -> int:
    """Returns how often ``-v`` or ``--verbose`` was typed."""
    short = sum(len(a) - 1 for a in arguments if a.startswith("-v") and set(a[1:]) == {"v"})
    return short + arguments.count("--verbose")
