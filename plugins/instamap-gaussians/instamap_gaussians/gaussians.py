"""A density as a sum of isotropic Gaussians that find their own places."""

import math
from dataclasses import dataclass

import torch
from instamap import Representation, RepresentationOptions, Scene, option
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

REACH = 3.0  # in σ: further out a Gaussian is zero
BLOCK = 1024  # points at a time: the memory of a fit does not grow with their number


class Gaussians(Representation):
    """ρ(x) = Σ_m a_m g(|x - c_m| / σ_m) with g(t) = exp(-t²/2) less its value at t = 3, and zero
    from there on.

    Learned: amplitudes a, centres c (in units of the scene's radius), and widths σ of at least a
    quarter of a pixel.
    """

    @dataclass(frozen=True)
    class Options(RepresentationOptions):
        count: int = option(1000, "Gaussians", low=1)
        width: float | None = option(
            None,
            "σ at birth; none means half of the distance between neighbours",
            unit="Å",
            low=1e-3,
        )
        extent: float = option(
            0.6,
            "radius of the ball where they are born, relative to the scene's",
            low=0.01,
            high=1.0,
        )
        seed: int = option(0, "of the places where they are born", low=0)
        learning_rate: float = option(3e-2, "step size of Adam for this part", low=0.0)

    def __init__(self, options: Options, scene: Scene):
        super().__init__(options, scene)
        g = torch.Generator().manual_seed(options.seed)
        direction = nn.functional.normalize(torch.randn(options.count, 3, generator=g), dim=-1)
        distance = torch.rand(options.count, 1, generator=g) ** (1 / 3)
        self.centres = nn.Parameter(options.extent * direction * distance)
        neighbours = options.extent * scene.radius * (4 / 3 * math.pi / options.count) ** (1 / 3)
        width = options.width or 0.5 * neighbours
        self.log_widths = nn.Parameter(torch.full((options.count,), math.log(width)))
        self.amplitudes = nn.Parameter(torch.zeros(options.count))

    def forward(self, x: Tensor) -> Tensor:
        points = x.reshape(-1, 3)
        # Neighbours make blocks that few Gaussians reach.
        order = _octree(points.detach() / self.scene.radius).argsort()
        centres = self.centres * self.scene.radius
        widths = (self.log_widths.exp().square() + (0.25 * self.scene.pixel_size) ** 2).sqrt()
        blocks = [points.new_zeros(0)]
        for block in points[order].split(BLOCK):
            if len(block) == 0:
                continue
            # Evaluated again in the backward pass, so that no pair is kept for it.
            density = checkpoint(
                _sum,
                block,
                centres,
                widths,
                self.amplitudes,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            blocks.append(density)
        in_order = torch.cat(blocks)
        return in_order[order.argsort()].reshape(x.shape[:-1])


def _octree(x: Tensor) -> Tensor:
    """Number "n" of the cell of 1/16 of [-1, 1] that each point "n 3" falls in, counted so that
    runs of cells are compact (Morton).
    """
    cell = ((x + 1) * 8).clamp(0, 15).long()
    number = torch.zeros_like(cell[:, 0])
    for bit in range(4):
        for axis in range(3):
            digit = (cell[:, axis] >> bit) & 1
            number += digit << (3 * bit + axis)
    return number


def _sum(x: Tensor, centres: Tensor, widths: Tensor, amplitudes: Tensor) -> Tensor:
    """Density "n" at neighbouring points "n 3", from the pairs of a point and a Gaussian that
    reaches it.
    """
    with torch.no_grad():
        outside_box = torch.maximum(x.amin(0) - centres, centres - x.amax(0))
        gap = outside_box.clamp(min=0).norm(dim=1)
        near = (gap < REACH * widths).nonzero()[:, 0]
        reached = torch.cdist(x, centres[near]) < REACH * widths[near]
        i, j = reached.nonzero().unbind(1)
        j = near[j]
    apart = x.index_select(0, i) - centres.index_select(0, j)
    square = apart.square().sum(-1) / widths.index_select(0, j).square()
    heights = (torch.exp(-0.5 * square) - math.exp(-0.5 * REACH**2)).clamp(min=0)
    values = heights * amplitudes.index_select(0, j)
    return torch.zeros_like(x[:, 0]).index_add(0, i, values)
