"""Small scenes, views, points and densities with closed-form projections, drawn from a seed."""

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from instamap.geometry import grids, rotations
from instamap.scene import Scene, Views

GAUSSIANS = 4  # of a density
GAUSSIAN_SIGMA = 1.4  # pixels
GAUSSIANS_REACH = 2.5  # pixels from the origin


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
        """A new generator of the case's seed."""
        return torch.Generator().manual_seed(self.seed)

    def scene(self, *, mask: Tensor | None = None) -> Scene:
        """A scene of more particles than a batch has.

        They are in two optics groups whose noise differs and falls with frequency.
        """
        shell = torch.arange(self.box // 2 + 1, dtype=torch.float64)
        strong = 1.0 + 1.0 / (1 + shell)
        weak = 0.3 + 0.5 / (1 + shell)
        return Scene(
            self.box,
            self.pixel_size,
            count=self.rows + 3,
            mask=mask,
            noise_variance=torch.stack([strong, weak]),
        )


def cases(boxes: tuple[int, ...]) -> st.SearchStrategy[Case]:
    """Cases with a box out of `boxes`, which should hold odd and even ones."""
    return st.builds(
        Case,
        seed=st.integers(0, 2**31 - 1),
        box=st.sampled_from(boxes),
        pixel_size=st.floats(0.7, 4.0, allow_nan=False),
        rows=st.integers(2, 4),
    )


def views(
    scene: Scene,
    rows: int,
    generator: torch.Generator,
    *,
    shift: float = 0.0,
) -> Views:
    """Different particles of the scene at random poses, shifted by up to ±`shift` pixels along x
    and y.
    """
    uniform = torch.rand(
        rows,
        2,
        generator=generator,
        dtype=torch.float64,
    )
    origin = (uniform * 2 - 1) * shift * scene.pixel_size
    index = torch.randperm(scene.count, generator=generator)[:rows]
    group = torch.randint(
        0,
        2,
        (rows,),
        generator=generator,
    )
    rotation = rotations.random(rows, generator=generator)
    return Views(rotation, origin, index, group)


def in_box(
    scene: Scene,
    shape: tuple[int, ...],
    generator: torch.Generator,
) -> Tensor:
    """Points "*shape 3" in Å, uniform in the cube of the box."""
    uniform = torch.rand(
        *shape,
        3,
        generator=generator,
        dtype=torch.float64,
    )
    return (uniform - 0.5) * scene.box * scene.pixel_size


def in_ball(
    scene: Scene,
    shape: tuple[int, ...],
    generator: torch.Generator,
    radius: float | None = None,
) -> Tensor:
    """Points "*shape 3" in Å, uniform in the ball of `radius` (default: the scene's)."""
    normal = torch.randn(
        *shape,
        3,
        generator=generator,
        dtype=torch.float64,
    )
    direction = torch.nn.functional.normalize(normal, dim=-1)
    uniform = torch.rand(
        *shape,
        1,
        generator=generator,
        dtype=torch.float64,
    )
    length = uniform ** (1 / 3)
    reach = scene.radius if radius is None else radius
    return direction * length * reach


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
        centres = self.centres.to(x).expand(
            *x.shape[:-2],
            -1,
            3,
        )
        distance = torch.cdist(
            x,
            centres,
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        exponent = -0.5 * distance.square() / self.sigma**2
        norm = (2 * math.pi * self.sigma**2) ** 1.5
        return torch.exp(exponent) @ self.weights.to(x) / norm

    @property
    def integral(self) -> float:
        """∫ρ over all space."""
        return float(self.weights.sum())

    def rotated(self, g: Tensor) -> "Gaussians":
        """ρ∘g⁻¹: the density turned by `g` "3 3"."""
        return Gaussians(
            self.centres @ g.mT,
            self.weights,
            self.sigma,
        )

    def projection(self, views: Views, scene: Scene) -> Tensor:
        """Images "B D D": Σ_m w_m exp(-|u - c|² / 2σ²) / (2πσ²) at pixel u.

        c = (R c_m)[:2] - origin.
        """
        pixels = grids.pixel_centres(
            scene.box,
            scene.pixel_size,
            dtype=torch.float64,
        )
        u = pixels[None, :, :, None]
        turned = self.centres @ views.rotation.mT
        landed = turned[..., :2] - views.origin[:, None]
        square = (u - landed[:, None, None]).square().sum(-1)
        exponent = -0.5 * square / self.sigma**2
        weighted = torch.exp(exponent) * self.weights
        norm = 2 * math.pi * self.sigma**2
        return weighted.sum(-1) / norm


def gaussians(
    scene: Scene,
    generator: torch.Generator,
    *,
    rows: int | None = None,
) -> Gaussians:
    """Four Gaussians near the middle, without symmetry; `rows` sets of them where particles differ.

    σ = 1.4 pixels is wide enough that sums over pixels are integrals (aliasing e^(-2π²σ²) = 2e-17)
    and that little lies beyond Nyquist (6e-5 of the DC term). Centres are at most 2.5 pixels out:
    in a box of 22 the nearest face of the sphere is 5.7σ away (1e-7).
    """
    shape = (GAUSSIANS,) if rows is None else (rows, GAUSSIANS)
    reach = GAUSSIANS_REACH * scene.pixel_size
    centres = in_ball(
        scene,
        shape,
        generator,
        reach,
    )
    uniform = torch.rand(
        GAUSSIANS,
        generator=generator,
        dtype=torch.float64,
    )
    return Gaussians(
        centres,
        0.5 + uniform,
        GAUSSIAN_SIGMA * scene.pixel_size,
    )
