"""What happens before tracing: inputs and weights are checked, and the model is copied."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from trt_layermerge.errors import CorruptInputError, UnsupportedModelError

Inputs: TypeAlias = tuple[torch.Tensor, ...]

_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
}
"""Classes that wrap a network, and the attribute that holds it."""


def as_inputs(example_inputs: torch.Tensor | tuple[torch.Tensor, ...]) -> Inputs:
    """Returns the example inputs as a tuple.

    Raises:
        UnsupportedModelError: If they are no tensors, or the batch is empty.
    """
    given = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else example_inputs
    inputs = tuple(given) if isinstance(given, tuple | list) else ()
    if not inputs or not all(isinstance(x, torch.Tensor) for x in inputs):
        raise UnsupportedModelError(
            f"the example input is a {type(example_inputs).__name__}, which no network of images "
            "takes; pass a tensor such as torch.randn(1, 3, 224, 224), or a tuple of tensors"
        )
    if any(x.numel() == 0 for x in inputs):
        raise UnsupportedModelError(
            f"the example input of shape {shapes(inputs)} is empty, so no shape can be followed "
            "through the network; pass at least one image"
        )
    return inputs


def check_values(model: nn.Module) -> None:
    """Checks that every parameter and buffer has finite values, and every norm usable statistics.

    Raises:
        CorruptInputError: If one holds NaN or infinity, or a variance is negative.
        UnsupportedModelError: If one has no values yet, or a batch normalisation keeps none.
    """
    for name, tensor in _tensors(model):
        if tensor.is_meta or nn.parameter.is_lazy(tensor):
            raise UnsupportedModelError(
                f"{name} has no values yet (a lazy or meta tensor), so there is nothing to merge; "
                "load the weights, or run the model once, before tracing it"
            )
        if (tensor.is_floating_point() or tensor.is_complex()) and not tensor.isfinite().all():
            raise CorruptInputError(
                f"{name} contains NaN or infinity, so every result would be wrong; "
                "load weights from before the training diverged"
            )
    for name, module in model.named_modules():
        _check_statistics(name, module)


def _check_statistics(name: str, module: nn.Module) -> None:
    """Raises where a normalisation cannot be computed in eval mode by what is stored of it."""
    variance = getattr(module, "running_var", None)
    if isinstance(module, _BatchNorm) and variance is None:
        raise UnsupportedModelError(
            f"{name} is a {type(module).__name__} without running statistics: it normalises every "
            "image by the batch around it, which no engine does; train it with "
            "track_running_stats=True, or use an InstanceNorm"
        )
    if isinstance(variance, torch.Tensor) and (variance + getattr(module, "eps", 0.0) <= 0).any():
        raise CorruptInputError(
            f"{name}.running_var has the value {float(variance.min()):g}, and no variance is below "
            "zero, so what it normalises is not a number; load undamaged weights, or estimate the "
            "statistics anew"
        )


def evaluation_copy(model: nn.Module) -> nn.Module:
    """Returns a deep copy of the model in eval mode; the model itself stays untouched.

    Raises:
        UnsupportedModelError: If it is wrapped or scripted, has hooks, or cannot be copied.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            "the model is a TorchScript module, whose Python code is gone; pass the nn.Module that "
            "it was scripted or traced from"
        )
    wrapper = next((name for name in _WRAPPERS if type(model).__name__ == name), None)
    if wrapper is not None:
        raise UnsupportedModelError(
            f"the model is wrapped in {wrapper}, which tracing cannot enter; pass the network "
            f"inside it: model.{_WRAPPERS[wrapper]}"
        )
    if isinstance(model, fx.GraphModule) and _is_exported(model):
        raise UnsupportedModelError(
            "the model is a program of torch.export, whose layers are functions of plain tensors; "
            "pass the nn.Module that it was exported from"
        )
    if has_hooks(model):
        raise UnsupportedModelError(
            "the model has forward hooks on its outermost module, which may change its values; "
            "remove them (handle.remove()) before tracing"
        )
    try:
        return copy.deepcopy(model).eval()
    except Exception as error:  # user modules may refuse in any way
        raise UnsupportedModelError(
            f"the model cannot be copied: {cause_of(error)}; undo weight_norm, pruning and other "
            "re-parametrisations (torch.nn.utils.remove_weight_norm, prune.remove) first"
        ) from error


def switch_off_inplace(model: nn.Module) -> frozenset[str]:
    """Switches ``inplace`` off everywhere, and returns the names of the modules that had it on."""
    names = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if getattr(module, "inplace", False) is True:
            names.add(name)
    for name in names:
        setattr(model.get_submodule(name), "inplace", False)  # noqa: B010 - mypy
    return frozenset(names)


def evaluate(model: nn.Module, inputs: Inputs) -> Any:
    """Returns what the model computes, without gradients; the inputs stay as they are.

    Raises:
        UnsupportedModelError: If it fails on these inputs.
    """
    try:
        with torch.no_grad():
            return model(*(x.clone() for x in inputs))
    except Exception as error:  # user code may fail in any way
        raise UnsupportedModelError(
            f"the model fails on an example input of shape {shapes(inputs)}: {cause_of(error)}; "
            "pass an input of the shape, type and device that the model expects"
        ) from error


class SigmoidsSeen(TorchFunctionMode):
    """Sees what sigmoids give while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self._values: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls a function of torch."""
        value = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in ("sigmoid", "sigmoid_"):
            self._values.append(value)
        return value

    def gave(self, value: Any) -> bool:
        """Whether a sigmoid gave this very tensor."""
        return any(value is seen for seen in self._values)


def same_values(first: Any, second: Any) -> bool:
    """Whether two outputs agree to 1e-4 of their size, NaN included, tensor by tensor."""
    mine, other = list(_flatten(first)), list(_flatten(second))
    return len(mine) == len(other) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
        for a, b in zip(mine, other, strict=True)
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module runs hooks that may change its inputs or outputs."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def shapes(inputs: Inputs) -> str:
    """Returns the shapes of the inputs for a message."""
    return ", ".join(str(tuple(x.shape)) for x in inputs)


def cause_of(error: BaseException) -> str:
    """Returns the first sentence of an error's text, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0].rstrip(".") if lines else type(error).__name__


def runs_forward_of(module: nn.Module, kind: Callable[..., Any]) -> bool:
    """Whether calling a module runs exactly this ``forward`` function."""
    return type(module).forward is kind and "forward" not in vars(module)


def _is_exported(model: fx.GraphModule) -> bool:
    return any(isinstance(n.target, torch._ops.OpOverload) for n in model.graph.nodes)


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _flatten(output: Any) -> Iterator[torch.Tensor]:
    """Yields every tensor of a nested output, in order."""
    found: list[torch.Tensor] = []
    map_aggregate(output, lambda x: found.append(x) if isinstance(x, torch.Tensor) else None)
    yield from found
