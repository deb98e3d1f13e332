"""The four parts and their laws. A new part subclasses one of these; `instamap.testing` checks the
laws.

Every part is made as `Part(options, scene)` and is a torch module: what it learns are Parameters,
what it merely keeps are buffers. `options` is an instance of the class's own `Options`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from instamap.plugin.options import DeformationOptions, Options, RepresentationOptions
from instamap.scene import Scene, Views

DensityFn = Callable[[Tensor], Tensor]
"""Density at points "B P 3" (x, y, z in Å, particle frame): "B P". Row b belongs to the b-th view.
"""


class Representation(nn.Module, ABC):
    """A scalar field of order one over the box.

    Laws: any leading shape, also an empty one; points do not see each other; gradient reaches every
    parameter; finite everywhere; state_dict round trip; float32 and float64 agree.
    """

    Options = RepresentationOptions

    def __init__(self, options: Options, scene: Scene):
        super().__init__()
        self.options = options
        self.scene = scene

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The field "*n" at points `x` "*n 3" (x, y, z in Å, particle frame)."""


class Deformation(nn.Module, ABC):
    """Where in the common density to look up the density of one particle: ρ_b(x) = ρ(forward(x,
    z_b)).

    Laws: the identity at birth; rows are independent; acts in the particle frame. per_particle:
    whether particles differ (then no density is shared by all of them). states: how engine states
    makes maps of states that many particles pass through, if it can: "bend" one density into all,
    or "weigh" particles for a density of each.
    """

    Options = DeformationOptions
    per_particle = True
    states: str | None = None

    def __init__(self, options: Options, scene: Scene):
        super().__init__()
        self.options = options
        self.scene = scene

    @abstractmethod
    def latent(self, views: Views, images: Tensor | None = None) -> Tensor:
        """Coordinates z "B L" of the particles in `views`, and in their `images` "B D D" where they
        are given: an encoder needs them.
        """

    @abstractmethod
    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Points "B P 3" in the common density, for points `x` "B P 3" of particles with
        coordinates `z` "B L" (Å).
        """

    def at(self, z: Tensor) -> Callable[[Tensor], Tensor]:
        """x -> forward(x, z). Where much depends on z alone, override it to compute that once for
        all the points that are asked for.
        """
        return lambda x: self(x, z)


class ForwardOperator(nn.Module, ABC):
    """Projects a density along the beam: an unfiltered image in density times Å (contrast transfer
    follows in `compose`).

    Laws: linear in the density; A(ρ∘g⁻¹; R) = A(ρ; R g) for rotations g; a Gaussian at
    particle-frame point x gives the closed-form Gaussian at (R x)[:2] - origin; pixels times pixel
    area sum to ∫ρ; rows are independent; random only in training and only through `generator`.
    padding: how many times larger the frame is in which the CTF is applied. deforms: whether rows
    may have different densities. jitter: factor of its random displacements, if it has any, which
    the stage of a fit sets.
    """

    Options = Options
    padding = 1.0
    deforms = True
    jitter = 1.0

    def __init__(self, options: Options, scene: Scene):
        super().__init__()
        self.options = options
        self.scene = scene

    @abstractmethod
    def forward(
        self, density: DensityFn, views: Views, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Projections "B D D" [y, x] of `density` at `views`."""


class Likelihood(nn.Module, ABC):
    """The probability of an image given its prediction.

    Laws: E[-log p(sample)] is the entropy; the declared invariances hold. premultiplied: whether
    images that were multiplied by their CTF can be judged (then `log_prob_premultiplied` is there).
    quadratic: whether log p is that of Gaussian noise, independent between Fourier components (then
    `noise_variance` is there, and normal equations describe it). proper: whether log p is that of a
    distribution over images from which `sample` draws; False with flat priors, which have no
    samples. refines: whether the noise spectrum of the scene is to be measured again, on what a
    first map leaves of the images.
    """

    Options = Options
    premultiplied = False
    quadratic = False
    proper = True
    refines = False

    def __init__(self, options: Options, scene: Scene):
        super().__init__()
        self.options = options
        self.scene = scene

    @abstractmethod
    def log_prob(self, predicted: Tensor, observed: Tensor, views: Views) -> Tensor:
        """log p(observed | predicted) "B" in nats per image, for images "B D D"."""

    @abstractmethod
    def sample(
        self, predicted: Tensor, views: Views, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """An observed image "B D D" drawn for each prediction."""

    def log_prob_premultiplied(
        self, projection: Tensor, predicted: Tensor, observed: Tensor, views: Views
    ) -> Tensor:
        """log p "B" of CTF-multiplied `observed` up to a constant of the data, from the projection
        PV and the prediction C PV.
        """
        raise NotImplementedError

    def noise_variance(self, views: Views) -> Tensor:
        """Variance "B D//2+1" of the noise in an unfiltered image's pixels, per Fourier shell."""
        raise NotImplementedError
