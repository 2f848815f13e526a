"""The orthogonal factor of matrices by Newton-Schulz iterations.

An iteration maps X to a X + b (X X^T) X + c (X X^T)^2 X, which moves every singular value of X
towards 1 and keeps the singular vectors. The smaller of X X^T and X^T X is used.

Reference: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024;
Amsel et al., "The Polar Express", arXiv:2505.16932, appendix A.
"""

from collections.abc import Callable, Sequence
from itertools import chain, islice, repeat

import torch
from torch import Tensor

Polynomial = tuple[float, float, float]
Product = Callable[[Tensor, Tensor], Tensor]

_JORDAN: Polynomial = (3.4445, -4.7750, 2.0315)
_POLAR_EXPRESS: tuple[Polynomial, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
_LIMIT: Polynomial = (1.875, -1.25, 0.375)
_SAFETY = 1.01

# From this ratio of the longer to the shorter side on, iterating on the small square matrix alone
# takes fewer operations than on X: with k iterations, 2 r + 4 k - 3 against k (2 r + 1) products
# of the short side cubed; for k = 5, 2 r + 17 against 10 r + 5.
_GRAM_RATIO = 1.5

# G has the squares of the singular values, so float32 loses the small ones there sooner: by up to
# 2e-3 of the result after five iterations (bfloat16 the plain way: 0.05 to 0.5), and much faster
# from then on. X is therefore renewed after this many.
_RESTART = 5


def polynomials(kind: str, iterations: int) -> list[Polynomial]:
    """Return one polynomial (a, b, c) per iteration.

    Args:
        kind: `jordan`, the same one each time, whose singular values end up in about 0.7 to 1.2;
            or `polar_express`, the best ones in sequence, which converge.
        iterations: how many.
    """
    if kind == "jordan":
        return [_JORDAN] * iterations
    # Rounding may leave a singular value a little above 1; the argument is shrunk against that,
    # except in the limit polynomial, which tolerates it.
    safe = [(a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in _POLAR_EXPRESS]
    return list(islice(chain(safe, repeat(_LIMIT)), iterations))


def orthogonalize(
    matrices: Tensor,
    steps: Sequence[Polynomial],
    eps: float = 1e-7,
    product: Product = torch.matmul,
) -> Tensor:
    """Return matrices with the same singular vectors and singular values near 1.

    Args:
        matrices: [..., rows, columns], floating point. In 16 bits the iterations follow the
            definition step by step; wider types may go through X^T X alone, which is the same
            polynomial and faster, but needs their precision.
        steps: the polynomials, from `polynomials`.
        eps: least Frobenius norm to divide by.
        product: matrix product of two tensors, or two stacks of them.

    Returns:
        A new tensor of the same shape and dtype.
    """
    rows, columns = matrices.shape[-2:]
    tall = rows > columns
    wide = matrices.mT if tall else matrices
    ratio = max(rows, columns) / min(rows, columns)
    if ratio >= _GRAM_RATIO and matrices.element_size() >= 4:
        return _by_gram(matrices, tall, steps, eps, product)
    norm = torch.linalg.matrix_norm(wide, keepdim=True).clamp_(min=eps)
    x = wide / norm
    for step in steps:
        x = product(_polynomial(product(x, x.mT), step, product), x)
    return x.mT if tall else x


def _by_gram(
    x: Tensor, tall: bool, steps: Sequence[Polynomial], eps: float, product: Product
) -> Tensor:
    """Iterate on G = X X^T: polynomials in G commute, so X_k = P_k X with P_k in G alone.

    Reference: Zhang, Amsel, Chen, Dao, "Gram Newton-Schulz", 2026.
    """
    for start in range(0, len(steps), _RESTART):
        gram = product(x.mT, x) if tall else product(x, x.mT)
        norm = None
        if start == 0:
            # The squared Frobenius norm is the trace.
            trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
            norm = trace.sqrt_().clamp_(min=eps)[..., None, None]
            gram.div_(norm.square())
        factor = _factor(gram, steps[start : start + _RESTART], product)
        if norm is not None:
            factor.div_(norm)
        x = product(x, factor) if tall else product(factor, x)
    return x


def _factor(gram: Tensor, steps: Sequence[Polynomial], product: Product) -> Tensor:
    """Return P = R_k ... R_1 with R = a I + b G + c G^2, where each step turns G into R G R."""
    total = _polynomial(gram, steps[0], product)
    last = total
    for step in steps[1:]:
        gram = product(product(last, gram), last)
        last = _polynomial(gram, step, product)
        total = product(last, total)
    return total


def _polynomial(gram: Tensor, step: Polynomial, product: Product) -> Tensor:
    """Return a I + b G + c G^2 for [..., n, n]."""
    a, b, c = step
    result = product(gram, gram).mul_(c).add_(gram, alpha=b)
    result.diagonal(dim1=-2, dim2=-1).add_(a)
    return result
