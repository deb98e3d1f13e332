"""A coordinate network: a frequency encoding followed by a multilayer perceptron."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.options import RepresentationOptions, option
from instamap.protocols import Representation
from instamap.representations.decoder import decoder, in_chunks
from instamap.scene import Scene


class FrequencyMLP(Representation):
    """ρ(x) = MLP(sin 2^j π t, cos 2^j π t for j < frequencies and each axis), with t = x / half the box's edge in [-1, 1]."""

    @dataclass(frozen=True)
    class Options(RepresentationOptions):
        frequencies: int | None = option(None, "octaves of the encoding; none means up to the Nyquist frequency of the box", low=1, high=20)
        width: int = option(64, "units of a hidden layer", low=1)
        depth: int = option(3, "hidden layers", low=0, high=16)
        learning_rate: float = option(5e-3, "step size of Adam for this part", low=0.0)

    def __init__(self, options: Options, scene: Scene):
        super().__init__(options, scene)
        # sin 2^j π t has a wavelength of box / 2^j; Nyquist is two pixels.
        octaves = options.frequencies or max(1, round(math.log2(scene.box / 2)) + 1)
        self.register_buffer("octaves", math.pi * 2.0 ** torch.arange(octaves), persistent=False)
        self.network = decoder(6 * octaves, options.width, options.depth)

    def forward(self, x: Tensor) -> Tensor:
        t = x / (0.5 * self.scene.box * self.scene.pixel_size)
        phase = (t[..., None, :] * self.octaves[:, None]).flatten(-2)
        encoded = torch.cat([phase.sin(), phase.cos()], -1)
        return in_chunks(self.network, encoded.reshape(-1, encoded.shape[-1])).reshape(x.shape[:-1])
