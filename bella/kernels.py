"""Distances between particles, and the RBF kernel of them, in float64.

Two particles may lie 1e-4 apart with a third at distance 100: in float32 a Gram matrix would get their distance wrong
by orders of magnitude. So everything here is float64, taken over the parameters block by block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

_PAIRWISE_UP_TO = 16  # particles; more of them use a Gram matrix, whose cost grows with n * d instead of n^2 * d


def column_blocks(stacked: Sequence[Tensor]) -> Iterator[tuple[int, slice]]:
    """(index of the tensor, columns) of blocks that together cover stacked tensors (n, ...), small enough to convert."""
    for index, tensor in enumerate(stacked):
        n, d = tensor.shape[0], tensor[0].numel()
        width = max(1, (2**23 if tensor.is_cuda else 2**18) // n)
        for start in range(0, d, width):
            yield index, slice(start, min(start + width, d))


def squared_distances(stacked: Sequence[Tensor]) -> Tensor:
    """Squared Euclidean distances between particles over all stacked tensors (n, ...): (n, n), float64."""
    stacked = [tensor.detach() for tensor in stacked]
    n = stacked[0].shape[0]
    total = torch.zeros(n, n, dtype=torch.float64, device=stacked[0].device)
    for index, columns in column_blocks(stacked):
        block = stacked[index].flatten(1)[:, columns].double()
        if n <= _PAIRWISE_UP_TO:
            rows, others = torch.triu_indices(n, n, 1, device=block.device)
            total[rows, others] += torch.nn.functional.pdist(block).square()
        else:
            block = block - block.mean(0)
            total += block @ block.T
    return total + total.T if n <= _PAIRWISE_UP_TO else distances_from_gram(total)


def product_gram(factors: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Inner products <B_i A_i, B_j A_j> summed over layers, (n, n), float64, without forming any product.

    tr((B_i A_i)^T B_j A_j) = <B_i^T B_j, A_i A_j^T>, r x r matrices: O(n^2 r^2 (d_in + d_out)).

    Args:
        factors: pairs A (n, r, d_in), B (n, d_out, r).
    """
    grams = []
    for A, B in factors:
        A, B = A.detach().double(), B.detach().double()
        outer = torch.einsum("iox,joy->ijxy", B, B)
        grams.append((outer * torch.einsum("ixd,jyd->ijxy", A, A)).sum((-1, -2)))
    return torch.stack(grams).sum(0)


def distances_from_gram(gram: Tensor) -> Tensor:
    """Squared distances from inner products: g_ii + g_jj - 2 g_ij, zero on the diagonal, never negative."""
    norms = gram.diagonal()
    squared = (norms[:, None] + norms[None, :] - 2 * gram).clamp_min(0)
    return squared.fill_diagonal_(0)


def median_bandwidth(squared: Tensor) -> float:
    """h = median^2 / log n of the n(n-1)/2 distances between different particles (Liu & Wang 2016, section 5).

    The median of an even count is the mean of the middle two, as NumPy has it. 0 for one particle.
    """
    n = squared.shape[0]
    if n == 1:
        return 0.0
    rows, others = torch.triu_indices(n, n, 1, device=squared.device)
    distances = squared[rows, others].sqrt().sort().values
    count = distances.numel()
    median = float((distances[(count - 1) // 2] + distances[count // 2]) / 2)
    return median**2 / math.log(n)


def rbf(squared: Tensor, bandwidth: float) -> Tensor:
    """k_ij = exp(-d_ij^2 / h), (n, n). A bandwidth of 0 (identical particles) gives k = 1."""
    if bandwidth == 0.0:
        return torch.ones_like(squared)
    return torch.exp(-squared / bandwidth)
