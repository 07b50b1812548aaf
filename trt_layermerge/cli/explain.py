"""Whatever ends a command → its exit code and one paragraph: what happened, why, what to type.

Readers of foreign input name it themselves (``errors.foreign``). What comes here with another type
is the machine's (memory, disk, files), a user's own code, or else a bug.
"""

from __future__ import annotations

import errno
import os
import sysconfig
import traceback
from pathlib import Path
from typing import Any

import trt_layermerge
from trt_layermerge.cli.verb import Ended, Interrupted
from trt_layermerge.errors import DeviceError, LayerMergeError, UsageError, words_of

INTERRUPTED = 130

COMPLETION = "_TRT_LAYERMERGE_COMPLETE"
"""Set by the shell where it asks for completion."""

_PACKAGE = os.path.join(os.path.dirname(os.path.realpath(trt_layermerge.__file__)), "")
_LIBRARIES = tuple(
    os.path.join(os.path.realpath(sysconfig.get_path(name)), "")
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_NO_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    "out of memory",
    "storage size calc",
    "could not create a primitive",  # what oneDNN says of it
)


def explain(error: BaseException) -> tuple[int, str]:
    """Returns exit code and one paragraph: what happened, why, and what to type."""
    if isinstance(error, LayerMergeError):
        return error.exit_code, str(error)
    if isinstance(error, Exception) and hasattr(error, "format_message"):
        return _of_the_words(error)
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        return INTERRUPTED, "interrupted; type the same command to continue"
    if _out_of_memory(error):
        return DeviceError.exit_code, (
            "out of memory; close other programs or use a smaller --batch or --input, then type "
            "the same command to continue"
        )
    if isinstance(error, OSError):
        return _of_the_system(error)
    ended = isinstance(error, Ended)
    place = users_code(error) or ("a library" if ended else None)
    if place is not None:
        why = str(error) if ended else words_of(error)
        return UsageError.exit_code, (
            f"{place} failed: {why}; this is no code of trt-layermerge's: mend it, or name another "
            "network or data set"
        )
    if COMPLETION in os.environ:
        return UsageError.exit_code, (
            f"completion was asked for ({COMPLETION}), and what the shell passes with it cannot be "
            f"read ({words_of(error)}); unset that variable, or type trt-layermerge "
            "--install-completion"
        )
    return LayerMergeError.exit_code, (
        f"{words_of(error)}. This is a bug in trt-layermerge; please report it with the output of "
        "the same command and -v -v"
    )


def _of_the_words(error: Any) -> tuple[int, str]:
    """Returns what the parser refuses; its errors are Typer's own or Click's, by the version."""
    said = " ".join(str(error.format_message()).split())
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "trt-layermerge"
    end = "" if said.endswith((".", "?")) else "."
    more = f"{end} To see what there is, type: {path} --help"
    return UsageError.exit_code, f"{said[0].lower()}{said[1:]}{more}" if said else ""


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory was lacking: torch says so in words only."""
    words = str(error).lower() if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or any(known in words for known in _NO_MEMORY)


def _of_the_system(error: OSError) -> tuple[int, str]:
    """Returns what a file, a folder or the disk refused."""
    at = f" at {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DeviceError.exit_code, (
            f"the disk is full{at}; free space or choose another folder (--runs-dir DIR), then "
            "type the same command to continue"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UsageError.exit_code, (
            f"no permission to use a file{at}: {error.strerror}; choose another file or folder"
        )
    try:
        Path.cwd()
    except OSError:
        return DeviceError.exit_code, (
            "the folder that this command was typed in is gone; change to one that exists (cd)"
        )
    return DeviceError.exit_code, (
        f"a file or folder{at} cannot be used: {error.strerror or words_of(error)}; check its name "
        "and that nothing removes it meanwhile, then type the same command to continue"
    )


def users_code(error: BaseException) -> str | None:
    """Returns the last place, called by the package, that is of no library, or None."""
    cause = error.__cause__ if isinstance(error, Ended) else error
    found, ours = None, False
    for frame, line in traceback.walk_tb(cause.__traceback__ if cause else None):
        file = os.path.realpath(frame.f_code.co_filename)
        if file.startswith(_PACKAGE):
            ours = True
        elif ours and os.path.isfile(file) and not file.startswith(_LIBRARIES):
            found = f"{file}:{line}"
    return found
