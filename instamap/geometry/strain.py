"""How a map of space to itself stretches it: derivatives by differences, and their strain."""

from collections.abc import Callable

import torch
from torch import Tensor


def jacobian(
    moved: Callable[[Tensor], Tensor],
    x: Tensor,
    there: Tensor,
    step: float,
) -> Tensor:
    """∂x'_i/∂x_j "* 3 3" at points x "* 3" that are moved to `there` = moved(x): differences over
    `step` (Å), which err by half of it.
    """
    columns = []
    for axis in torch.eye(3).to(x):
        beside = moved(x + step * axis)
        columns.append((beside - there) / step)
    return torch.stack(columns, -1)


def green_lagrange(jacobian: Tensor) -> Tensor:
    """E = ½ (JᵀJ - 1) "* 3 3" of Jacobians J: the relative change of lengths, to first order, and
    zero for every rigid motion.
    """
    identity = torch.eye(3).to(jacobian)
    metric = jacobian.mT @ jacobian
    return 0.5 * (metric - identity)
