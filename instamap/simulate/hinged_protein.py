"""The demo's protein: a made-up chain of two bundles of helices that opens about a hinge."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from instamap.geometry import rotations
from instamap.simulate.beads import Beads
from instamap.simulate.write_set import VariedSpecimen

RISE = 1.5  # Å from one residue of a helix to the next
HELIX_RADIUS = 2.3  # Å, of the residues' centres
RESIDUES_PER_TURN = 3.6
BUNDLE_SPACING = 9.5  # Å between neighbouring helices
BUNDLE_TWIST = 0.01  # sine of a helix's lean for each spacing that it is off the middle
LOOP_SPACING = 3.8  # Å from one residue of a loop to the next
LOOP_RISE = 7.0  # Å that a loop's tangents rise above the helices
LOOP_POINTS = 200  # of the curve on which a loop's residues are placed
HINGE_RESIDUES = 6

# Helices in the order of the chain: x, y in units of the spacing, and the length in Å.
LARGE_DOMAIN = (
    (0.0, 0.0, 40.0),
    (-0.5, -0.87, 36.0),
    (0.5, -0.87, 42.0),
    (1.0, 0.0, 33.0),
    (0.5, 0.87, 38.0),
    (-0.5, 0.87, 42.0),
    (-1.0, 0.0, 38.0),
)
SMALL_DOMAIN = (
    (-0.8, 0.0, 30.0),
    (-0.3, 0.87, 24.0),
    (0.7, 0.87, 28.0),
    (0.2, 0.0, 32.0),
    (0.7, -0.87, 22.0),
)

HINGE = (-9.5, 0.0, 24.0)  # Å from the middle of the large domain
SMALL_DOMAIN_OFFSET = (9.0, 1.0, 20.0)  # Å of its middle from the hinge, closed
HINGE_AXIS = (0.15, -0.99, 0.0)
MIDDLE = (-10.0, 0.0, 20.0)  # Å: the centre of the box, from the middle of the large domain

CLOSED = 5.0  # degrees about the hinge
OPEN = 55.0


class HingedProtein(VariedSpecimen):
    """A specimen of 300 residues, whose small domain is open by `angle` "n" (radians) in the images
    of a set.
    """

    def __init__(self, angle: Tensor, box: int, pixel_size: float) -> None:
        self.angle = angle
        self.box = box
        self.pixel_size = pixel_size
        self._large = _bundle(LARGE_DOMAIN)
        self._small = _bundle(SMALL_DOMAIN)

    def project_rows(self, rows: Tensor, rotation: Tensor, origin: Tensor) -> Tensor:
        residues = self.residues(self.angle[rows])
        return self._beads(residues).project(rotation, origin)

    def density(self) -> Tensor:
        """The map "D D D" of the protein that is half open."""
        half_open = math.radians((CLOSED + OPEN) / 2)
        angle = torch.tensor([half_open], dtype=torch.float64)
        return self._beads(self.residues(angle)[0]).density()

    def residues(self, angle: Tensor) -> Tensor:
        """Places "B P 3" (Å) of the residues at angles "B"."""
        axis = torch.nn.functional.normalize(_vector(HINGE_AXIS), dim=0)
        turn = rotations.from_rotvec(angle.double()[:, None] * axis)
        closed = self._small + _vector(SMALL_DOMAIN_OFFSET)
        small = closed @ turn.mT + _vector(HINGE)
        large = self._large.expand(len(angle), -1, -1)
        hinge = _hinge(large, small, turn)
        return torch.cat([large, hinge, small], 1) - _vector(MIDDLE)

    def _beads(self, place: Tensor) -> Beads:
        mass = torch.ones(place.shape[-2], dtype=torch.float64)
        return Beads(place, mass, self.box, self.pixel_size)


def opening_angles(count: int, seed: int) -> Tensor:
    """Angles "count" (radians) of particles, all equally likely from closed to open."""
    # Poses are drawn from `seed` itself: with the same numbers, angles would go with the views.
    generator = torch.Generator().manual_seed(seed + 1)
    share = torch.rand(count, generator=generator, dtype=torch.float64)
    return torch.deg2rad(CLOSED + (OPEN - CLOSED) * share)


def _bundle(helices: Sequence[tuple[float, float, float]]) -> Tensor:
    """Residues "P 3" (Å) of helices that run up and down in turn, joined by loops, about their
    mean.
    """
    pieces: list[Tensor] = []
    for number, (x, y, length) in enumerate(helices):
        helix = _helix(length)
        lean = BUNDLE_TWIST * BUNDLE_SPACING * _vector((-y, x, 0.0))
        helix = helix + helix[:, 2:] * lean + BUNDLE_SPACING * _vector((x, y, 0.0))
        downwards = number % 2 == 1
        if downwards:
            helix = helix.flip(0)
        if pieces:
            rise = LOOP_RISE if downwards else -LOOP_RISE
            pieces.append(_loop(pieces[-1][-1], helix[0], rise))
        pieces.append(helix)
    chain = torch.cat(pieces)
    return chain - chain.mean(0)


def _helix(length: float) -> Tensor:
    """Residues "P 3" (Å) of a right-handed helix along z."""
    count = round(length / RISE)
    number = torch.arange(count, dtype=torch.float64)
    phase = 2 * math.pi * number / RESIDUES_PER_TURN
    x = HELIX_RADIUS * phase.cos()
    y = HELIX_RADIUS * phase.sin()
    z = RISE * (number - (count - 1) / 2)
    return torch.stack([x, y, z], -1)


def _loop(start: Tensor, end: Tensor, rise: float) -> Tensor:
    """Residues "P 3" between two helices' ends, on an arc whose tangents rise along z."""
    tangent = _vector((0.0, 0.0, rise))
    share = torch.linspace(0, 1, LOOP_POINTS, dtype=torch.float64)
    curve = _bezier(start, start + tangent, end + tangent, end, share)
    length = curve.diff(dim=0).norm(dim=1).cumsum(0)
    count = round(float(length[-1]) / LOOP_SPACING) - 1
    wanted = length[-1] * _inner_shares(max(count, 1))
    return curve[torch.searchsorted(length, wanted)]


def _hinge(large: Tensor, small: Tensor, turn: Tensor) -> Tensor:
    """Residues "B P 3" from the end of the large domain "B P 3" to the start of the small one."""
    start = large[:, -1:]
    end = small[:, :1]
    tangent = _vector((0.0, 0.0, LOOP_RISE / 2))
    upwards = (turn @ tangent)[:, None]
    return _bezier(start, start + tangent, end - upwards, end, _inner_shares(HINGE_RESIDUES))


def _inner_shares(count: int) -> Tensor:
    """`count` shares of a way at equal distances, without its ends."""
    return torch.arange(1, count + 1, dtype=torch.float64) / (count + 1)


def _bezier(start: Tensor, first: Tensor, second: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """Points "* P 3" of a cubic curve at shares "P" of its way."""
    t = share[:, None]
    s = 1 - t
    return s**3 * start + 3 * s**2 * t * first + 3 * s * t**2 * second + t**3 * end


def _vector(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
