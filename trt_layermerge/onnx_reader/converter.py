"""An ``fx`` graph in the making, and what is read from ONNX nodes on the way."""

from __future__ import annotations

import keyword
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from trt_layermerge.errors import CorruptInputError


class Converter:
    """An ``fx`` graph in the making, with the modules that it calls.

    Args:
        dtype: Float type of all constants; None leaves each its own.
        batch: Images in the input that the shapes of the ONNX tensors belong to.
        opset: Of the ONNX model.

    Attributes:
        root: Holds the modules and constants, named after the ONNX nodes and tensors.
        graph: What was converted so far.
        values: Node by the name of the ONNX tensor that it computes.
        dtype: As given.
        batch: As given.
        opset: As given.
    """

    def __init__(self, dtype: torch.dtype | None, batch: int, opset: int) -> None:
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[str, fx.Node] = {}
        self.dtype, self.batch, self.opset = dtype, batch, opset

    def value(self, tensor: Any) -> fx.Node:
        """Returns the node of an ONNX tensor; a constant becomes a buffer.

        Raises:
            ValueError: If it is an output of a node that has more than can be read.
            CorruptInputError: If a constant holds NaN; infinity has its use, as in masks.
        """
        if tensor.name not in self.values:
            if not hasattr(tensor, "values"):
                raise ValueError(f"its input {tensor.name} is a second output of another node")
            values = self.tensor(tensor.values)
            if bool(values.isnan().any()):
                raise CorruptInputError(f"the ONNX constant {tensor.name} holds NaN; {AGAIN}")
            self.values[tensor.name] = self.buffer(tensor.name, values)
        return self.values[tensor.name]

    def buffer(self, name: str, tensor: Tensor) -> fx.Node:
        """Returns the node of a constant that becomes a buffer of about this name."""
        taken = self._free(name)
        self.root.register_buffer(taken, tensor)
        return self.graph.get_attr(taken)

    def tensor(self, values: Any) -> Tensor:
        """Returns an ONNX constant as a tensor of its own memory, floats in the wanted type."""
        array = np.asarray(values)
        if array.dtype.kind not in "fV":  # V: bfloat16, which numpy has no letter for
            return torch.tensor(array)
        plain = torch.tensor(array.astype(np.float32) if array.dtype.kind == "V" else array)
        return plain.to(self.dtype or getattr(torch, array.dtype.name))

    def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> fx.Node:
        """Returns a new node that calls a function."""
        return self.graph.call_function(function, args, options)

    def layer(self, node: Any, module: nn.Module, source: Any = None) -> fx.Node:
        """Returns a new node that calls a module on an ONNX tensor, the node's first by default.

        Args:
            node: The ONNX node that the module is named after.
            module: Becomes part of ``root``.
            source: The ONNX tensor; None for the first input of the node.

        Raises:
            CorruptInputError: If its weights are not finite.
        """
        self._refuse_non_finite(node, module)
        name = self._free(node.name or node.op)
        self.root.add_module(name, module)
        return self.graph.call_module(name, (self.value(source or node.inputs[0]),))

    @staticmethod
    def _refuse_non_finite(node: Any, module: nn.Module) -> None:
        for name, tensor in module.state_dict().items():
            if not bool(torch.isfinite(tensor).all()):
                raise CorruptInputError(
                    f"the {title(node)} has values that are not finite (NaN or infinity) in its "
                    f"{name.rpartition('.')[2]}; {AGAIN}"
                )

    def _free(self, name: str) -> str:
        """Returns a name for an attribute that is not taken, close to an ONNX name."""
        plain = "".join(c if c.isascii() and c.isalnum() else "_" for c in name).strip("_")
        plain = plain if plain and not plain[0].isdigit() else f"_{plain}"
        taken, count = plain, 1
        while hasattr(self.root, taken) or hasattr(_EMPTY, taken) or keyword.iskeyword(taken):
            taken, count = f"{plain}_{count}", count + 1
        return taken


_EMPTY = fx.GraphModule(nn.Module(), fx.Graph())
"""Has the attributes that every network has, whose names are taken."""


AGAIN = "export the network again from a checkpoint whose weights are finite"


def title(node: Any) -> str:
    """Returns what an ONNX node is called in errors; not every exporter gives names."""
    if node.name:
        return f"ONNX node {node.name} ({node.op})"
    return f"ONNX node without a name that makes {node.outputs[0].name} ({node.op})"


def constant(node: Any, index: int, name: str | None = None, default: Any = None) -> Any:
    """Returns an input that must be constant, as numpy, else an attribute, else the default.

    Args:
        node: The ONNX node.
        index: Position of the input, which may be absent.
        name: Attribute that has the value in older opsets; None where there is none.
        default: What is returned where there is neither.

    Raises:
        ValueError: If the input is computed by the network.
    """
    if index < len(node.inputs) and node.inputs[index].name:
        if not hasattr(node.inputs[index], "values"):
            raise ValueError(
                f"its input {index} is computed by the network, and only constants can be read "
                "there; export the network in eval mode with its weights as initialisers"
            )
        return node.inputs[index].values
    return default if name is None else node.attrs.get(name, default)


def numbers(values: Any) -> tuple[int, ...]:
    """Returns whole numbers as a tuple."""
    return tuple(int(v) for v in values)


def sizes(tensor: Any) -> tuple[int, ...]:
    """Returns the shape of an ONNX tensor at the input that it is read at.

    Raises:
        ValueError: If it follows from what the network computes.
    """
    shape = tensor.shape
    if shape is None or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(f"the shape of {tensor.name} depends on the values of the image")
    return tuple(shape)


def filled(module: Any, **values: Tensor | None) -> Any:
    """Returns the module with parameters and buffers replaced; None is left out."""
    for name, value in values.items():
        if value is not None:
            trained = isinstance(getattr(module, name), nn.Parameter)
            tensor = value.contiguous()
            setattr(module, name, nn.Parameter(tensor) if trained else tensor)
    return module
