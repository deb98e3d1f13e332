"""Linear equations whose matrix is known by what it does: the method of conjugate gradients."""

from collections.abc import Callable

from torch import Tensor


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    start: Tensor,
    residual: Tensor,
    steps: int,
) -> Tensor:
    """x "*" after some steps towards the solution of A x = b, from x = `start` "*".

    apply: x -> A x, symmetric and not negative. residual "*": b - A start. Few steps regularise.
    Source: Hestenes and Stiefel, J. Res. Natl. Bur. Stand. 49, 409 (1952).
    """
    x = start
    direction = residual.clone()
    square = residual.square().sum()
    for _ in range(steps):
        if not square > 0:
            break  # solved, or nothing is known
        curved = apply(direction)
        length = square / (direction * curved).sum()
        x = x + length * direction
        residual = residual - length * curved
        before = square
        square = residual.square().sum()
        direction = residual + square / before * direction
    return x
