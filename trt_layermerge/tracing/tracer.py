"""Symbolic tracing that goes around what it cannot follow, and says where and why."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx, nn

from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.tracing.activations import activation_of_module
from trt_layermerge.tracing.conv import is_conv
from trt_layermerge.tracing.norms import is_library_norm
from trt_layermerge.tracing.prepare import cause_of, has_hooks
from trt_layermerge.tracing.transparent import is_transparent_module


class LayerTracer(fx.Tracer):
    """Records layers as single calls, and walks through everything else.

    Attributes:
        opaque: Qualified names of modules that are recorded as one call although unknown, with
            the reason.
    """

    def __init__(self, opaque: Mapping[str, str]) -> None:
        super().__init__(param_shapes_constant=True)
        self.opaque = dict(opaque)
        self.failed: tuple[str, BaseException] | None = None

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
            or activation_of_module(m) is not None
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
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            if self.failed is None:
                self.failed = self.path_of_module(m), error
            raise


def symbolic_trace(root: nn.Module, inputs: int) -> tuple[fx.GraphModule, dict[str, str]]:
    """Returns the traced model, and the opaque modules in it with the reason for each.

    Arguments of ``forward`` beyond the first ``inputs`` keep their defaults.

    Raises:
        UnsupportedModelError: If the outermost ``forward`` itself cannot be traced.
    """
    opaque: dict[str, str] = {}
    while True:
        tracer = LayerTracer(opaque)
        try:
            graph = tracer.trace(root, _defaults(root, inputs))
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
        return fx.GraphModule(tracer.root, graph), tracer.opaque


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
