"""What judges answers batch by batch: torchmetrics' manner, for figures of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias


class Tally(Protocol):
    """Counts what a network answers, and says in the end how good that was."""

    def update(self, outputs: Mapping[str, Any], labels: Any) -> None:
        """Counts a batch.

        Args:
            outputs: Arrays or tensors by name, ``(n, ...)``.
            labels: ``(n,)``, or of every pixel ``(n, H, W)``, or None.
        """
        ...

    def compute(self) -> float:
        """Returns the figure of all batches so far; higher is better."""
        ...


Judge: TypeAlias = Callable[[], Tally]
"""Begins to count anew."""
