"""Symbolic tracing that goes around what it cannot follow, and says where and why."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest.mock import patch

import torch
from torch import fx, nn

from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.tracing.activations import activation_of_module
from trt_layermerge.tracing.conv import is_conv
from trt_layermerge.tracing.known import KnownProxy, KnownValues
from trt_layermerge.tracing.norms import is_image_norm, is_library_norm
from trt_layermerge.tracing.prepare import Inputs, cause_of, evaluate, has_hooks, same_values
from trt_layermerge.tracing.transparent import is_transparent_module

_POOLS = (nn.MaxPool2d, nn.AvgPool2d)
"""Subclasses too: timm's pad by the size of their input, in code that cannot be followed."""


class LayerTracer(fx.Tracer):
    """Records layers as single calls, and walks through everything else.

    Attributes:
        opaque: Qualified names of modules that are recorded as one call although unknown, with
            the reason.
        known: What is known of values.
    """

    def __init__(self, root: nn.Module, inputs: Inputs, opaque: Mapping[str, str]) -> None:
        super().__init__(param_shapes_constant=True)
        self.opaque = dict(opaque)
        self.known = KnownValues(root, inputs, self.opaque.__contains__)
        self.failed: tuple[str, BaseException] | None = None

    def trace(
        self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None
    ) -> fx.Graph:
        """Returns the graph of a module; ``torch.is_tensor`` answers for known values meanwhile."""
        plain = torch.is_tensor

        def is_tensor(obj: Any) -> bool:
            return self.known.is_tensor(obj.node) if isinstance(obj, fx.Proxy) else plain(obj)

        with patch.object(torch, "is_tensor", is_tensor):
            return super().trace(root, concrete_args)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Returns a proxy that answers from what is known."""
        return KnownProxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Returns a decision. Raises ``TraceError`` if it depends on contents of tensors."""
        return bool(self.known.of(obj.node))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Returns the parts of a sequence. Raises ``TraceError`` if its length is not known."""
        length = len(self.known.of(obj.node))
        return iter([operator.getitem(obj, i) for i in range(length)])

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Returns an attribute of a module, as a proxy where it is a parameter."""
        if self.known.computing:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is recorded as one call."""
        if has_hooks(m):
            self.opaque.setdefault(
                module_qualified_name, "it has forward hooks, which may change its values"
            )
        return (
            module_qualified_name in self.opaque
            or is_conv(m)
            or is_transparent_module(m)
            or is_library_norm(m)
            or is_image_norm(m)
            or activation_of_module(m) is not None
            or isinstance(m, _POOLS)
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Returns the proxy of a call; notes the innermost module in which tracing fails."""
        if self.known.computing:
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            if self.failed is None:
                self.failed = self.path_of_module(m), error
            raise


def symbolic_trace(root: nn.Module, inputs: Inputs) -> tuple[fx.GraphModule, dict[str, str]]:
    """Returns the traced model, and the opaque modules in it with the reason for each.

    Arguments of ``forward`` beyond the inputs keep their defaults. Where code decides by shapes, it
    decides as it does on these inputs, unless that would fix the size of a batch.

    Raises:
        UnsupportedModelError: If the outermost ``forward`` itself cannot be traced.
    """
    opaque: dict[str, str] = {}
    known = inputs
    while True:
        tracer = LayerTracer(root, known, opaque)
        try:
            graph = tracer.trace(root, _defaults(root, len(inputs)))
        except Exception as error:
            if tracer.failed is None or tracer.failed[0] in opaque:
                raise UnsupportedModelError(
                    f"forward of {type(root).__name__} cannot be traced: {cause_of(error)}; move "
                    "code that depends on values or shapes of tensors into a submodule, which is "
                    "then left as it is, or pass the backbone alone"
                ) from error
            name, cause = tracer.failed
            kind = type(root.get_submodule(name)).__name__
            opaque = {**tracer.opaque, name: f"{kind} cannot be traced: {cause_of(cause)}"}
            continue
        network = fx.GraphModule(tracer.root, graph)
        if known and tracer.known.asked and not _follows_batch(root, network, inputs):
            opaque, known = {}, ()
            continue
        return network, tracer.opaque


def _follows_batch(root: nn.Module, network: fx.GraphModule, inputs: Inputs) -> bool:
    """Whether a traced network takes a batch of twice the size as the model does."""
    twice = tuple(torch.cat([x, x]) for x in inputs)
    try:
        expected = evaluate(root, twice)
    except UnsupportedModelError:  # the model itself takes no other batch
        return True
    try:
        return same_values(evaluate(network, twice), expected)
    except UnsupportedModelError:
        return False


def _defaults(root: nn.Module, inputs: int) -> dict[str, Any] | None:
    """Returns the default values of the arguments that the example inputs leave out."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = list(inspect.signature(root.forward).parameters.values())[inputs:]
    defaults = {
        p.name: p.default
        for p in parameters
        if p.kind in named and p.default is not inspect.Parameter.empty
    }
    return defaults or None
