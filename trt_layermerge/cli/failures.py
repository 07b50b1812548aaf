"""What the user is told when something goes wrong, and the exit code that goes with it."""

from __future__ import annotations

import errno

from trt_layermerge.errors import DeviceError, LayerMergeError, UsageError

INTERRUPTED = 130


class Interrupted(Exception):
    """Ctrl-C while a verb worked."""


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
