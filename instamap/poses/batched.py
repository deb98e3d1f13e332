"""A matrix and a vector for each of n images: products and systems of equations."""

import torch
from torch import Tensor


def product(matrix: Tensor, vector: Tensor) -> Tensor:
    """The vectors M v "n a" of matrices M "n a b" and vectors v "n b"."""
    column = vector[..., None]
    result = matrix @ column
    return result[..., 0]


def solve(matrix: Tensor, vector: Tensor) -> Tensor:
    """The vectors x "n a" with M x = v, of matrices M "n a a" and vectors v "n a"."""
    column = vector[..., None]
    result = torch.linalg.solve(matrix, column)
    return result[..., 0]
