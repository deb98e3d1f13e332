"""The small network that turns an encoding into a density."""

import torch
from torch import Tensor, nn

# points at once: larger temporaries cost page faults on CPUs, two to five times the arithmetic
CHUNK = 16384


def decoder(inputs: int, width: int, depth: int) -> nn.Sequential:
    """`depth` hidden layers of `width` units with SiLU, then one output; `depth` 0 is a linear map.
    The output is zero at birth.
    """
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(inputs if i == 0 else width, width), nn.SiLU()]
    last = nn.Linear(width if depth else inputs, 1)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


def in_chunks(network: nn.Module, features: Tensor) -> Tensor:
    """The network's outputs "n 1" for features "n F", a chunk at a time."""
    return torch.cat([network(part) for part in features.split(CHUNK)])
