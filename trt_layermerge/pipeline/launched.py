"""Processes that ``accelerate launch`` or ``torchrun`` started for one training.

The first one does the stage as if it were alone, and calls the others when there is something to
train. They write nothing and print no results. All of them must see the run's folder and the data.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trt_layermerge.errors import UsageError

if TYPE_CHECKING:
    from trt_layermerge.finetune.processes import Accelerated, ProcessGroup

TRAINS = "finetune"
"""The stage that several processes do together."""


def processes() -> int:
    """Returns how many processes the launcher started, this one included; 1 without a launcher."""
    return _number("WORLD_SIZE", 1)


def only_alone(what: str) -> None:
    """Refuses work that several processes would do all at once. Raises ``UsageError``."""
    if processes() > 1:
        raise UsageError(
            f"{what} is work for one process, and a launcher started {processes()}; launch "
            f"several for {TRAINS} only: accelerate launch -m trt_layermerge {TRAINS} --run NAME"
        )


class Launched:
    """This process among those that a launcher started.

    Attributes:
        group: How they train.
        called: Whether the others know whether there is something to train.
    """

    def __init__(self, group: Accelerated) -> None:
        self.group, self.called = group, False

    def call(self) -> ProcessGroup:
        """Tells the other processes that the training starts now."""
        self.called = True
        self.group.share(True)
        return self.group

    def wait(self) -> bool:
        """Returns, in another process than the first, whether there is something to train."""
        self.called = True
        return self.group.share(False)


@contextmanager
def launched_group(stage: str, device: str) -> Iterator[Launched | None]:
    """Yields this process among those that were launched; None if it is alone.

    Args:
        stage: What they are to do.
        device: Where the recipe computes: ``cpu``, or the GPU of each process's number.

    Raises:
        UsageError: If several were launched for another stage than ``finetune``.
    """
    if processes() == 1:
        yield None
        return
    if stage != TRAINS:
        only_alone(stage)
    from trt_layermerge.finetune.processes import Accelerated

    launched = Launched(Accelerated(cpu=device == "cpu"))
    try:
        yield launched
    finally:
        if not launched.called:
            launched.group.share(False)
        launched.group.close()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default
