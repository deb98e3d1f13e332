"""The four parts and their laws; a new part subclasses one of these, and `instamap.testing` checks
it.

Every part is made as `Part(options, scene)` and is a torch module: what it learns are Parameters,
what it merely keeps are buffers. `options` is an instance of the class's own `Options`.

What a part can do beyond the laws of its kind is a capability: a small abstract class, which the
part also subclasses and for which others ask by `isinstance` or `issubclass`, never by its name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

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

    Options: Any = RepresentationOptions

    def __init__(self, options: Any, scene: Scene) -> None:
        super().__init__()
        self.options = options
        self.scene = scene

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The field "*n" at points `x` "*n 3" (x, y, z in Å, particle frame)."""


class Deformation(nn.Module, ABC):
    """Where the density of one particle is looked up in the common one: ρ_b(x) = ρ(forward(x,
    z_b)).

    Laws: the identity at birth; rows are independent; acts in the particle frame.
    """

    Options: Any = DeformationOptions

    def __init__(self, options: Any, scene: Scene) -> None:
        super().__init__()
        self.options = options
        self.scene = scene

    @abstractmethod
    def latent(self, views: Views, images: Tensor | None = None) -> Tensor:
        """Coordinates z "B L" of the particles in `views`.

        images "B D D": what was observed, where it is given; an encoder needs it.
        """

    @abstractmethod
    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Points "B P 3" in the common density (Å), for points `x` "B P 3" of particles at `z` "B
        L".
        """

    def bind(self, z: Tensor) -> Callable[[Tensor], Tensor]:
        """The function x -> forward(x, z).

        Where much depends on z alone, override it to compute that once for all points.
        """
        return lambda x: self(x, z)


class SharedDensity(Deformation):
    """A deformation that moves no point: all particles share one density."""


class ContinuousDeformation(Deformation):
    """A deformation that bends one density into every conformation.

    Its options have `latent`, the number of coordinates of a particle, or "auto".
    """


class DiscreteDeformation(Deformation):
    """A deformation whose conformations have maps of their own, made of the particles near each.

    Its options have `latent`, the number of coordinates of a particle, or "auto".
    """


class RigidCorrection(Deformation):
    """A rotation and a translation of each particle or body: a correction of its pose.

    z "B 6M" holds (ω, t) of each of M bodies, a rotation vector in radians and a translation in Å.
    Its options have `angle` (degrees) and `shift` (Å), the usual size of a correction.
    """


class PerParticleTable(ABC):
    """The coordinates of particles are learned: a row each in `table` "n L", or by a network."""

    table: nn.Parameter

    @classmethod
    @abstractmethod
    def uses_table(cls, options: Any) -> bool:
        """Whether coordinates come from the table; if not, a network reads them off the image."""


class HasBodies(ABC):
    """Parts of the particle, each with a mask of its own in the scene, that move apart."""

    @classmethod
    @abstractmethod
    def body_files(cls, options: Any) -> list[str]:
        """The files of the bodies' masks; none where the particle moves as a whole."""


class ForwardOperator(nn.Module, ABC):
    """A projection of a density along the beam: an unfiltered image in density times Å.

    Contrast transfer follows in `model`. Laws: linear in the density; A(ρ∘g⁻¹; R) = A(ρ; R g) for
    rotations g; a Gaussian at particle-frame point x gives the closed-form Gaussian at
    (R x)[:2] - origin; pixels times pixel area sum to ∫ρ; rows are independent; random only in
    training and only through `generator`.

    padding: how many times larger the frame is in which the CTF is applied. jitter: factor of its
    random displacements, if it has any, which the stage of a fit sets.
    """

    Options: Any = Options
    padding: float = 1.0
    jitter: float = 1.0

    def __init__(self, options: Any, scene: Scene) -> None:
        super().__init__()
        self.options = options
        self.scene = scene

    @abstractmethod
    def forward(
        self, density: DensityFn, views: Views, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Projections "B D D" [y, x] of `density` at `views`."""


class SharedDensityOperator(ForwardOperator):
    """A forward operator for which all rows have one density."""


class CurvedOperator(SharedDensityOperator):
    """A forward operator that sees the Ewald sphere: what lies above the focus and below it differs
    in images, so that no convolution of the map tells what all of them say.
    """

    @abstractmethod
    def in_phase_and_quadrature(
        self, density: DensityFn, views: Views, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images "B D D" that the CTF transfers, and those that its quadrature does (see
        `fourier.ctf.quadrature_ctf`), at views that have optics.
        """


class Likelihood(nn.Module, ABC):
    """The probability of an image given its prediction.

    Laws: E[-log p(sample)] is the entropy; the declared invariances hold. proper: whether log p is
    that of a distribution over images, from which `sample` draws; flat priors have no samples.
    """

    Options: Any = Options
    proper: bool = True

    def __init__(self, options: Any, scene: Scene) -> None:
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


class PremultipliedLikelihood(Likelihood):
    """A likelihood that can also judge images that were multiplied by their CTF."""

    @abstractmethod
    def log_prob_premultiplied(
        self, projection: Tensor, predicted: Tensor, observed: Tensor, views: Views
    ) -> Tensor:
        """log p "B" of CTF-multiplied `observed`, up to a constant of the data.

        projection "B D D": PV. predicted "B D D": C PV.
        """


class GaussianLikelihood(PremultipliedLikelihood):
    """Gaussian noise, independent between Fourier components: normal equations describe it."""

    @abstractmethod
    def noise_variance(self, views: Views) -> Tensor:
        """Variance "B D//2+1" of the noise in an unfiltered image's pixels, per Fourier shell."""


class RefinesNoise(ABC):
    """A likelihood that can have the noise measured on what a first map leaves of the images."""

    @classmethod
    @abstractmethod
    def refines_noise(cls, options: Any) -> bool:
        """Whether the spectrum that was measured in the images' corners is to be measured again."""
