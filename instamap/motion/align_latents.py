"""How the coordinates of two independent fits relate: by particles that both have placed."""

import torch
from torch import Tensor


def related(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor, float | None]:
    """turn "L L" and offset "L" with two ≈ one @ turnᵀ + offset for coordinates "m L" of the same
    particles, and their correlation (R).

    A single coordinate is a rank, so that only its direction may differ. The correlation is None
    where nothing moves.
    """
    size = one.shape[1]
    nothing = torch.eye(size), torch.zeros(size), None
    if not one.std() > 0 or not two.std() > 0:
        return nothing
    if size == 1:
        r = float(torch.corrcoef(torch.stack([one[:, 0], two[:, 0]]))[0, 1])
        return torch.eye(1) * (1.0 if r >= 0 else -1.0), torch.zeros(1), abs(r)
    known = torch.cat([one, torch.ones(len(one), 1, dtype=one.dtype)], 1)
    solved = torch.linalg.lstsq(known, two).solution
    rest = (two - known @ solved).square().sum() / (two - two.mean(0)).square().sum()
    return (
        solved[:-1].T.float().contiguous(),
        solved[-1].float(),
        float((1 - rest).clamp(min=0).sqrt()),
    )
