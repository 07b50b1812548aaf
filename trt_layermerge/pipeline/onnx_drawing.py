"""An ``fx`` graph in the making, and what is read from ONNX nodes on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from trt_layermerge.errors import UnsupportedModelError


class Drawing:
    """An ``fx`` graph in the making, with the modules that it calls.

    Attributes:
        root: Holds the modules and constants, named after the ONNX nodes and tensors.
        graph: What was drawn so far.
        values: Node by the name of the ONNX tensor that it computes.
    """

    def __init__(self) -> None:
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[str, fx.Node] = {}

    def value(self, tensor: Any) -> fx.Node:
        """Returns the node of an ONNX tensor; a constant becomes a buffer."""
        if tensor.name not in self.values:
            name = self._free(tensor.name)
            self.root.register_buffer(name, floats(tensor.values))
            self.values[tensor.name] = self.graph.get_attr(name)
        return self.values[tensor.name]

    def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> fx.Node:
        """Returns a new node that calls a function."""
        return self.graph.call_function(function, args, options)

    def layer(self, node: Any, module: nn.Module, source: Any = None) -> fx.Node:
        """Returns a new node that calls a module on an ONNX tensor, the node's first by default."""
        name = self._free(node.name or node.op)
        self.root.add_module(name, module)
        return self.graph.call_module(name, (self.value(source or node.inputs[0]),))

    def _free(self, name: str) -> str:
        """Returns a name for an attribute that is not taken, close to an ONNX name."""
        plain = "".join(c if c.isalnum() else "_" for c in name).strip("_")
        plain = plain if plain and not plain[0].isdigit() else f"_{plain}"
        taken, count = plain, 1
        while hasattr(self.root, taken):
            taken, count = f"{plain}_{count}", count + 1
        return taken


def floats(values: Any) -> Tensor:
    """Returns a constant as a tensor; every float type becomes single precision."""
    array = np.asarray(values)
    return torch.tensor(array.astype(np.float32) if array.dtype.kind == "f" else array)


def constant(node: Any, index: int, name: str | None = None, default: Any = None) -> Any:
    """Returns an input that must be constant, as numpy, else an attribute, else the default.

    Raises:
        UnsupportedModelError: If the input is computed by the network.
    """
    if index < len(node.inputs) and node.inputs[index].name:
        if not hasattr(node.inputs[index], "values"):
            raise UnsupportedModelError(
                f"input {index} of the ONNX node {node.name} ({node.op}) is computed by the "
                "network, and only constants can be read there; export the network in eval mode "
                "with its weights as initialisers"
            )
        return node.inputs[index].values
    return default if name is None else node.attrs.get(name, default)


def numbers(values: Any) -> tuple[int, ...]:
    """Returns whole numbers as a tuple."""
    return tuple(int(v) for v in values)
