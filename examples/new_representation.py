"""A representation of one's own, in one file: a network of sines (Sitzmann et al., 2020).

    python examples/new_representation.py [FOLDER]

It is fitted to the same particles as the usual one, and both are told by held-out images that no
fit has seen. It prints, with other numbers:

    sine-network: 15.2 nats per held-out image, resolution 9.13 Å
    hash-grid: 15.1 nats per held-out image, resolution 9.49 Å

The laws of representations are one class in a test file (docs/writing-a-plugin.md), where a package
with such a part is made too.
"""

import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import instamap
from instamap import Representation, RepresentationOptions, Scene, option
from instamap.simulate.particle_set import demo


class SineNetwork(Representation):
    """ρ(x) = w · sin(W sin(Ω x + φ) + b): waves of random directions, and waves of those."""

    @dataclass(frozen=True)
    class Options(RepresentationOptions):
        width: int = option(48, "waves of each layer", low=1)
        finest: float = option(12.0, "shortest wavelength of the first layer", unit="Å", low=1.0)

    def __init__(self, options: Options, scene: Scene) -> None:
        super().__init__(options, scene)
        directions = nn.functional.normalize(torch.randn(options.width, 3), dim=1)
        frequencies = torch.rand(options.width, 1) / options.finest
        self.waves = nn.Parameter(2 * math.pi * frequencies * directions)
        self.phases = nn.Parameter(math.pi * torch.rand(options.width))
        self.mixed = nn.Linear(options.width, options.width)
        self.value = nn.Linear(options.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.sin(x @ self.waves.T + self.phases)
        second = torch.sin(self.mixed(first))
        return self.value(second).squeeze(-1)


SINE_NETWORK = instamap.Component(
    "representation", "sine-network", f"{__name__}:SineNetwork", "a network of sines"
)


def main(folder: Path) -> None:
    instamap.register(SINE_NETWORK)  # in this process; a package announces it for good
    star = demo(folder / "particles", box=40, pixel_size=4.0, snr=0.02)
    chosen = [("sine-network", {"width": 48, "finest": 12.0}), ("hash-grid", {})]
    for name, options in chosen:
        run = instamap.reconstruct(star, representation=(name, options), seed=1)
        gain = max(evaluation.held_out for evaluation in run.evaluations["half1"])
        print(f"{name}: {gain:.1f} nats per held-out image, {run.verdict}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp()))
