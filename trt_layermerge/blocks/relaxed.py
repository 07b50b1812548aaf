"""What every block's replacement offers: to be trained, repaired, annealed and merged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Protocol, TypeVar

from torch import Tensor, nn

from trt_layermerge.blocks.algebra import Kernel
from trt_layermerge.blocks.layers import ConvNorm, kernel_of
from trt_layermerge.core.candidate import Candidate

if TYPE_CHECKING:
    from trt_layermerge.merge.leastsq import Moments

M = TypeVar("M", bound=nn.Module)


class Gather(Protocol):
    """Returns moments of what reaches a convolution and what it should put out, on real data."""

    def __call__(
        self, module: nn.Module, conv: ConvNorm, own: bool = False, key: Hashable = None
    ) -> Moments:
        """Runs a module in a block's place on what reaches the block.

        Args:
            module: Maps what the block maps, to values of the same shape.
            conv: A convolution inside it, the last one unless ``own``.
            own: Whether what it puts out itself is wanted, and not what makes the module's output
                the block's target.
            key: Names the module where other candidates of the block run an equal one: its moments
                are gathered once for all of them.
        """


class RelaxedBlock(nn.Module, ABC):
    """Maps a block's input ``(N, C_in, H, W)`` to its pre-activation output ``(N, C_out, H', W')``.

    Attributes:
        candidate: What it realises.
        started: Whether its weights come from the original network, so that it means something
            before it is fitted or trained.
        fits: Names of the repairs that are the block's own (``fit``), the usual one first.
    """

    started: bool = True
    fits: tuple[str, ...] = ()

    def __init__(self, candidate: Candidate) -> None:
        super().__init__()
        self.candidate = candidate

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, C_in, H, W)`` to ``(N, C_out, H', W')``."""

    @property
    @abstractmethod
    def last(self) -> ConvNorm | None:
        """The convolution to whose output only fixed values are added; None if there is none.

        It is what least squares fit.
        """

    @abstractmethod
    def collapsed(self) -> nn.Module:
        """Returns the merged module, equal in eval mode: float64 algebra, cast once.

        It runs ``candidate.convs`` in order, and is an ``nn.Identity`` where there are none.
        """

    def kernel(self) -> Kernel | None:
        """Returns the one convolution that several parts become; None where nothing is merged."""
        return None

    def prior(self) -> Tensor:
        """Returns the weights of ``last`` that ``ls-identity`` pulls to: where the block starts.

        Shaped as the convolution's own, its normalisation folded in, float64.
        """
        assert self.last is not None
        return kernel_of(self.last).weight

    @property
    def unknowns(self) -> int:
        """Weights of one output channel of the largest convolution that its repairs solve for."""
        return 0 if self.last is None else self.last.conv.weight[0].numel()

    def fit(self, method: str, gather: Gather) -> None:
        """Installs what one of ``fits`` comes to, in place, from the state that it started with.

        Args:
            method: Which one.
            gather: Runs probes on the data, as often as it is called.
        """
        raise NotImplementedError(method)

    def hold(self, make: Callable[[str], M]) -> list[M]:
        """Puts modules where the block removes activations that training may fade; returns them.

        Args:
            make: Returns a module by the name of the activation whose place it takes.
        """
        return []
