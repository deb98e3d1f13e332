"""Small scenes, views, points and densities with closed-form projections, drawn from a seed."""

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from instamap.geometry import grids, rotations
from instamap.scene import Scene, Views


@dataclass(frozen=True)
class Case:
    """One draw for a law: a seed for everything random, the box, the pixel size in Å, and the rows
    of a batch.
    """

    seed: int
    box: int
    pixel_size: float
    rows: int

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def scene(self, *, mask: Tensor | None = None) -> Scene:
        """A scene of more particles than a batch has, in two optics groups whose noise differs and
        falls with frequency.
        """
        shell = torch.arange(self.box // 2 + 1, dtype=torch.float64)
        spectrum = torch.stack([1.0 + 1.0 / (1 + shell), 0.3 + 0.5 / (1 + shell)])
        return Scene(
            self.box, self.pixel_size, count=self.rows + 3, mask=mask, noise_variance=spectrum
        )


def cases(boxes: tuple[int, ...]) -> st.SearchStrategy[Case]:
    """Cases with a box out of `boxes`, which should hold odd and even ones."""
    seeds = st.integers(0, 2**31 - 1)
    sizes = st.floats(0.7, 4.0, allow_nan=False)
    return st.builds(Case, seeds, st.sampled_from(boxes), sizes, st.integers(2, 4))


def views(scene: Scene, rows: int, generator: torch.Generator, *, shift: float = 0.0) -> Views:
    """`rows` different particles of the scene at random poses, shifted by up to ±`shift` pixels
    along x and y.
    """
    origin = (
        (torch.rand(rows, 2, generator=generator, dtype=torch.float64) * 2 - 1)
        * shift
        * scene.pixel_size
    )
    index = torch.randperm(scene.count, generator=generator)[:rows]
    group = torch.randint(0, 2, (rows,), generator=generator)
    return Views(rotations.random(rows, generator=generator), origin, index, group)


def in_box(scene: Scene, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Points "*shape 3" in Å, uniform in the cube of the box."""
    return (
        (torch.rand(*shape, 3, generator=generator, dtype=torch.float64) - 0.5)
        * scene.box
        * scene.pixel_size
    )


def in_ball(
    scene: Scene, shape: tuple[int, ...], generator: torch.Generator, radius: float | None = None
) -> Tensor:
    """Points "*shape 3" in Å, uniform in the ball of `radius` (default: the scene's)."""
    direction = torch.nn.functional.normalize(
        torch.randn(*shape, 3, generator=generator, dtype=torch.float64), dim=-1
    )
    length = torch.rand(*shape, 1, generator=generator, dtype=torch.float64) ** (1 / 3)
    return direction * length * (scene.radius if radius is None else radius)


@dataclass(frozen=True)
class Gaussians:
    """ρ(x) = Σ_m w_m exp(-|x - c_m|² / 2σ²) / (2πσ²)^(3/2): a density whose image is known exactly.

    centres: "M 3" in Å, or "B M 3" where each particle has its own. weights: "M", the integral of
    each. sigma: Å.
    """

    centres: Tensor
    weights: Tensor
    sigma: float

    def __call__(self, x: Tensor) -> Tensor:
        centres = self.centres.to(x).expand(*x.shape[:-2], -1, 3)
        square = torch.cdist(x, centres, compute_mode="donot_use_mm_for_euclid_dist").square()
        return (
            torch.exp(-0.5 * square / self.sigma**2)
            @ self.weights.to(x)
            / (2 * math.pi * self.sigma**2) ** 1.5
        )

    @property
    def integral(self) -> float:
        return float(self.weights.sum())

    def rotated(self, g: Tensor) -> "Gaussians":
        """ρ∘g⁻¹: the density turned by `g` "3 3"."""
        return Gaussians(self.centres @ g.mT, self.weights, self.sigma)

    def projection(self, views: Views, scene: Scene) -> Tensor:
        """Images "B D D": Σ_m w_m exp(-|u - c|² / 2σ²) / (2πσ²) at pixel u, with c = (R c_m)[:2] -
        origin.
        """
        u = grids.pixel_centres(scene.box, scene.pixel_size, dtype=torch.float64)[None, :, :, None]
        landed = (self.centres @ views.rotation.mT)[..., :2] - views.origin[:, None]
        square = (u - landed[:, None, None]).square().sum(-1)
        return (torch.exp(-0.5 * square / self.sigma**2) * self.weights).sum(-1) / (
            2 * math.pi * self.sigma**2
        )


def gaussians(scene: Scene, generator: torch.Generator, *, rows: int | None = None) -> Gaussians:
    """Four Gaussians near the middle, without symmetry; `rows` sets of them where particles differ.

    σ = 1.4 pixels is wide enough that sums over pixels are integrals (aliasing e^(-2π²σ²) = 2e-17)
    and that little lies beyond Nyquist (6e-5 of the DC term). Centres are at most 2.5 pixels out:
    in a box of 22 the nearest face of the sphere is 5.7σ away (1e-7).
    """
    shape = (4,) if rows is None else (rows, 4)
    centres = in_ball(scene, shape, generator, 2.5 * scene.pixel_size)
    weights = 0.5 + torch.rand(4, generator=generator, dtype=torch.float64)
    return Gaussians(centres, weights, 1.4 * scene.pixel_size)
