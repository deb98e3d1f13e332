"""The small network that turns an encoding into a density."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from instamap.geometry import compiled

# Points at once: larger temporaries cost page faults on CPUs, two to five times the arithmetic.
POINTS_AT_ONCE = 16384
CHUNKS_KEPT = 16  # whose hidden layers are kept for the gradient


def decoder(inputs: int, width: int, depth: int) -> nn.Sequential:
    """The network of `depth` hidden layers of `width` units with SiLU, then one output.

    `depth` 0 is a linear map. The output's bias is zero at birth.
    """
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers.append(nn.Linear(inputs, width))
        layers.append(nn.SiLU())
        inputs = width
    last = nn.Linear(inputs, 1)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


def in_chunks(network: nn.Sequential, features: Tensor) -> Tensor:
    """The network's outputs "n 1" for features "n F": compiled where there is a kernel for it, else
    a chunk at a time.

    Of many chunks the hidden layers are computed again for the gradient, at a fifth more time: kept
    they would take half a kilobyte a point.
    """
    if compiled.usable():
        from instamap.representations import decoder_numba  # here, since numba may be missing

        if decoder_numba.fits(network, features):
            return decoder_numba.decode(network, features)
    chunks = features.split(POINTS_AT_ONCE)
    if len(chunks) <= CHUNKS_KEPT or not torch.is_grad_enabled():
        outputs = [network(chunk) for chunk in chunks]
    else:
        outputs = [
            checkpoint(network, chunk, use_reentrant=False, preserve_rng_state=False)
            for chunk in chunks
        ]
    return torch.cat(outputs)
