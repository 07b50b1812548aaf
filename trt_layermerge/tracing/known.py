"""What is known of values while a network is traced: shapes, types and lengths, never contents.

A forward that asks for them (``if x.shape[1] == c``, ``for y in x.chunk(2, 1)``) is answered by the
example input. Nodes stay symbolic, so that the traced network still follows the size of a batch.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import map_arg
from torch.fx.proxy import Attribute, TraceError

from trt_layermerge.tracing.prepare import Inputs

_UNKNOWN = object()
_PLAIN = (bool, int, float, str, tuple, list, torch.dtype, torch.device)


class KnownValues:
    """Values of a graph while it grows, as tensors without contents.

    Args:
        root: The module that is traced.
        inputs: What the first placeholders stand for.
        opaque: Whether the module of this qualified name is one whose code is unknown.

    Attributes:
        asked: Whether anything was asked for.
        computing: Whether modules are run right now, which must not be recorded.
    """

    def __init__(self, root: nn.Module, inputs: Inputs, opaque: Callable[[str], bool]) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._inputs = iter([self._mode.from_tensor(x) for x in inputs])
        self._root, self._opaque = root, opaque
        self._values: dict[fx.Node, Any] = {}
        self.asked = self.computing = False

    def of(self, node: fx.Node) -> Any:
        """Returns a number, a type, or a sequence. Raises ``TraceError`` if it is not known."""
        value = self._value(node)
        if not isinstance(value, _PLAIN):
            raise TraceError("symbolically traced variables cannot be used in control flow")
        self.asked = True
        return value

    def is_tensor(self, node: fx.Node) -> bool:
        """Whether a value is a tensor, as far as it is known."""
        return isinstance(self._value(node), torch.Tensor)

    def _value(self, node: fx.Node) -> Any:
        for earlier in node.graph.nodes:
            if earlier not in self._values:
                self._values[earlier] = self._computed(earlier)
        return self._values[node]

    def _computed(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return next(self._inputs, _UNKNOWN)
        if any(self._values[n] is _UNKNOWN for n in node.all_input_nodes):
            return _UNKNOWN
        args, kwargs = map_arg((node.args, node.kwargs), self._values.__getitem__)
        self.computing = True
        try:
            called = self._called(node)
            with self._mode, torch.no_grad():
                return called(*args, **kwargs)
        except Exception:  # user code may fail in any way where there are no contents
            return _UNKNOWN
        finally:
            self.computing = False

    def _called(self, node: fx.Node) -> Callable[..., Any]:
        if callable(node.target):
            return node.target
        name = node.target
        if node.op == "call_method":
            return lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)
        if node.op == "get_attr":
            return lambda: operator.attrgetter(name)(self._root)
        module = self._root.get_submodule(name)
        return copy.deepcopy(module) if self._opaque(name) else module


class KnownProxy(fx.Proxy):
    """A value that answers from what its tracer's ``known`` has of it."""

    tracer: Any

    def __len__(self) -> int:
        return len(self.tracer.known.of(self.node))

    def __int__(self) -> int:
        return int(self.tracer.known.of(self.node))

    def __index__(self) -> int:
        return operator.index(self.tracer.known.of(self.node))

    def __float__(self) -> float:
        return float(self.tracer.known.of(self.node))

    def __getattr__(self, name: str) -> Attribute:
        return _KnownAttribute(self, name)


class _KnownAttribute(KnownProxy, Attribute):
    """An attribute of such a value, or a method that is yet to be called."""
