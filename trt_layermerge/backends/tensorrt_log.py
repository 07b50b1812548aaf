"""What TensorRT says, collected: most of its errors show up nowhere else.

TensorRT keeps the first logger that it is given for the whole process, warns of every other one,
and may go on using the first after its builder is gone. So each library gets one logger that lives
as long as the process, and everybody who wants to know listens to that.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary, WeakSet

# Loggers by library.
_SINKS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class BuildLog:
    """Keeps the ``lines`` that the library says from now on, verbose ones left out.

    Each stands behind its severity. ``sink`` is the logger to give to the library.
    """

    def __init__(self, module: Any) -> None:
        """Takes the library."""
        if module not in _SINKS:
            _SINKS[module] = _sink_class(module.ILogger)()
        self.sink = _SINKS[module]
        self.lines: list[str] = []
        self.sink.listeners.add(self)

    def errors(self) -> str:
        """Returns the last errors in one line."""
        found = [line for line in self.lines if line.startswith(("ERROR", "INTERNAL_ERROR"))]
        return " | ".join(found[-3:]) or "it gave no reason"


def _sink_class(base: Any) -> Any:
    class Sink(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.listeners: WeakSet[BuildLog] = WeakSet()

        def log(self, severity: Any, message: str) -> None:
            if severity.name == "VERBOSE":
                return
            for listener in list(self.listeners):
                listener.lines.append(f"{severity.name}: {message}")

    return Sink
