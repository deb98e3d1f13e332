"""Euler angles and rotation vectors give their rotation back."""

import math

import pytest
import torch

from instamap.geometry import rotations


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("tilt", [None, 0.0, math.pi])
def test_euler_angles_give_their_rotation_back(tilt: float | None) -> None:
    """Also where two of the three axes coincide."""
    angles = normal(50, 3) * 2
    if tilt is not None:
        angles[:, 1] = tilt
    turn = rotations.from_euler(*angles.unbind(-1))
    found = rotations.from_euler(*rotations.to_euler(turn).unbind(-1))
    assert torch.allclose(found, turn, atol=1e-7)


def test_rotation_vectors_are_found_from_their_rotations() -> None:
    """Down to angles of 1e-9."""
    vector = normal(50, 3, seed=1) * torch.logspace(-9, 0, 50)[:, None]
    found = rotations.to_rotvec(rotations.from_rotvec(vector))
    assert torch.allclose(found, vector, atol=1e-12, rtol=1e-6)
