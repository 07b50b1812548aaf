"""Folds, singular values and reduced-rank regression of one kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trt_layermerge.blocks.algebra import Kernel, compose
from trt_layermerge.blocks.factors import (
    Owns,
    decode,
    decompose,
    encode,
    fold,
    spectral_error,
)
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.kinds.lowrank import SCHEMES, split

KERNEL = torch.from_numpy(np.random.default_rng(0).standard_normal((8, 4, 3, 3)))
SIGMA = (1, 0.847308, 0.753962, 0.635324, 0.591186, 0.555984, 0.508521, 0.422085)
ENCODER = SCHEMES[0]


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def product(encoder: Tensor, decoder: Tensor, groups: int) -> Tensor:
    """Returns the dense weights of two convolutions, by the algebra of merging."""
    first = Kernel(encoder, encoder.new_zeros(len(encoder)), groups=groups)
    return compose(first, Kernel(decoder, decoder.new_zeros(len(decoder)))).weight


def spectral_bound(owns: Owns, chunks: int, rank: int) -> float:
    """Returns the published bound of the error: √k · max_i σ_{i, j+1} / ‖W‖₂."""
    sigma = torch.linalg.svdvals(fold(KERNEL, owns, chunks))
    whole = torch.linalg.matrix_norm(fold(KERNEL, owns)[0], 2)
    return float(chunks**0.5 * sigma[:, rank:].amax() / whole) if rank < sigma.shape[1] else 0.0


def test_the_published_numbers_of_a_random_kernel() -> None:
    assert float(torch.linalg.matrix_norm(fold(KERNEL, ENCODER)[0], 2)) == pytest.approx(
        8.9338259, abs=5e-8
    )
    for rank, sigma in enumerate(SIGMA):
        assert spectral_error(KERNEL, ENCODER, 1, rank) == pytest.approx(sigma, abs=5e-7)
        assert spectral_bound(ENCODER, 1, rank) == pytest.approx(sigma, abs=5e-7)
    for chunks, begins in [(2, (0.789092, 0.635178)), (4, (0.615872, 0.526991))]:
        for rank, sigma in enumerate(begins):
            bound = spectral_bound(ENCODER, chunks, rank)
            assert bound / chunks**0.5 == pytest.approx(sigma, abs=5e-7)
    for chunks, parameters in [(1, 44), (2, 52), (4, 68)]:
        for rank in (1, 3):
            parts = decompose(KERNEL, ENCODER, chunks, rank)
            assert sum(part.numel() for part in parts) == rank * parameters


@pytest.mark.parametrize("chunks", [1, 2, 4])
@pytest.mark.parametrize("owns", SCHEMES)
def test_errors_are_those_of_the_kernel_that_remains(owns: Owns, chunks: int) -> None:
    folds = fold(KERNEL, owns, chunks)
    sigma = torch.linalg.svdvals(folds)
    whole = torch.linalg.matrix_norm(fold(KERNEL, owns)[0], 2)
    for rank in range(1, min(folds.shape[1:]) + 1):
        left = KERNEL - product(*decompose(KERNEL, owns, chunks, rank), chunks)
        exact = float(torch.linalg.matrix_norm(fold(left, owns)[0], 2) / whole)
        error = spectral_error(KERNEL, owns, chunks, rank)
        assert error == pytest.approx(exact, abs=1e-7)  # of a root, where the rank is full
        assert error <= spectral_bound(owns, chunks, rank) + 1e-7
        tail = float(sigma[:, rank:].square().sum())
        assert float(left.square().sum()) == pytest.approx(tail, rel=1e-10, abs=1e-20)


@pytest.mark.parametrize("chunks", [1, 2, 4])
@pytest.mark.parametrize("owns", SCHEMES)
def test_full_rank_is_the_convolution(owns: Owns, chunks: int) -> None:
    """With stride 2 and padding 1, which go with the taps of each axis."""
    spec = ConvSpec(4, 8, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1, 9, 8)
    rank = min(fold(KERNEL, owns, chunks).shape[1:])
    found = normal(2, 4, 9, 8)
    wanted = F.conv2d(found, KERNEL, stride=2, padding=1)
    parts = decompose(KERNEL, owns, chunks, rank)
    for conv, weight in zip(split(spec, owns, chunks, chunks * rank), parts, strict=True):
        top, left, bottom, right = conv.padding
        assert (top, left) == (bottom, right) and found.shape[2:] == (conv.height, conv.width)
        found = F.conv2d(found, weight, None, conv.stride, (top, left), 1, conv.groups)
    assert float((found - wanted).abs().max()) <= 1e-12


@pytest.mark.parametrize(("taps", "owns"), [((3, 1), SCHEMES[0]), ((1, 3), SCHEMES[3])])
def test_what_two_convolutions_merge_into_has_the_rank_between_them(
    taps: tuple[int, int], owns: Owns
) -> None:
    """3x3 (6→4) then 1x1 (4→8) is of rank 4 if the encoder has the taps; and the other way."""
    first, last = taps
    merged = product(normal(4, 6, first, first), normal(8, 4, last, last, seed=2), 1)
    assert spectral_error(merged, owns, 1, 4) < 1e-7
    assert spectral_error(merged, owns, 1, 3) > 0.01
    assert spectral_error(merged, SCHEMES[3 - SCHEMES.index(owns)], 1, 4) > 0.01
    assert torch.allclose(product(*decompose(merged, owns, 1, 4), 1), merged, atol=1e-12)


def moments(owns: Owns) -> tuple[Tensor, Tensor, Tensor]:
    """Returns Cov(x), Cov(x, y) and the total variance of y, with correlated inputs and noise."""
    mix = normal(36, 36, seed=3) * torch.logspace(0, -2, 36, dtype=torch.float64)
    x = normal(4000, 36) @ mix.mT
    y = x @ KERNEL.flatten(1).mT + normal(4000, 8, seed=4)
    x, y = x - x.mean(0), y - y.mean(0)
    return x.mT @ x / 4000, x.mT @ y / 4000, y.square().sum() / 4000


def loss(kernel: Tensor, cov: Tensor, cross: Tensor, total: Tensor) -> float:
    """Returns the mean squared error of a kernel on data with these moments."""
    flat = kernel.flatten(1)
    return float(total - 2 * (flat * cross.mT).sum() + ((flat @ cov) * flat).sum())


def regressed(owns: Owns, chunks: int, rank: int) -> Tensor:
    cov, cross, _ = moments(owns)
    best = torch.linalg.solve(cov, cross).mT.reshape(KERNEL.shape)
    encoder = encode(best, cov, owns, chunks, rank, 0.0)
    return product(*decode(encoder, cov, cross, KERNEL, chunks, 1e-12), chunks)


def test_reduced_rank_regression_is_the_best_of_its_rank() -> None:
    """Loss = total − Σ of the largest squared singular values of Cov(y, x)·Cov(x)^(−1/2)."""
    cov, cross, total = moments(ENCODER)
    values, vectors = torch.linalg.eigh(cov)
    whitened = cross.mT @ (vectors * values.rsqrt()) @ vectors.mT
    explained = torch.linalg.svdvals(whitened).square()
    for rank in range(1, 9):
        found = loss(regressed(ENCODER, 1, rank), cov, cross, total)
        assert found == pytest.approx(float(total - explained[:rank].sum()), rel=1e-6)
        plain = product(*decompose(KERNEL, ENCODER, 1, rank), 1)
        assert found <= loss(plain, cov, cross, total)
    assert loss(product(*decompose(KERNEL, ENCODER, 1, 3), 1), cov, cross, total) > 1.3 * loss(
        regressed(ENCODER, 1, 3), cov, cross, total
    )


@pytest.mark.parametrize("chunks", [1, 2, 4])
@pytest.mark.parametrize("owns", SCHEMES)
def test_regression_at_full_rank_is_least_squares_and_at_less_beats_singular_values(
    owns: Owns, chunks: int
) -> None:
    cov, cross, total = moments(owns)
    best = torch.linalg.solve(cov, cross).mT.reshape(KERNEL.shape)
    full = min(fold(KERNEL, owns, chunks).shape[1:])
    assert torch.allclose(regressed(owns, chunks, full), best, rtol=1e-5, atol=1e-6)
    for rank in range(1, full):
        plain = product(*decompose(best, owns, chunks, rank), chunks)
        found = loss(regressed(owns, chunks, rank), cov, cross, total)
        assert found < loss(plain, cov, cross, total)
