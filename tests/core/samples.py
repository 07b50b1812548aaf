"""Small tables that several tests share."""

from __future__ import annotations

from trt_layermerge.core.conv import AddSpec, ConvSpec
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.tables import (
    ImportanceEntry,
    ImportanceTable,
    LatencyEntry,
    LatencyTable,
)

DEVICE = DeviceInfo("fake", "1.0", "a machine", "1 thread")
CONV = ConvSpec(3, 16, (3, 5), (2, 1), (1, 2, 1, 2), (1, 1), 1, 32, 33, "leaky_relu:0.01", True)
ADD = AddSpec(16, 16, 17, "relu")


def latency_table() -> LatencyTable:
    """Returns one measurement and one failure."""
    return LatencyTable(
        DEVICE,
        {
            (CONV, "fp32", 1): LatencyEntry(0.25, 0.2, 0.3, 40),
            (ADD, "fp16", 8): LatencyEntry(float("inf"), error="out of memory"),
        },
        overhead_ms=0.125,
        notes={"networks": 3},
    )


def importance_table() -> ImportanceTable:
    """Returns the score of one candidate."""
    key = (3, 5, "compose", (4,), (CONV,), ())
    return ImportanceTable({key: ImportanceEntry(-0.125, "calibrate", "block")}, {"seed": 0})
