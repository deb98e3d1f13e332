"""Point groups: the rotations that leave a symmetric particle as it is, as RELION orients them."""

import math
import re

import torch
from torch import Tensor

from instamap.errors import OptionError
from instamap.geometry import rotations

ALLOWED = "Cn or Dn with n from 1 to 999, T, O, I (which is I2), I1, I2, I3 or I4"

Direction = tuple[float, float, float]

# norm of a difference of rotations below which they are the same: those of a group differ by far
# more
MAX_ROUNDING = 0.1
GOLDEN_RATIO = (1 + math.sqrt(5)) / 2
_X: Direction = (1.0, 0.0, 0.0)
_Z: Direction = (0.0, 0.0, 1.0)

# Two rotations that generate each group, each with its order; their directions are RELION's.
_GENERATORS: dict[str, list[tuple[Direction, int]]] = {
    "T": [
        (_Z, 3),
        ((0.0, math.sqrt(2), 1.0), 2),
    ],
    "O": [
        (_Z, 4),
        ((1.0, 1.0, 1.0), 3),
    ],
    "I1": [
        (_Z, 2),
        ((-GOLDEN_RATIO, 0.0, 1.0), 5),
    ],
    "I2": [
        (_Z, 2),
        ((1.0, 0.0, GOLDEN_RATIO), 5),
    ],
    "I3": [
        (_Z, 5),
        ((-1.0, 0.0, GOLDEN_RATIO), 2),
    ],
    "I4": [
        (_Z, 5),
        ((1.0, 0.0, GOLDEN_RATIO), 2),
    ],
}


def canonical(name: str) -> str:
    """The one way to write a group's name: "c4" and "C04" are C4, "I" is I2. Raises OptionError
    with what is allowed.
    """
    word = name.strip().upper()
    if word == "I":
        return "I2"
    if word in _GENERATORS:
        return word
    numbered = re.fullmatch(r"([CD])0*([1-9][0-9]{0,2})", word)
    if numbered is None:
        raise OptionError(f"symmetry '{name}' is unknown; choose {ALLOWED}")
    return numbered[1] + numbered[2]


def point_group(name: str) -> Tensor:
    """The rotations "S 3 3" (float64, the identity first) of a point group, as RELION 3.1 orients
    it.

    Cn turns about z; Dn adds a two-fold axis along x. T has a three-fold axis along z, O four-fold
    axes along x, y and z, I1 and I2 two-fold axes there and I3 and I4 a five-fold one along z. A
    density of that symmetry obeys ρ(g x) = ρ(x) for each g, so that poses A and A g show the same
    image. Raises OptionError for an unknown name.
    """
    word = canonical(name)
    if word in _GENERATORS:
        once = torch.tensor(1)
        generators = [_turn(axis, order, once) for axis, order in _GENERATORS[word]]
        return _closure(torch.stack(generators))
    family = word[0]
    order = int(word[1:])
    cyclic = _turn(_Z, order, torch.arange(order))
    if family == "C":
        return cyclic
    half_turn = _turn(_X, 2, torch.tensor(1))
    return torch.cat([cyclic, cyclic @ half_turn])


def _turn(axis: Direction, order: int, times: Tensor) -> Tensor:
    """Rotations "*n 3 3" about an axis by `times` "*n" 1/order of a full turn."""
    along = torch.tensor(axis, dtype=torch.float64)
    direction = torch.nn.functional.normalize(along, dim=0)
    angle = 2 * math.pi / order * times.double()
    return rotations.from_rotvec(angle[..., None] * direction)


def _closure(generators: Tensor) -> Tensor:
    """All products of the generators "G 3 3", each once."""
    group = torch.eye(3, dtype=generators.dtype)[None]
    while True:
        longer = (group[:, None] @ generators).flatten(0, 1)
        products = torch.cat([group, longer])
        difference = products[:, None] - products
        distance = difference.flatten(2).norm(dim=-1)
        repeats = (distance < MAX_ROUNDING).tril(-1).any(1)
        distinct = products[~repeats]
        if len(distinct) == len(group):
            return group
        group = distinct
