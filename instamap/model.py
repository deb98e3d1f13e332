"""The model: chosen parts and a scene, composed; what does not fit is refused, with both sides
shown.
"""

import dataclasses
import math
import threading
from typing import Any

import torch
from torch import Tensor, nn

from instamap.errors import CompositionError
from instamap.fourier import ctf
from instamap.geometry import grids
from instamap.geometry.sampling import sample_volume
from instamap.parts import (
    CurvedOperator,
    Deformation,
    DensityFn,
    ForwardOperator,
    Likelihood,
    PremultipliedLikelihood,
    Representation,
    SharedDensity,
    SharedDensityOperator,
)
from instamap.plugin.choice import DEFAULTS, PART_KINDS, Choice, Choices, choose, load_class
from instamap.plugin.registry import Registry
from instamap.scene import Batch, Optics, Scene, Views

# Points at once, which bounds memory; a field splits them further where that is faster.
POINTS_AT_ONCE = 1 << 19
FORWARD_FOR_MANY_DENSITIES = "ray"
# Initial values come from torch's global generator: models are made one at a time.
_GLOBAL_GENERATOR = threading.Lock()


def default_parts(deformation: str = DEFAULTS["deformation"]) -> dict[str, Choice]:
    """The parts a reconstruction uses where nothing else is chosen, beside this deformation."""
    names = {**DEFAULTS, "deformation": deformation, "forward": usual_forward(deformation)}
    return {kind: choose(kind, name) for kind, name in names.items()}


def usual_forward(deformation: str, registry: Registry | None = None) -> str:
    """The forward operator that goes with a deformation where none is chosen.

    Rays where particles differ, for slices share one density.
    """
    if issubclass(load_class("deformation", deformation, registry), SharedDensity):
        return DEFAULTS["forward"]
    return FORWARD_FOR_MANY_DENSITIES


def compose(
    parts: Choices, scene: Scene, seed: int | None = None, registry: Registry | None = None
) -> "Model":
    """The model of all four parts.

    seed: decides the initial values, and torch's global generator is left as it was; threads may
    then call it at once. None draws them from that generator.
    Raises CompositionError where two parts, or a part and the data, do not fit.
    """
    if seed is None:
        return _compose(parts, scene, registry)
    with _GLOBAL_GENERATOR, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _compose(parts, scene, registry)


def _compose(parts: Choices, scene: Scene, registry: Registry | None) -> "Model":
    check_compatible(parts, scene.premultiplied, registry)
    made = [make_part(kind, parts[kind], scene, registry) for kind in PART_KINDS]
    return Model(scene, *made)


def make_part(kind: str, choice: Choice, scene: Scene, registry: Registry | None = None) -> Any:
    """One part alone, for the scene."""
    return load_class(kind, choice.name, registry)(choice.options, scene)


def part_classes(parts: Choices, registry: Registry | None = None) -> dict[str, Any]:
    """The classes of chosen parts by kind."""
    return {kind: load_class(kind, parts[kind].name, registry) for kind in PART_KINDS}


def check_compatible(
    parts: Choices, premultiplied: bool = False, registry: Registry | None = None
) -> None:
    """Raises CompositionError, with both sides, where parts do not fit each other or the images.

    Nothing is built or read for it.
    """
    classes = part_classes(parts, registry)
    name = {kind: f"{kind} '{parts[kind].name}'" for kind in PART_KINDS}
    differ = not issubclass(classes["deformation"], SharedDensity)
    if differ and issubclass(classes["forward"], SharedDensityOperator):
        raise CompositionError(
            f"{name['deformation']} gives every particle its own density, {name['forward']} needs"
            " one that all share; choose --deform identity or --forward ray"
        )
    if premultiplied and issubclass(classes["forward"], CurvedOperator):
        raise CompositionError(
            "the images are premultiplied by their CTF (rlnCtfDataAreCtfPremultiplied), which hides"
            f" what {name['forward']} needs of them; choose --forward slice"
        )
    if premultiplied and not issubclass(classes["likelihood"], PremultipliedLikelihood):
        raise CompositionError(
            "the images are premultiplied by their CTF (rlnCtfDataAreCtfPremultiplied),"
            f" {name['likelihood']} needs images that are not; choose --likelihood gaussian"
        )


class Floor(nn.Module):
    """A lower bound of the density: softplus(f) - offset, zero at f = 0 and birth.

    The offset, the solvent's level below the mean, is learned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(math.log(2.0)))

    def forward(self, field: Tensor) -> Tensor:
        """The bounded field "*n"."""
        return nn.functional.softplus(field) - self.offset


class Window(nn.Module):
    """Where density may be: the user's mask (trilinear), or the largest sphere with a soft edge.

    The edge is two pixels wide.
    """

    mask: Tensor | None

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.scene = scene
        self.register_buffer("mask", scene.mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The factor "*n" in 0..1 at points "*n 3" (Å)."""
        scene = self.scene
        if self.mask is None:
            edge = 2 * scene.pixel_size
            outward = ((x.norm(dim=-1) - scene.radius) / edge + 1).clamp(0, 1)
            return 0.5 + 0.5 * torch.cos(math.pi * outward)
        return sample_volume(self.mask.to(x.dtype), x, scene.pixel_size)


class Model(nn.Module):
    """density(x) = scale · window(x) · bound(representation(deformation(x, z))), imaged and judged.

    Attributes: scene, representation, deformation, forward_operator, likelihood; `bound` is the
    floor or the identity; `focus` is the scene's.
    """

    focus: Tensor | None

    def __init__(
        self,
        scene: Scene,
        representation: Representation,
        deformation: Deformation,
        forward_operator: ForwardOperator,
        likelihood: Likelihood,
    ) -> None:
        super().__init__()
        self.scene = scene
        self.representation = representation
        self.deformation = deformation
        self.forward_operator = forward_operator
        self.likelihood = likelihood
        self.bound = Floor() if representation.options.floor == "learned" else nn.Identity()
        self.window = Window(scene)
        self.register_buffer("focus", scene.focus, persistent=False)

    def field(self, z: Tensor | None = None) -> DensityFn:
        """The density "B P" at "B P 3" (Å) of particles with coordinates z "B L".

        z None: the common map.
        """
        bind = _nowhere_else if z is None else self.bind(z)

        def values(x: Tensor) -> Tensor:
            window = self.window(x)
            bounded = self.bound(self.representation(bind(x)))
            return self.scene.density_scale * window * bounded

        def in_chunks(x: Tensor) -> Tensor:
            size = max(1, POINTS_AT_ONCE // max(1, len(x)))
            return torch.cat([values(chunk) for chunk in x.split(size, dim=1)], 1)

        return in_chunks

    def bind(self, z: Tensor) -> DensityFn:
        """The function of points "B P 3" to where particles with coordinates z "B L" have them in
        the common density: x + f(x) u(x; z), f being the scene's focus, or 1.
        """
        deformed = self.deformation.bind(z)
        focus = self.focus
        if focus is None:
            return deformed

        def inside(x: Tensor) -> Tensor:
            factor = sample_volume(focus.to(x.dtype), x, self.scene.pixel_size)
            return x + factor[..., None] * (deformed(x) - x)

        return inside

    def density(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """The density "B P" at "B P 3" (Å), of particles at z "B L" or of the common map (None)."""
        return self.field(z)(x)

    def project(
        self,
        views: Views,
        generator: torch.Generator | None = None,
        *,
        images: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The projections PV "B D D" and, with contrast transfer, the predicted images C PV.

        images "B D D": what was observed, for deformations that infer their coordinates from it.
        """
        z = self.deformation.latent(views, images)
        operator = self.forward_operator
        if isinstance(operator, CurvedOperator) and views.optics is not None:
            return self._project_curved(operator, self.field(z), views, views.optics, generator)
        projection = operator(self.field(z), views, generator=generator)
        projection = views.with_contrast(projection)
        if views.optics is None:
            return projection, projection
        pixel_size = self.scene.pixel_size
        predicted = ctf.apply(projection, views.optics, pixel_size, padding=operator.padding)
        return projection, predicted

    def _project_curved(
        self,
        operator: CurvedOperator,
        density: DensityFn,
        views: Views,
        optics: Optics,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """What `project` returns, on the Ewald sphere."""
        in_phase, quadrature = operator.in_phase_and_quadrature(density, views, generator=generator)
        in_phase = views.with_contrast(in_phase)
        quadrature = views.with_contrast(quadrature)
        pixel_size = self.scene.pixel_size
        padding = operator.padding
        predicted = ctf.apply(in_phase, optics, pixel_size, padding=padding)
        rest = ctf.apply_quadrature(quadrature, optics, pixel_size, padding=padding)
        return in_phase, predicted + rest

    def log_prob(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """log p "B" of each image, in nats (premultiplied images: up to a constant of the data)."""
        projection, predicted = self.project(batch.views, generator, images=batch.images)
        return self._log_prob(projection, predicted, batch)

    def gain(self, batch: Batch) -> Tensor:
        """log p "B" of each image beyond that of an empty map, in nats."""
        empty = torch.zeros_like(batch.images)
        return self.log_prob(batch) - self._log_prob(empty, empty, batch)

    def _log_prob(self, projection: Tensor, predicted: Tensor, batch: Batch) -> Tensor:
        likelihood = self.likelihood
        if not self.scene.premultiplied:
            return likelihood.log_prob(predicted, batch.images, batch.views)
        assert isinstance(likelihood, PremultipliedLikelihood)  # or else it was not composed
        if batch.views.optics is not None:  # images times their CTF keep their odd aberrations
            padding = self.forward_operator.padding
            pixel_size = self.scene.pixel_size
            projection = ctf.modulate(projection, batch.views.optics, pixel_size, padding=padding)
        return likelihood.log_prob_premultiplied(projection, predicted, batch.images, batch.views)

    @torch.no_grad()
    def raster(self, z: Tensor | None = None) -> Tensor:
        """The map "D D D" [z, y, x] at the voxel centres, of a particle at z "1 L" or the common
        one.
        """
        scene = self.scene
        parameter = next(self.parameters())
        x = grids.voxel_centres(scene.box, scene.pixel_size, dtype=parameter.dtype)
        x = x.to(parameter.device)
        inside = self.window(x) > 0  # elsewhere the density is zero
        values = self.density(x[inside][None], z)[0]
        return torch.zeros_like(x[..., 0]).masked_scatter(inside, values)

    def parameter_groups(self, sampled: bool = False) -> list[dict[str, Any]]:
        """The parameters of each part that learns, with its kind ("part") and learning rate.

        sampled: whether each step sees a part of the images, in whose noise a representation may
        need smaller steps. Raises CompositionError for a part that learns and has no learning rate.
        """
        parts = (self.representation, self.deformation, self.forward_operator, self.likelihood)
        groups = []
        for kind, part in zip(PART_KINDS, parts, strict=True):
            own = list(part.parameters())
            if kind == "representation":
                own += list(self.bound.parameters())
            if own:
                rate = _learning_rate(part)
                if sampled and isinstance(part, Representation):
                    rate *= part.options.sampled
                groups.append({"params": own, "lr": rate, "part": kind})
        return groups


def _nowhere_else(x: Tensor) -> Tensor:
    """The points of the common map are its own."""
    return x


def _learning_rate(part: Any) -> float:
    """The option learning_rate of a part."""
    options = dataclasses.asdict(part.options)
    if "learning_rate" not in options:
        raise CompositionError(
            f"{type(part).__name__} learns but has no option learning_rate; give its Options that"
            " field"
        )
    return options["learning_rate"]
