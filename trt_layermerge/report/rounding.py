"""What int8 cost, and which layers were left in float for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trt_layermerge.report import text
from trt_layermerge.report.data import RunReport
from trt_layermerge.report.document import Paragraph, Part, Section, Table


def rounding(report: RunReport) -> tuple[Section, ...]:
    """Returns the section about int8; nothing where nothing was calibrated."""
    networks: Mapping[str, Any] = (report.calibration or {}).get("networks") or {}
    if not networks:
        return ()
    rows = tuple(_row(name, found) for name, found in networks.items())
    head = ("network", "fp32", "int8", "same class", "images", "layers in int8", "in float")
    parts: list[Part] = [Table(head, rows, (1, 2, 3, 4, 5, 6)), Paragraph(_method(networks))]
    for name, found in networks.items():
        parts += _kept(name, found)
    return (Section("int8", "What rounding to int8 costs", tuple(parts)),)


def _row(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    kept = len(found["keep_float"])
    return (
        name,
        text.percent(found["accuracy_fp32"], 2),
        text.percent(found["accuracy_int8"], 2),
        text.percent(found["agreement"], 2),
        text.count(found["images_judged"]),
        text.count(len(found["layers"]) - kept),
        text.count(kept),
    )


def _method(networks: Mapping[str, Any]) -> str:
    preset = next(iter(networks.values()))["preset"]
    return (
        f"Calibrated by {preset['method']} on {text.plain(preset['images'])} training images and "
        "judged on images that were not calibrated on; layers stay in float, the most sensitive "
        f"first, until at most {text.percent(preset['max_accuracy_drop'], 2)} is lost."
    )


def _kept(name: str, found: Mapping[str, Any]) -> list[Part]:
    kept = set(found["keep_float"])
    if not kept:
        return [Paragraph(f"Every layer of the {name} network is in int8.")]
    rows = tuple(
        (
            layer["name"],
            layer["op"],
            text.decimal(layer["sqnr_db"], 1),
            text.decimal(layer["kl"], 5),
        )
        for layer in found["layers"]
        if layer["name"] in kept
    )
    head = ("layer", "operation", "signal to noise, dB", "divergence alone")
    return [Paragraph(f"Left in float in the {name} network:"), Table(head, rows, (2, 3))]
