"""A pipeline that records what it is asked and answers what a test wants."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from trt_layermerge import pipeline
from trt_layermerge.pipeline.options import Reporter, RunOptions


@dataclass
class FakePipeline:
    """Stands in for ``trt_layermerge.pipeline.api``.

    Attributes:
        result: What every call returns.
        work: Called with the reporter by every call; may raise.
        asked: The stage (None for a whole recipe) and the options of every call.
        rebuilt: The arguments of every call of ``rebuild``.
    """

    result: dict[str, Any] = field(default_factory=dict)
    work: Callable[[Reporter], None] = lambda reporter: None
    asked: list[tuple[str | None, RunOptions]] = field(default_factory=list)
    rebuilt: list[tuple[Any, ...]] = field(default_factory=list)

    def run_stage(self, stage: str, options: RunOptions, reporter: Reporter) -> dict[str, Any]:
        self.asked.append((stage, options))
        self.work(reporter)
        return self.result

    def run_recipe(
        self, recipe: Path | None, options: RunOptions, reporter: Reporter
    ) -> dict[str, Any]:
        assert recipe == options.recipe
        self.asked.append((None, options))
        self.work(reporter)
        return self.result

    def rebuild(self, *arguments: Any) -> dict[str, Any]:
        self.rebuilt.append(arguments)
        return self.result


def install(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    """Returns the fake, put in the place of the real pipeline."""
    stand_in = FakePipeline()
    module = ModuleType("trt_layermerge.pipeline.api")
    for name in ("run_stage", "run_recipe", "rebuild"):
        setattr(module, name, getattr(stand_in, name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(pipeline, "api", module, raising=False)
    return stand_in


def engine(network: str, precision: str, error: str | None = None) -> dict[str, Any]:
    """Returns a row of ``build.json``, in which hashes and settings stand too."""
    if error is not None:
        return {"network": network, "precision": precision, "plan": None, "error": error}
    stem = {"original": "original", "merged": "model"}[network]
    return {
        "network": network,
        "precision": precision,
        "onnx_sha256": "a" * 64,
        "onnx_bytes": 1_103_585,
        "plan_sha256": "b" * 64,
        "plan_bytes": 87_470_000,
        "seconds": 12.34,
        "library": "tensorrt",
        "library_version": "10.3.0.26",
        "warnings": 26,
        "plan": f"engines/nvidia-geforce-rtx-4090-laptop-gpu/{stem}.{precision}.plan",
        "error": None,
    }
