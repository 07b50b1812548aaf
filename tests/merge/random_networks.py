"""Random small networks, planned at random: each is refused or certified, or the check fails."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tests.nets import randomise
from tests.plans import disjoint, random_plan
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.inputs import batch
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.finetune.norms import reestimate
from trt_layermerge.kinds import enumerate_candidates
from trt_layermerge.merge import certify, collapse, relax
from trt_layermerge.tracing import trace

ACTIVATIONS = (nn.ReLU, nn.SiLU, nn.Hardswish, nn.Identity, lambda: nn.ReLU(inplace=True))


def conv(
    rng: random.Random, c_in: int, c_out: int, stride: int = 1, same: bool = False
) -> nn.Module:
    """Returns a convolution of random geometry, and what may follow it; ``same`` keeps the size."""
    kernel = rng.choice((1, 3, 3, 5)), rng.choice((1, 3, 3))
    dilation = rng.choice((1, 1, 2))
    exact = tuple(dilation * (k - 1) // 2 for k in kernel)
    padding = exact if same or rng.random() < 0.8 else (1, 1)
    groups = rng.choice([g for g in (1, 1, 2, c_in) if c_in % g == 0 and c_out % g == 0])
    parts: list[nn.Module] = [
        nn.Conv2d(c_in, c_out, kernel, stride, padding, dilation, groups, rng.random() < 0.5)
    ]
    if rng.random() < 0.7:
        parts.append(nn.BatchNorm2d(c_out))
    if rng.random() < 0.6:
        parts.append(rng.choice(ACTIVATIONS)())
    return nn.Sequential(*parts)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.expand(pooled))


class Joined(nn.Module):
    """Concatenates what it gets with one or two branches of it."""

    def __init__(self, rng: random.Random, channels: int) -> None:
        super().__init__()
        count = rng.choice((1, 1, 2))
        self.paths = nn.ModuleList(conv(rng, channels, channels, same=True) for _ in range(count))
        self.join = conv(rng, (count + 1) * channels, channels, same=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(torch.cat([x, *(path(x) for path in self.paths)], 1))


class Twice(nn.Module):
    """Runs one convolution twice, with something between."""

    def __init__(self, rng: random.Random, channels: int) -> None:
        super().__init__()
        self.shared = conv(rng, channels, channels, same=True)
        self.between = conv(rng, channels, channels, same=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self.between(self.shared(x)))


class Writes(nn.Module):
    """Changes its input in place, behind what tracing cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(0.5) if float(x.abs().sum()) >= 0 else x


class Residual(nn.Module):
    """Branches and shortcuts from one value, added or concatenated."""

    def __init__(self, rng: random.Random, channels: int, depth: int) -> None:
        super().__init__()
        stride, c_out = rng.choice((1, 1, 2)), channels if rng.random() < 0.6 else 6
        plain = stride == 1 and c_out == channels
        inner: list[nn.Module] = [conv(rng, channels, c_out, stride, True)]
        for _ in range(rng.randrange(3)):
            inner.append(part(rng, c_out, depth - 1, same=True))
        paths = [nn.Sequential(*inner)]
        for _ in range(rng.choice((1, 1, 2))):
            if plain and rng.random() < 0.6:
                paths.append(rng.choice((nn.Identity(), nn.BatchNorm2d(channels))))
            else:
                size = rng.choice((1, 1, 3))
                path = nn.Conv2d(channels, c_out, size, stride, size // 2)
                paths.append(nn.Sequential(path, nn.BatchNorm2d(c_out)))
        self.paths = nn.ModuleList(paths)
        self.act = rng.choice(ACTIVATIONS)()
        self.joined = conv(rng, 2 * c_out, c_out, same=True) if rng.random() < 0.15 else None
        self.channels = c_out

    def forward(self, x: Tensor) -> Tensor:
        first, *others = [path(x) for path in self.paths]
        total = others[0]
        for other in others[1:]:
            total = total + other
        if self.joined is not None:
            return self.act(self.joined(torch.cat([first, total], 1)))
        return self.act(first + total)


class Same(nn.Module):
    """A residual of one shape around parts that may themselves be residuals."""

    def __init__(self, rng: random.Random, channels: int, depth: int) -> None:
        super().__init__()
        count = rng.randint(1, 3)
        self.parts = nn.Sequential(*(part(rng, channels, depth - 1, True) for _ in range(count)))
        self.again = rng.random() < 0.3

    def forward(self, x: Tensor) -> Tensor:
        first = self.parts[0](x)
        y = self.parts[1:](first) + x
        return y + first if self.again else y  # the second addition overlaps the first in part


def part(rng: random.Random, channels: int, depth: int, same: bool) -> nn.Module:
    """Returns something that keeps the channels, and with ``same`` the size."""
    draw = rng.random()
    if draw < 0.25 and depth > 0:
        return Same(rng, channels, depth)
    if draw < 0.32:
        return Gate(channels)
    if draw < 0.37:
        return Writes()
    if draw < 0.42:
        return nn.GroupNorm(2, channels)
    if draw < 0.47:
        return Joined(rng, channels)
    if draw < 0.52:
        return Twice(rng, channels)
    return conv(rng, channels, channels, same=same)


class Network(nn.Module):
    """A stem, some parts, perhaps a second input, and an output that may be nested."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = random.Random(seed)
        channels = 4
        parts: list[nn.Module] = [conv(rng, 3, channels, rng.choice((1, 2)))]
        for _ in range(rng.randint(1, 4)):
            if rng.random() < 0.5:
                block = Residual(rng, channels, 2)
                channels = block.channels
                parts.append(block)
            else:
                parts.append(part(rng, channels, 2, same=False))
        cut = rng.randint(1, len(parts))
        self.stem, self.parts = nn.Sequential(*parts[:cut]), nn.Sequential(*parts[cut:])
        self.head, self.nested = nn.Linear(channels, 3), rng.random() < 0.2
        # Another image that goes through the same stem, or numbers beside the classifier's.
        self.more = rng.choice(("none", "none", "none", "image", "numbers"))
        self.numbers = nn.Linear(5, channels) if self.more == "numbers" else None

    def forward(self, x: Tensor, more: Tensor | None = None) -> object:
        y = self.stem(x)
        if more is not None and self.numbers is None:
            y = y + self.stem(more)
        y = self.parts(y)
        pooled = y.mean((2, 3))
        if more is not None and self.numbers is not None:
            pooled = pooled + self.numbers(more)
        logits = self.head(pooled)
        return {"logits": logits, "map": [y]} if self.nested else logits

    def example(self, seed: int) -> tuple[Tensor, ...]:
        """Returns two rows of every input, of an odd or an even size."""
        generator = torch.Generator().manual_seed(seed)
        size = 9 + seed % 7
        shapes = {"image": (2, 3, size, size + seed % 3), "numbers": (2, 5)}
        wanted = ["image", *([] if self.more == "none" else [self.more])]
        return tuple(torch.randn(shapes[name], generator=generator) for name in wanted)


def plans(graph: LayerGraph, seed: int) -> Iterator[MergePlan]:
    """Yields the untouched plan, and random ones.

    Two change as much as a random order allows, one is a single candidate, and one is of those
    alone that leave out or replace pieces which are not understood.
    """
    rng = random.Random(seed)
    changing = [c for c in enumerate_candidates(graph) if not c.original]
    yield MergePlan.of(graph, [])
    yield random_plan(graph, seed)
    if changing:
        yield disjoint(graph, changing, rng)
        yield MergePlan.of(graph, [rng.choice(changing)])
    pieces = [c for c in changing if graph.branch_at(c.block) is not None]
    if pieces:
        yield disjoint(graph, pieces, rng)


@dataclass(frozen=True)
class Outcome:
    """What became of one network.

    Attributes:
        kind: ``none`` where the drawn one cannot run, ``refused``, ``certified``, or ``wrong``.
        plans: How many plans were checked.
        left_out: How many pieces that are not understood were left out in them.
        fitted: How many were replaced by a new convolution.
        wrong: What is wrong with it.
    """

    kind: str
    plans: int = 0
    left_out: int = 0
    fitted: int = 0
    wrong: str = ""


@torch.no_grad()
def check(seed: int) -> Outcome:
    """Returns what becomes of a random network and of plans for it."""
    model = Network(seed)
    randomise(model, seed)
    inputs = model.example(seed)
    try:
        model(*(x.clone() for x in inputs))
    except RuntimeError:
        return Outcome("none")  # the map became too small
    try:
        graph = trace(model, inputs)
    except UnsupportedModelError:
        return Outcome("refused")
    chosen = list(plans(graph, seed))
    wrong = [
        f"plan {n}: {fault}"
        for n, p in enumerate(chosen)
        if (fault := _fault(model, graph, p, inputs))
    ]
    pieces = [c for p in chosen for c in p.changed if graph.branch_at(c.block) is not None]
    fitted = sum(bool(c.convs) for c in pieces)
    kind = "wrong" if wrong else "certified"
    return Outcome(kind, len(chosen), len(pieces) - fitted, fitted, "; ".join(wrong))


def _fault(model: nn.Module, graph: LayerGraph, plan: MergePlan, inputs: Sequence[Tensor]) -> str:
    """Returns what is wrong with a plan of a network, or nothing."""
    given = tuple(x.clone() for x in inputs)
    relaxed = relax(model, graph, plan)
    if plan.changed:
        reestimate(relaxed, [batch(given)])
    else:
        pairs = zip(tree_leaves(relaxed(*given)), tree_leaves(model(*given)), strict=True)
        if not all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in pairs):
            return "the untouched plan computes something else"
    bad = [c for c in certify(relaxed, collapse(relaxed), given).checks if not c.ok]
    return "; ".join(f"{c.block} off by {c.max_rel_error:.1e}" for c in bad)
