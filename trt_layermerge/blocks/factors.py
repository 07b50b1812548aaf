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
    u, s, v = torch.linalg.svd(fold(weight, owns, chunks), full_matrices=False)
    root = s[:, :rank].sqrt()
    return shaped(root.unsqueeze(2) * v[:, :rank], u[:, :, :rank] * root.unsqueeze(1), weight, owns)


def shaped(encoder: Tensor, decoder: Tensor, weight: Tensor, owns: Owns) -> tuple[Tensor, Tensor]:
    """Returns factors of the folds of a kernel as the weights of two convolutions.

    Args:
        encoder: ``(k, j, c/k · encoder taps)``.
        decoder: ``(k, f · decoder taps, j)``.
        weight: The kernel; only its shape counts.
        owns: Which taps are the encoder's.
    """
    chunks, rank, _ = encoder.shape
    (rows, down), (columns, right) = taps(weight, owns)
    first = encoder.reshape(chunks * rank, -1, rows, columns)
    split = decoder.reshape(chunks, len(weight), down, right, rank)
    return first, split.permute(1, 0, 4, 2, 3).reshape(len(weight), -1, down, right)


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


def regress(
    cov: Tensor, cross: Tensor, like: Tensor, owns: Owns, chunks: int, rank: int, ridge: float
) -> tuple[Tensor, Tensor]:
    """Returns the encoder and decoder that lose least of wanted outputs, not of the weights.

    Reduced-rank regression: with B the full regression of y on patches x, and L the Cholesky
    factor of what the encoder sees, Cov(x) = L·Lᵀ, the best map of rank j is the projection of the
    fitted values B·x to their first j principal directions, which keeps the first j right singular
    vectors of B·L,

        encoder = V_jᵀ·L⁻¹        decoder = the regression of y on encoder · x

    Exact where the encoder has all taps and one group. Otherwise each chunk is whitened by itself,
    averaged over the decoder's taps, and only the decoder is the best for its encoder.

    Args:
        cov: Of patches, ``(D, D)`` with D = c·kh·kw.
        cross: Of patches and wanted outputs, ``(D, f)``.
        like: A kernel ``(f, c, kh, kw)``; only its shape counts.
        owns: Which taps are the encoder's.
        chunks: k; divides c.
        rank: j, of each chunk.
        ridge: Pull towards zero, relative to the mean variance of a regression's inputs.
    """
    channels = like.shape[1]
    (rows, down), (columns, right) = taps(like, owns)
    damped = _damped(cov, ridge)
    kernel = torch.linalg.solve(damped, cross).mT.reshape(like.shape)
    axes = chunks, channels // chunks, down, rows, right, columns
    seen = torch.einsum("kadrtqkbdstp->karqbsp", damped.reshape(axes + axes)) / (down * right)
    size = channels // chunks * rows * columns
    lower = torch.linalg.cholesky(seen.reshape(chunks, size, size))
    _, _, v = torch.linalg.svd(fold(kernel, owns, chunks) @ lower, full_matrices=False)
    encoder = torch.linalg.solve_triangular(lower, v[:, :rank], upper=False, left=False)
    through = cov.new_zeros(chunks, rank, down, right, *axes)
    split = encoder.reshape(chunks, rank, channels // chunks, rows, columns)
    for i in range(chunks):
        for a in range(down):
            for b in range(right):
                through[i, :, a, b, i, :, a, :, b, :] = split[i]
    matrix = through.reshape(-1, len(cov))  # from a patch to what the decoder sees of it
    inner = _damped(matrix @ cov @ matrix.mT, ridge)
    decoder = torch.linalg.solve(inner, matrix @ cross).mT
    first = encoder.reshape(chunks * rank, -1, rows, columns)
    last = decoder.reshape(len(like), chunks * rank, down, right)
    scale = (last.square().sum((0, 2, 3)) / first.square().sum((1, 2, 3))).clamp_min(1e-30) ** 0.25
    return first * scale.reshape(-1, 1, 1, 1), last / scale.reshape(-1, 1, 1)


def _damped(cov: Tensor, ridge: float) -> Tensor:
    """Returns a covariance with ``ridge`` times its mean variance added to each."""
    size = float(cov.diagonal().mean())
    return cov + ridge * (size or 1.0) * torch.eye(len(cov), dtype=cov.dtype, device=cov.device)
