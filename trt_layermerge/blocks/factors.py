"""One dense convolution as two of low rank: an encoder of few channels, then a decoder.

W ``(f, c, kh, kw)`` is cut along its input channels into k consecutive chunks, and each is folded
to a matrix W_i: rows are the output channels and the taps that the decoder owns, columns the
chunk's input channels and the taps that the encoder owns. Per axis one of the two owns all taps.
With the singular values of a chunk, W_i = U_i Σ_i V_iᵀ, and j of them kept,

    decoder_i = U_i √Σ_i  ``(f, j, taps)``        encoder_i = √Σ_i V_iᵀ  ``(j, c/k, taps)``

(Liebenwein, Maalouf, Gal, Feldman and Rus, NeurIPS 2021). Everything is float64 and pure.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trt_layermerge.core.conv import Pair

Owns = tuple[bool, bool]
"""Whether the encoder owns the taps along rows, and along columns."""


def fold(weight: Tensor, owns: Owns, chunks: int = 1) -> Tensor:
    """Returns the folded chunks of a kernel, ``(k, f · decoder taps, c/k · encoder taps)``.

    Args:
        weight: ``(f, c, kh, kw)``, dense.
        owns: Which taps are the encoder's.
        chunks: k; divides c.
    """
    out, channels, *_ = weight.shape
    (rows, down), (columns, right) = taps(weight, owns)
    split = weight.double().reshape(out, chunks, channels // chunks, down, rows, right, columns)
    return split.permute(1, 0, 3, 5, 2, 4, 6).reshape(chunks, out * down * right, -1)


def taps(weight: Tensor, owns: Owns) -> tuple[Pair, Pair]:
    """Returns the taps of (encoder, decoder) along rows, then along columns."""
    (kh, kw), (tall, wide) = weight.shape[2:], owns
    return (kh, 1) if tall else (1, kh), (kw, 1) if wide else (1, kw)


def decompose(weight: Tensor, owns: Owns, chunks: int, rank: int) -> tuple[Tensor, Tensor]:
    """Returns encoder ``(k·j, c/k, eh, ew)`` and decoder ``(f, k·j, dh, dw)`` by singular values.

    The encoder has k groups, the decoder is dense. At full rank they equal the kernel.

    Args:
        weight: ``(f, c, kh, kw)``, dense.
        owns: Which taps are the encoder's.
        chunks: k; divides c.
        rank: j, of each chunk; at most the smaller side of a fold.
    """
    (rows, down), (columns, right) = taps(weight, owns)
    u, s, v = torch.linalg.svd(fold(weight, owns, chunks), full_matrices=False)
    root = s[:, :rank].sqrt()
    encoder = (root.unsqueeze(2) * v[:, :rank]).reshape(chunks * rank, -1, rows, columns)
    decoder = (u[:, :, :rank] * root.unsqueeze(1)).reshape(chunks, len(weight), down, right, rank)
    return encoder, decoder.permute(1, 0, 4, 2, 3).reshape(len(weight), -1, down, right)


def spectral_error(weight: Tensor, owns: Owns, chunks: int, rank: int) -> float:
    """Returns ‖W − Ŵ‖₂ / ‖W‖₂ of the folds side by side, exact.

    What is left out is [U_1 Σ_1, U_2 Σ_2, …] of the tails, times rows that are orthonormal, so its
    norm is that of an f × f matrix: ‖W − Ŵ‖₂² = λ_max(Σ_i U_i Σ_i² U_iᵀ).

    Args:
        weight: ``(f, c, kh, kw)``, dense.
        owns: Which taps are the encoder's.
        chunks: k; divides c.
        rank: j, of each chunk.
    """
    u, s, _ = torch.linalg.svd(fold(weight, owns, chunks), full_matrices=False)
    whole, tail = ((u * s.unsqueeze(1))[:, :, n:] for n in (0, rank))

    def norm(parts: Tensor) -> float:
        gram = (parts @ parts.mT).sum(0)
        return float(torch.linalg.eigvalsh(gram)[-1].clamp_min(0).sqrt())

    return norm(tail) / norm(whole)


def encode(kernel: Tensor, cov: Tensor, owns: Owns, chunks: int, rank: int, flat: float) -> Tensor:
    """Returns the encoder ``(k·j, c/k, eh, ew)`` that keeps most of a kernel's values on data.

    With L the Cholesky factor of what the encoder sees, Cov(x) = L·Lᵀ, the values W·x = (W·L)·L⁻¹·x
    lose least, in the sum of squares, if the first j right singular vectors V of W·L are kept:
    encoder = V_jᵀ·L⁻¹ (reduced-rank regression, where W is the regression of wanted values on x).
    Each chunk is whitened by itself, averaged over the decoder's taps.

    Args:
        kernel: ``(f, c, kh, kw)``, dense.
        cov: Of patches, ``(D, D)`` with D = c·kh·kw.
        owns: Which taps are the encoder's.
        chunks: k; divides c.
        rank: j, of each chunk.
        flat: How many times their mean is added to the variances; 0 for the least squared error,
            much for the singular vectors of the weights alone.
    """
    channels = kernel.shape[1]
    (rows, down), (columns, right) = taps(kernel, owns)
    axes = chunks, channels // chunks, down, rows, right, columns
    seen = torch.einsum("kadrtqkbdstp->karqbsp", damped(cov, flat).reshape(axes + axes))
    size = channels // chunks * rows * columns
    lower = torch.linalg.cholesky(seen.reshape(chunks, size, size) / (down * right))
    _, _, v = torch.linalg.svd(fold(kernel, owns, chunks) @ lower, full_matrices=False)
    found: Tensor = torch.linalg.solve_triangular(lower, v[:, :rank], upper=False, left=False)
    return found.reshape(chunks * rank, -1, rows, columns)


def decode(
    encoder: Tensor, cov: Tensor, cross: Tensor, kernel: Tensor, groups: int, ridge: float
) -> tuple[Tensor, Tensor]:
    """Returns encoder and decoder ``(f, k·j, dh, dw)``, which is fitted to wanted values.

    Channels between them are scaled so that both have weights of one size.

    Args:
        encoder: ``(k·j, c/k, eh, ew)``.
        cov: Of patches of the dense convolution, ``(D, D)``.
        cross: Of patches and wanted values, ``(D, f)``.
        kernel: The dense convolution's weights; only their shape counts.
        groups: k.
        ridge: Pull towards zero, relative to the mean variance of the decoder's inputs.
    """
    out, channels, kh, kw = kernel.shape
    inner, _, rows, columns = encoder.shape
    down, right, part = kh // rows, kw // columns, channels // groups
    through = cov.new_zeros(inner, down, right, channels, down, rows, right, columns)
    for number, weight in enumerate(encoder):
        first = number // (inner // groups) * part
        for a in range(down):
            for b in range(right):
                through[number, a, b, first : first + part, a, :, b] = weight
    matrix = through.reshape(-1, len(cov))  # from a patch to what the decoder sees of it
    found = torch.linalg.solve(damped(matrix @ cov @ matrix.mT, ridge), matrix @ cross)
    decoder = found.mT.reshape(out, inner, down, right)
    sizes = decoder.square().sum((0, 2, 3)), encoder.square().sum((1, 2, 3))
    scale = (sizes[0] / sizes[1]).clamp_min(1e-30) ** 0.25
    return encoder * scale.reshape(-1, 1, 1, 1), decoder / scale.reshape(-1, 1, 1)


def damped(cov: Tensor, share: float) -> Tensor:
    """Returns a covariance with ``share`` times its mean variance added to each variance."""
    found = cov.clone()
    found.diagonal().add_(share * (float(cov.diagonal().mean()) or 1.0))
    return found
