"""Results of a glyph study that was never run: every figure on its page can be told by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from studies.packed import pack

HEADER: dict[str, Any] = {
    "settings": {"rates": [0.002, 0.006], "changes": {}},
    "cpu": "a processor",
    "cores": 2,
    "versions": {"python": "3.11", "torch": "2.4", "onnxruntime": "1.18"},
}
LABELS = np.arange(8) % 4
FONTS = np.repeat([10, 11], 4)

WRONG: dict[tuple[str, int], tuple[int, ...]] = {
    ("aaaa", 0): (0, 4),
    ("aaaa", 1): (0,),
    ("bbbb", 0): (0, 1, 4, 5),
    ("bbbb", 1): (0, 1, 4, 5),
}
"""Test images that each trained network gets wrong, by plan and seed."""


def classes(wrong: tuple[int, ...]) -> str:
    """What a network says that gets these images wrong."""
    said = LABELS.copy()
    said[list(wrong)] += 1
    return pack(said)


def plan(arm: str, name: str, pick: int = 0) -> dict[str, Any]:
    """The row of an arm's plan at 2x."""
    return {
        "kind": "plan",
        "network": "net",
        "arm": arm,
        "speedup": 2.0,
        "pick": pick,
        "plan": name,
        "convs": 9,
        "seconds": 20.0 if arm == "ours" else 5.0,
        "candidates": [{}],
    }


def training(
    name: str, course: str, rate: float, seed: int, val: float, seconds: float = 3.0
) -> dict[str, Any]:
    """The row of a training of two epochs; the first comes to half of the second."""
    key = {"network": "net", "plan": name, "course": course, "rate": rate, "seed": seed}
    return {
        "kind": "training",
        **key,
        "val": val,
        "history": [val / 2, val],
        "start_val": 0.1,
        "start_s": 0.0,
        "seconds": seconds,
    }


def tested(name: str | None, course: str | None, rate: float | None, seed: int | None) -> Any:
    """The row of a test."""
    wrong = WRONG.get((name, seed), ()) if name and seed is not None else (7,)
    key = {"network": "net", "plan": name, "course": course, "rate": rate, "seed": seed}
    return {"kind": "test", **key, "classes": classes(wrong)}


def rows() -> list[dict[str, Any]]:
    """Two arms at 2x and two seeds: ours chose the higher rate, the paper's plan is too slow."""
    device = {"network": "net", "original_ms": 0.5, "device": "a device"}
    ours, paper = ("aaaa", "repair", 0.006), ("bbbb", "original", 0.002)
    return [
        {"kind": "session", "time": "now", "commit": "abc", "load": 0.5},
        {
            "kind": "network",
            "network": "net",
            "recipe": "net.yaml",
            "epochs": 3,
            "data_sha256": {"train": "1" * 64, "val": "2" * 64, "test": "3" * 64},
        },
        {"kind": "table", "network": "net", "tables": "full", "entries": 4, "seconds": 2.0},
        plan("ours", "aaaa"),
        plan("paper", "bbbb"),
        {"kind": "latency", **device, "plan": "aaaa", "speedup": 2.01, "ms": 0.249},
        {"kind": "latency", **device, "plan": "bbbb", "speedup": 1.9, "ms": 0.263},
        training("aaaa", "repair", 0.002, 0, 0.8),
        training("aaaa", "repair", 0.006, 0, 0.9),
        training("aaaa", "repair", 0.006, 1, 0.7),
        training("bbbb", "original", 0.002, 0, 0.6, seconds=7.0),
        training("bbbb", "original", 0.006, 0, 0.6),
        training("bbbb", "original", 0.002, 1, 0.6),
        {
            "kind": "images",
            "network": "net",
            "labels": pack(LABELS),
            "groups": pack(FONTS),
            "by": "font",
        },
        tested(None, None, None, None),
        *(tested(name, start, None, None) for name, start, _ in (ours, paper)),
        *(tested(*arm, seed) for arm in (ours, paper) for seed in (0, 1)),
    ]


def score(method: str, seed: int, key: str, delta: float) -> dict[str, Any]:
    """The row of a scored candidate."""
    return {
        "kind": "score",
        "network": "net",
        "method": method,
        "seed": seed,
        "key": key,
        "candidate": "fit" if key in "ab" else "compose",
        "delta": delta,
        "seconds": 0.5 if method == "calibrate" else 8.0,
        "prepared_s": 1.5,
    }


def scores() -> list[dict[str, Any]]:
    """Four candidates scored by both methods under two seeds, two plans, one objective's choice."""
    found = {
        ("calibrate", 0): (-1.0, -2.0, -3.0, -4.0),
        ("calibrate", 1): (-1.0, -2.0, -3.0, -4.0),
        ("finetune", 0): (-0.1, -0.2, -0.4, -0.3),
        ("finetune", 1): (-0.4, -0.3, -0.2, -0.1),
    }
    return [
        {"kind": "session", "time": "now", "commit": "abc", "load": 0.5},
        {"kind": "network", "network": "net"},
        *(
            score(method, seed, key, delta)
            for (method, seed), deltas in found.items()
            for key, delta in zip("abcd", deltas, strict=True)
        ),
        *(
            {"kind": "plan", "network": "net", "blocks": blocks, "sum": total, "joint": joint}
            for blocks, total, joint in ((1, 0.1, 0.1), (2, 0.2, 0.3), (4, 0.4, 0.4))
        ),
        *(
            {
                "kind": "objective",
                "network": "net",
                "share": 0.75,
                "form": form,
                "joint": joint,
                "nonlinear": 5,
            }
            for form, joint in (("delta", 0.25), ("exp", 0.5))
        ),
    ]
