"""Shapes of all values of a traced network on one input."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.tracing.prepare import Inputs, cause_of, shapes


class _ShapeRecorder(fx.Interpreter):
    """Runs a network node by node and notes the shape of every tensor."""

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node; its value's shape goes to ``meta["shape"]``."""
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            n.meta["shape"] = tuple(value.shape)
        return value


def record_shapes(network: fx.GraphModule, inputs: Inputs) -> None:
    """Writes ``meta["shape"]`` of every node whose value is a tensor.

    Raises:
        UnsupportedModelError: If the traced network fails where the model itself did not.
    """
    try:
        with torch.no_grad():
            _ShapeRecorder(network).run(*(x.clone() for x in inputs))
    except Exception as error:  # user code may fail in any way
        raise UnsupportedModelError(
            f"the traced copy fails on an input of shape {shapes(inputs)}: {cause_of(error)}; "
            "its forward takes decisions that tracing cannot see: move them into a submodule"
        ) from error
