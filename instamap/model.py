"""Chosen parts and a scene become a model; what does not fit is refused, with both sides shown."""

import math
import threading
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from instamap.errors import CompositionError
from instamap.fourier import ctf
from instamap.geometry import grids
from instamap.parts import DensityFn
from instamap.plugin.options import Options, from_dict, parse, to_dict
from instamap.plugin.registry import Registry, default
from instamap.scene import Batch, Scene, Views

DEFAULTS = {
    "representation": "hash-grid",
    "deformation": "identity",
    "forward": "slice",
    "likelihood": "gaussian",
}
CHUNK = (
    1 << 19
)  # points at once, which bounds memory; a field splits them further where that is faster
_BIRTH = threading.Lock()  # of models: their initial values come from torch's global generator


@dataclass(frozen=True)
class Choice:
    """One part, by name, with its options."""

    name: str
    options: Options


def choose(
    kind: str, name: str, items: list[str] | dict, registry: Registry | None = None
) -> Choice:
    """A part with options from ["key=value"] or a mapping. Raises PartError or OptionError."""
    made = (registry or default()).get(kind, name).load().Options
    return Choice(name, from_dict(made, items) if isinstance(items, dict) else parse(made, items))


def defaults(deformation: str = DEFAULTS["deformation"]) -> dict[str, Choice]:
    """The parts a reconstruction uses where nothing else is chosen, beside this deformation."""
    names = {**DEFAULTS, "deformation": deformation, "forward": usual_forward(deformation)}
    return {kind: choose(kind, name, []) for kind, name in names.items()}


def usual_forward(deformation: str, registry: Registry | None = None) -> str:
    """The forward operator that goes with a deformation where none is chosen: rays if particles
    differ, for slices share one density.
    """
    return (
        "ray"
        if (registry or default()).get("deformation", deformation).load().per_particle
        else DEFAULTS["forward"]
    )


def record(parts: dict[str, Choice]) -> dict:
    """The choices as run.toml keeps them."""
    return {kind: {"name": c.name, **to_dict(c.options)} for kind, c in parts.items()}


def compose(parts: dict[str, Choice], scene: Scene, registry: Registry | None = None) -> "Model":
    """The model of all four parts. Raises CompositionError where two of them, or a part and the
    data, do not fit.
    """
    registry = registry or default()
    classes = {kind: registry.get(kind, parts[kind].name).load() for kind in DEFAULTS}
    _fit(classes, parts, scene)
    made = {kind: cls(parts[kind].options, scene) for kind, cls in classes.items()}
    return Model(
        scene, made["representation"], made["deformation"], made["forward"], made["likelihood"]
    )


def born(parts: dict[str, Choice], scene: Scene, seed: int) -> "Model":
    """As `compose`, with initial values that the seed decides; torch's global generator is left as
    it was. Threads may call it at once.
    """
    with _BIRTH, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return compose(parts, scene)


def _fit(classes: dict, parts: dict[str, Choice], scene: Scene) -> None:
    name = {kind: f"{kind} '{choice.name}'" for kind, choice in parts.items()}
    if classes["deformation"].per_particle and not classes["forward"].deforms:
        raise CompositionError(
            f"{name['deformation']} gives every particle its own density, {name['forward']} needs"
            " one that all share; choose --deform identity or --forward ray"
        )
    if scene.premultiplied and not classes["likelihood"].premultiplied:
        raise CompositionError(
            "the images are premultiplied by their CTF (rlnCtfDataAreCtfPremultiplied),"
            f" {name['likelihood']} needs images that are not; choose --likelihood gaussian"
        )


class Floor(nn.Module):
    """A lower bound: softplus(f) - offset, with the offset, the solvent's level below the mean,
    learned. Zero at f = 0 and birth.
    """

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(math.log(2.0)))

    def forward(self, field: Tensor) -> Tensor:
        return nn.functional.softplus(field) - self.offset


class Window(nn.Module):
    """Where density may be: the user's mask (trilinear), or the largest sphere with a soft edge of
    two pixels.
    """

    def __init__(self, scene: Scene):
        super().__init__()
        self.scene = scene
        self.register_buffer("mask", scene.mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Factor "*n" in 0..1 at points "*n 3"."""
        if self.mask is None:
            edge = 2 * self.scene.pixel_size
            outward = ((x.norm(dim=-1) - self.scene.radius) / edge + 1).clamp(0, 1)
            return 0.5 + 0.5 * torch.cos(math.pi * outward)
        where = (
            2 * (x.reshape(1, 1, 1, -1, 3) / self.scene.pixel_size + self.scene.box // 2) + 1
        ) / self.scene.box - 1
        values = nn.functional.grid_sample(
            self.mask.to(x.dtype)[None, None], where, align_corners=False
        )
        return values.reshape(x.shape[:-1])


class Model(nn.Module):
    """density(x) = scale · window(x) · bound(representation(deformation(x, z))), imaged and judged.

    Attributes: scene, representation, deformation, forward_operator, likelihood; `bound` is the
    floor or the identity.
    """

    def __init__(self, scene: Scene, representation, deformation, forward_operator, likelihood):
        super().__init__()
        self.scene = scene
        self.representation = representation
        self.deformation = deformation
        self.forward_operator = forward_operator
        self.likelihood = likelihood
        self.bound = Floor() if representation.options.floor == "learned" else nn.Identity()
        self.window = Window(scene)

    def field(self, z: Tensor | None = None) -> DensityFn:
        """The density "B P" at "B P 3" in Å of particles with coordinates z "B L", or of the common
        map (z None).
        """
        there = self.deformation.at(z) if z is not None else lambda x: x

        def values(x):
            return (
                self.scene.density_scale
                * self.window(x)
                * self.bound(self.representation(there(x)))
            )

        return lambda x: torch.cat(
            [values(part) for part in x.split(max(1, CHUNK // max(1, len(x))), dim=1)], 1
        )

    def density(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Density "B P" at "B P 3" in Å, of particles with coordinates z "B L", or of the common
        map (z None).
        """
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
        projection = self.forward_operator(self.field(z), views, generator=generator)
        if views.optics is None:
            return projection, projection
        return projection, ctf.apply(
            projection, views.optics, self.scene.pixel_size, padding=self.forward_operator.padding
        )

    def log_prob(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """log p "B" of each image, in nats (premultiplied images: up to a constant of the data)."""
        return self._judge(*self.project(batch.views, generator, images=batch.images), batch)

    def gain(self, batch: Batch) -> Tensor:
        """log p "B" of each image beyond that of an empty map, in nats."""
        nothing = torch.zeros_like(batch.images)
        return self.log_prob(batch) - self._judge(nothing, nothing, batch)

    def _judge(self, projection: Tensor, predicted: Tensor, batch: Batch) -> Tensor:
        if self.scene.premultiplied:
            return self.likelihood.log_prob_premultiplied(
                projection, predicted, batch.images, batch.views
            )
        return self.likelihood.log_prob(predicted, batch.images, batch.views)

    @torch.no_grad()
    def raster(self, z: Tensor | None = None) -> Tensor:
        """The common map "D D D" [z, y, x] at the voxel centres, or that of a particle with
        coordinates z "1 L".
        """
        box = self.scene.box
        parameter = next(self.parameters())
        x = grids.voxel_centres(box, self.scene.pixel_size, dtype=parameter.dtype).to(
            parameter.device
        )
        inside = self.window(x) > 0  # elsewhere the density is zero
        return torch.zeros_like(x[..., 0]).masked_scatter(
            inside, self.density(x[inside][None], z)[0]
        )

    def parameter_groups(self) -> list[dict]:
        """For the optimiser: the parameters of each part that learns, with its kind ("part") and
        learning rate.
        """
        groups = []
        parts = zip(
            DEFAULTS,
            (self.representation, self.deformation, self.forward_operator, self.likelihood),
            strict=True,
        )
        for kind, part in parts:
            own = list(part.parameters()) + (
                list(self.bound.parameters()) if part is self.representation else []
            )
            if own and not hasattr(part.options, "learning_rate"):
                raise CompositionError(
                    f"{type(part).__name__} learns but has no option learning_rate; give its"
                    " Options that field"
                )
            if own:
                groups.append({"params": own, "lr": part.options.learning_rate, "part": kind})
        return groups
