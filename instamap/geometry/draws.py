"""Random numbers that are drawn where the generator lives.

So they do not depend on the device that they are used on.
"""

import torch
from torch import Tensor


def uniform(
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Numbers "*shape" in 0..1."""
    home = _home(generator)
    numbers = torch.rand(shape, generator=generator, dtype=dtype, device=home)
    return numbers.to(device)


def normal(
    shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Numbers "*shape" of mean 0 and variance 1."""
    numbers = torch.randn(shape, generator=generator, device=_home(generator))
    return numbers.to(device)


def whole(
    below: int,
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    device: torch.device,
) -> Tensor:
    """Whole numbers "*shape" from 0 to below - 1."""
    numbers = torch.randint(below, shape, generator=generator, device=_home(generator))
    return numbers.to(device)


def permutation(count: int, generator: torch.Generator | None) -> list[int]:
    """The numbers from 0 to count - 1 in random order."""
    order: list[int] = torch.randperm(count, generator=generator, device=_home(generator)).tolist()
    return order


def _home(generator: torch.Generator | None) -> torch.device:
    """The device of a generator; without one, the CPU, whose global one is used."""
    return torch.device("cpu") if generator is None else generator.device
