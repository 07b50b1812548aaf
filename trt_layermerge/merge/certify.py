"""Proof in figures that the merged network computes what the relaxed one does."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

from trt_layermerge.blocks import RelaxedBlock
from trt_layermerge.errors import UsageError
from trt_layermerge.merge.collapse import collapse
from trt_layermerge.merge.relax import RelaxedNet
from trt_layermerge.merge.surgery import block_key, block_path
from trt_layermerge.tracing.prepare import cause_of

TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-10}
EXACT_IMAGES = 2
ROUNDING = {torch.float32: 2.0**-23, torch.float64: 1e-10}


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison over a whole output, borders included.

    Attributes:
        block: Name of the block, such as ``b3_5``, ``network`` for outputs of the whole, or
            ``weights`` for its tensors against the ones merged in float64.
        kind: Kind of the candidate, or ``whole``.
        dtype: Type in which both sides were computed.
        max_abs_error: Largest difference.
        max_rel_error: Largest difference over the largest magnitude of the relaxed output.
        tolerance: What ``max_rel_error`` may be.
    """

    block: str
    kind: str
    dtype: str
    max_abs_error: float
    max_rel_error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance; a value that is no number is not."""
        return self.max_rel_error <= self.tolerance


@dataclass(frozen=True, slots=True)
class Certificate:
    """Every comparison of a merge.

    Attributes:
        checks: The network and each changed block in the type of the merged network; the same in
            float64 with the relaxed network merged anew in float64, where rounding hides nothing;
        and the merged network's tensors against those.
        note: What could not be compared, and why, or None.
    """

    checks: tuple[Check, ...]
    note: str | None = None

    @property
    def max_rel_error(self) -> float:
        """The largest relative error of the network as it is, and of its blocks."""
        return max(c.max_rel_error for c in self.checks if c.dtype == self.checks[0].dtype)

    @property
    def ok(self) -> bool:
        """Whether every comparison is within its tolerance."""
        return all(c.ok for c in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready mapping."""
        return {
            "ok": self.ok,
            "max_rel_error": self.max_rel_error,
            **({} if self.note is None else {"note": self.note}),
            "checks": [{**asdict(c), "ok": c.ok} for c in self.checks],
        }


@torch.no_grad()
def certify(
    relaxed: RelaxedNet, merged: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]
) -> Certificate:
    """Returns how far a merged network is from its relaxed one in eval mode; both stay untouched.

    Tolerances, relative to the largest value of each output: 1e-4 in float32, 1e-10 in float64; for
    the merged tensors against those merged in float64, 2⁻²³ and 1e-10. Each block is fed what
    reaches it in the relaxed network. Outputs may be nested. A network that casts to a fixed type
    is compared in its own type only, and the certificate's note says so.

    Args:
        relaxed: What was merged.
        merged: What ``collapse`` made of it.
        example_inputs: Images ``(N, C, H, W)``, better real ones than noise, or a tuple of all
            inputs. All serve in the network's own type, the first two in float64.

    Raises:
        UsageError: If the networks are neither in float32 nor in float64.
    """
    given = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    like = next(relaxed.parameters(), given[0])
    dtype, inputs = like.dtype, tuple(_cast(x.to(like.device), like.dtype) for x in given)
    if dtype not in TOLERANCES:
        raise UsageError(
            f"a network in {dtype} cannot be certified; merge it in float32 (.float())"
        )
    relaxed = copy.deepcopy(relaxed).eval()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        checks = _compare(relaxed, copy.deepcopy(merged).eval(), inputs, dtype)
        exact, note = collapse(relaxed.double()), None
        if dtype != torch.float64:
            few = tuple(_cast(x[:EXACT_IMAGES], torch.float64) for x in inputs)
            if (why := _not_in_double(relaxed, few)) is None:
                checks += _compare(relaxed, exact, few, torch.float64)
            else:
                note = f"compared in {_name(dtype)} only: the network {why}"
    checks.append(_compare_weights(merged, exact, ROUNDING[dtype]))
    return Certificate(tuple(checks), note)


class _Downcasts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operations that turn values in float64 into values of another floating type."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs one operation."""
        value = func(*args, **(kwargs or {}))
        if torch.float64 in _types(args) and _types(value) - {torch.float64}:
            self.found.append(str(func))
        return value


def _not_in_double(network: nn.Module, inputs: tuple[Tensor, ...]) -> str | None:
    """Returns why a network whose tensors are in float64 does not compute in it, or None."""
    try:
        with _Downcasts() as downcasts:
            network(*(x.clone() for x in inputs))
    except Exception as error:  # user code may fail in any way
        return f"fails in float64 ({cause_of(error)})"
    return f"casts to a fixed type ({downcasts.found[0]})" if downcasts.found else None


def _types(value: Any) -> set[torch.dtype]:
    """Returns the floating types of all tensors in a nested value."""
    return {t.dtype for t in tree_leaves(value) if isinstance(t, Tensor) and t.is_floating_point()}


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _compare(
    relaxed: RelaxedNet, merged: nn.Module, inputs: tuple[Tensor, ...], dtype: torch.dtype
) -> list[Check]:
    """Returns the comparison of the network, then of each changed block on what reaches it."""
    modules = dict(merged.named_modules())
    checks: list[Check] = []

    def compare(block: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(block, RelaxedBlock)
        place = block.candidate.block
        counterpart = modules.get(block_path(place), nn.Identity())
        found = counterpart(*(x.clone() for x in args))
        checks.append(_check(block_key(place), block.candidate.kind, output, found, dtype))

    handles = [b.register_forward_hook(compare) for b in relaxed.blocks.values()]
    expected = relaxed(*(x.clone() for x in inputs))
    for handle in handles:
        handle.remove()
    found = merged(*(x.clone() for x in inputs))
    return [_check("network", "whole", expected, found, dtype), *checks]


def _compare_weights(merged: nn.Module, exact: nn.Module, tolerance: float) -> Check:
    """Returns how far the merged tensors are from the exact ones, each relative to its largest."""
    found, wanted = merged.state_dict(), exact.state_dict()
    if {k: v.shape for k, v in found.items()} != {k: v.shape for k, v in wanted.items()}:
        return Check("weights", "whole", "float64", math.inf, math.inf, tolerance)
    errors = [
        _errors(wanted[k], found[k].to(wanted[k])) for k in wanted if found[k].is_floating_point()
    ]
    absolute = max((e[0] for e in errors), default=0.0)
    relative = max((e[1] for e in errors), default=0.0)
    return Check("weights", "whole", "float64", absolute, relative, tolerance)


def _check(block: str, kind: str, expected: Any, actual: Any, dtype: torch.dtype) -> Check:
    """Returns the comparison of two outputs: the largest errors over all their tensors."""
    (wanted, structure), (found, other) = tree_flatten(expected), tree_flatten(actual)
    errors = [(math.inf, math.inf)]
    if structure == other:
        errors = [_differences(a, b) for a, b in zip(wanted, found, strict=True)]
    absolute, relative = (max((e[i] for e in errors), default=0.0) for i in (0, 1))
    return Check(block, kind, _name(dtype), absolute, relative, TOLERANCES[dtype])


def _differences(expected: Any, actual: Any) -> tuple[float, float]:
    """Returns the largest difference of two parts of an output, absolute and relative."""
    if not (isinstance(expected, Tensor) and isinstance(actual, Tensor)):
        same = type(expected) is type(actual) and expected == actual
        return (0.0, 0.0) if same else (math.inf, math.inf)
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return math.inf, math.inf
    return _errors(expected.double(), actual.double()) if expected.numel() else (0.0, 0.0)


def _errors(expected: Tensor, actual: Tensor) -> tuple[float, float]:
    """Returns the largest difference, absolute and relative to the largest expected magnitude.

    Infinite where either side has values that are no numbers.
    """
    if not (expected.isfinite().all() and actual.isfinite().all()):
        return math.inf, math.inf
    absolute, largest = float((expected - actual).abs().max()), float(expected.abs().max())
    return absolute, absolute / largest if largest else absolute
