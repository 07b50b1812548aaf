"""Everything that can go wrong, and the exit code it ends with.

LayerMergeError                 1
├── UsageError                  2   wrong option, unknown name, missing file
│   └── DivergedError           2   a training whose rate was too high
├── UnsupportedModelError       3   the network or its input cannot be handled
├── DeviceError                 4   device, backend, library or file system
│   ├── MissingDependencyError  4   an optional package is not installed
│   └── StickyDeviceError       4   this process can no longer use the GPU
├── AccuracyGateError           5   the result is less accurate than allowed
├── LatencyGateError            6   the result is slower than allowed
│   └── InfeasibleBudgetError   6   no plan meets the budget
└── CorruptInputError           7   damaged, non-finite or malformed input
    └── UntrustedInputError     7   input that would execute code when loaded

A message is one short paragraph: what happened, why, and what to type.
"""

from __future__ import annotations

import shlex
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping


class LayerMergeError(Exception):
    """Base of every error that users see without a traceback.

    Attributes:
        result: What the work came to all the same, as a program reads it; None for nothing.
    """

    exit_code = 1
    result: Mapping[str, Any] | None = None


class UsageError(LayerMergeError):
    """An option, a name or a path that cannot be used."""

    exit_code = 2


class DivergedError(UsageError):
    """A training whose loss or answers are no longer finite."""


class UnsupportedModelError(LayerMergeError):
    """A network, or an input to it, that cannot be traced, merged or exported."""

    exit_code = 3


class DeviceError(LayerMergeError):
    """A device, backend, library or file system that refuses the work."""

    exit_code = 4


class StickyDeviceError(DeviceError):
    """A GPU fault after which every CUDA call of the process fails; a new process can go on."""


class MissingDependencyError(DeviceError):
    """An optional package that the requested work needs is not installed.

    Attributes:
        package: Its name.
        what: What needs it, as a sentence without what to type.
    """

    def __init__(self, package: str, purpose: str, extra: str) -> None:
        """Names the package, what needs it, and the extra that installs it."""
        self.package = package
        self.what = f"{purpose} needs the package {package!r}, which is not installed"
        super().__init__(f"{self.what}; type: pip install 'trt-layermerge[{extra}]'")


class AccuracyGateError(LayerMergeError):
    """The result is less accurate than the gate allows."""

    exit_code = 5


class LatencyGateError(LayerMergeError):
    """The result is slower than the gate allows."""

    exit_code = 6


class InfeasibleBudgetError(LatencyGateError):
    """No plan meets the latency budget."""


class CorruptInputError(LayerMergeError):
    """Input that is damaged, non-finite or not in the expected format."""

    exit_code = 7


class UntrustedInputError(CorruptInputError):
    """Input that could execute code when loaded."""


@contextmanager
def foreign(refusal: Callable[[str], LayerMergeError]) -> Iterator[None]:
    """Turns whatever input from outside makes fail into one paragraph: the only place that does.

    Files, networks and sets of users, and the libraries that read them, raise anything: even
    ``SystemExit``, which would end a command silently. What is an error of ours already, and
    Ctrl-C, pass.

    Args:
        refusal: Makes the error, given in words what was raised.

    Raises:
        LayerMergeError: What ``refusal`` returns, in place of anything that was raised.
    """
    try:
        yield
    except (LayerMergeError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise refusal(words_of(error)) from error


def words_of(error: BaseException) -> str:
    """Returns on one line what was raised: its text, with its type where that says more."""
    name = type(error).__name__
    if isinstance(error, SystemExit):
        return f"it ends the program ({name}: {error})"
    try:
        text = " ".join(str(error).split())[:500]
    except Exception:  # an error of somebody's own may even fail to say what it is
        text = ""
    if isinstance(error, LayerMergeError) or (type(error) is ValueError and text):
        return text
    return f"{name}: {text}" if text else name


def did_you_mean(name: str, known: Iterable[str], alike: float = 0.6) -> str:
    """Returns the end of a message about an unknown name: the known ones that are like it, if any.

    Args:
        name: What was typed.
        known: What could have been.
        alike: How much they must have in common, 0 to 1.
    """
    import difflib

    close = difflib.get_close_matches(name, list(known), 3, alike)
    return f"; did you mean {', '.join(close)}?" if close else ""


def command(verb: str, run: Path, *more: str) -> str:
    """Returns what to type to do a verb of the run in a folder, quoted for a shell."""
    usual = run.parent.absolute() == Path("runs").absolute()
    where = () if usual else ("--runs-dir", str(run.parent))
    return shlex.join(["trt-layermerge", verb, "--run", run.name, *more, *where])


def error_of(exit_code: int, text: str) -> LayerMergeError:
    """Returns the error that another process of this package ended with; unknown codes: 4."""
    for kind in (
        UsageError,
        UnsupportedModelError,
        AccuracyGateError,
        LatencyGateError,
        CorruptInputError,
    ):
        if kind.exit_code == exit_code:
            return kind(text)
    return DeviceError(text)
