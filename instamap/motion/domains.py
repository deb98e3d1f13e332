"""Domains that move as rigid bodies: where each is in every conformation, and the map that their
densities add up to.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from instamap.fourier.central_slices import Spectrum
from instamap.geometry import rotations
from instamap.geometry.bodies import Bodies
from instamap.geometry.sampling import sample_volume
from instamap.maps import mask
from instamap.motion.posterior import weights_between

MASK_THRESHOLD = 0.15  # of the highest density
HIGHEST_THRESHOLD = 0.8  # of a domain's own, where the level is that of a denser one
PIVOT_CUTOFF = 0.02  # of singular values: along the axis of a hinge any point will do


@dataclass(frozen=True)
class Placement:
    """Where M domains are in each of n conformations: material at y of the common frame is at turn
    y + shift; turn "n M 3 3", shift "n M 3" (Å).
    """

    turn: Tensor
    shift: Tensor

    def __getitem__(self, chosen: Tensor | list[int] | slice) -> "Placement":
        """The placement in some of the conformations."""
        return Placement(self.turn[chosen], self.shift[chosen])

    def to(self, device: torch.device | str) -> "Placement":
        """The same on a device."""
        return Placement(self.turn.to(device), self.shift.to(device))

    def without_first(self) -> "Placement":
        """The placement of all domains but the first one."""
        return Placement(self.turn[:, 1:], self.shift[:, 1:])


@dataclass(frozen=True)
class Domains:
    """M rigid domains, the first of which is still, and where they are in K conformations.

    masks "M D D D": soft, in the common frame. nodes "K L": coordinates of the conformations.
    placement: of all K. pixel_size: Å. Between conformations a domain's turn and the place of its
    pivot, the point of it that moves least, are those near by, Gaussian weighted. focus "D D D":
    factor of the density of the domains that move, at each place (None: 1). occupancy "M": of
    domains that come and go, which of the R coordinates that follow the L of the motion says how
    probably each is there (1) or not (0), counted from 0; -1 of a domain that is always there; None
    where all are.
    """

    masks: Tensor
    nodes: Tensor
    placement: Placement
    pixel_size: float
    focus: Tensor | None = None
    occupancy: Tensor | None = None

    def placement_at(self, z: Tensor) -> Placement:
        """The placement at coordinates z "n L+R"."""
        z = z[:, : self.nodes.shape[1]]
        weight = weights_between(self.nodes.to(z), z)
        turns = self.placement.turn.to(z)
        shifts = self.placement.shift.to(z)
        turn = nearest_rotation(torch.einsum("nk,kmij->nmij", weight, turns))
        point = self._pivots.to(z)
        places = _moved(point, turns, shifts)
        place = torch.einsum("nk,kmi->nmi", weight, places)
        turned = torch.einsum("nmij,mj->nmi", turn, point)
        return Placement(turn, place - turned)

    def present_at(self, z: Tensor) -> Tensor:
        """How much of each domain "n M" is there at coordinates z "n L+R"."""
        always = z.new_ones(len(z), 1)
        if self.occupancy is None:
            return always.expand(-1, len(self.masks))
        present = z[:, self.nodes.shape[1] :].clamp(0, 1)
        return torch.cat([always, present], 1)[:, self.occupancy + 1]

    def map(self, densities: Tensor, z: Tensor) -> Tensor:
        """The map "D D D" at z "L+R" of domains with these densities "M D D D"."""
        one = z[None]
        placement = self.placement_at(one)
        if self.occupancy is not None:
            densities = densities * self.present_at(one)[0, :, None, None, None]
        if self.focus is None:
            return add_up(densities, placement, self.pixel_size)
        moving = placement.without_first()
        return densities[0] + self.focus * add_up(densities[1:], moving, self.pixel_size)

    def pull_back(self, x: Tensor, z: Tensor) -> Tensor:
        """Where in the common frame the points x "P 3" (Å) of the conformation at z "L+R" are.

        That of the domain in whose mask it is; in several or none, a mean that goes over from one
        to the next, so that atoms between domains follow both. Outside the focus nothing moves.
        """
        placement = self.placement_at(z[None])
        back = placement.turn.mT
        bodies = self._bodies
        # T⁻¹ x = Tᵀ (x - c) + c + shift, about the centre c of the domain
        moved = back @ (bodies.centre - placement.shift)[..., None]
        shift = moved[..., 0] - bodies.centre
        there = bodies(x[None], back, shift)[0]
        if self.focus is None:
            return there
        factor = sample_volume(self.focus.to(x), x, self.pixel_size)
        return x + factor[:, None] * (there - x)

    @cached_property
    def _bodies(self) -> Bodies:
        return Bodies(self.masks, self.pixel_size)

    @cached_property
    def _pivots(self) -> Tensor:
        return pivots(self.placement)


def domain_facts(domains: Domains) -> list[dict[str, Any]]:
    """What is told of each domain: its share of the masks' volume and, where it moves, the axis
    about which it turns most, a point on it (Å), and how far it turns over all conformations
    (degrees).
    """
    volume = domains.masks.flatten(1).sum(1)
    share = volume / volume.sum()
    points = pivots(domains.placement)
    facts: list[dict[str, Any]] = []
    for m in range(len(domains.masks)):
        turns = domains.placement.turn[:, m].double()
        middle = nearest_rotation(turns.mean(0))
        relative = turns @ middle.mT
        vectors = rotations.to_rotvec(relative)
        fact: dict[str, Any] = {"share_of_volume": round(float(share[m]), 4)}
        if domains.occupancy is not None and domains.occupancy[m] >= 0:
            fact["region"] = 1 + int(domains.occupancy[m])  # by its number, from 1
        angle = torch.rad2deg(vectors.norm(dim=1).max())
        fact["largest_turn_degrees"] = round(2 * float(angle), 2)
        if angle > 0:
            _, _, axes = torch.linalg.svd(vectors)
            fact["axis"] = [round(float(value), 4) for value in axes[0]]
            fact["point_on_axis"] = [round(float(value), 2) for value in points[m]]
        facts.append(fact)
    return facts


def soft_masks(
    densities: Tensor,
    pixel_size: float,
    extend: float,
    edge: float,
    *,
    one_level: bool = False,
) -> Tensor:
    """Masks "M D D D" around densities, extended by so many voxels, with edges of so many.

    one_level: whether all are cut at the level of the densest one, as far as they reach it, so that
    what is left of a domain whose regions come and go is no mask of noise.
    """
    highest = densities.flatten(1).amax(1)
    masks = []
    for density, own in zip(densities, highest, strict=True):
        threshold = MASK_THRESHOLD
        if one_level:
            threshold = float((MASK_THRESHOLD * highest.max() / own).clamp(max=HIGHEST_THRESHOLD))
        masks.append(
            mask.from_map(density, pixel_size, threshold=threshold, extend=extend, edge=edge)
        )
    return torch.stack(masks)


def brought_back(x: Tensor, placement: Placement) -> Tensor:
    """Points "M P 3" of the common frame that each domain of a single placement has at x "P 3"."""
    turn = placement.turn[0].to(x)
    shift = placement.shift[0].to(x)
    return (x - shift[:, None]) @ turn  # Tᵀ (x - t), for rows


def pivots(placement: Placement) -> Tensor:
    """For each domain the point "M 3" of the common frame that stays nearest to one place."""
    turn = placement.turn.double()
    shift = placement.shift.double()
    turn = turn - turn.mean(0)
    shift = shift - shift.mean(0)
    points = []
    for m in range(turn.shape[1]):
        matrix = turn[:, m].reshape(-1, 3)
        right = -shift[:, m].reshape(-1)
        points.append(torch.linalg.pinv(matrix, rtol=PIVOT_CUTOFF) @ right)
    return torch.stack(points)


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotations "* 3 3" nearest to matrices, in the sum of squared differences."""
    u, _, v = torch.linalg.svd(matrix)
    sign = torch.det(u @ v)
    diagonal = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], -1)
    return u @ torch.diag_embed(diagonal) @ v


def add_up(densities: Tensor, placement: Placement, pixel_size: float) -> Tensor:
    """The map "D D D" of densities "M D D D", each moved by a single placement.

    Exact for what is inside the sphere of the highest frequency: the transform is looked up at
    turned frequencies (see `fourier.central_slices`).
    """
    box = densities.shape[-1]
    still = torch.eye(3).to(placement.turn)
    total = torch.zeros(box, box, box, dtype=densities.dtype)
    for density, turn, shift in zip(densities, placement.turn[0], placement.shift[0], strict=True):
        if torch.equal(turn, still) and not shift.any():
            total = total + density
        else:
            total = total + moved_exactly(density, turn, shift / pixel_size)
    return total


def moved_exactly(density: Tensor, turn: Tensor, shift: Tensor) -> Tensor:
    """A density "D D D" whose material went from y to turn y + shift (voxels)."""
    box = len(density)
    k = torch.fft.fftfreq(box, 1 / box, dtype=torch.float64)
    z, y, x = torch.meshgrid(k, k, k[: box // 2 + 1].abs(), indexing="ij")
    frequency = torch.stack([x, y, z], -1)
    inside = frequency.norm(dim=-1) < box / 2
    chosen = frequency[inside]
    frames = turn.double()[None]
    values = Spectrum(density.float()).slices(frames.float(), chosen.float())[0]
    phase = -2 * torch.pi / box * (chosen @ shift.double())
    values = values * torch.polar(torch.ones_like(phase), phase).to(values.dtype)
    spectrum = torch.zeros(inside.shape, dtype=values.dtype)
    spectrum[inside] = values
    lattice = torch.fft.irfftn(spectrum, s=(box,) * 3)
    return torch.fft.fftshift(lattice).to(density.dtype)


def _moved(point: Tensor, turn: Tensor, shift: Tensor) -> Tensor:
    """Where points "M 3" are, "K M 3"."""
    return torch.einsum("kmij,mj->kmi", turn, point) + shift
