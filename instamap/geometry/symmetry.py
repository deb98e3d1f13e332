"""Point groups: the rotations that leave a symmetric particle as it is, in RELION's orientations."""

import math
import re

import torch
from torch import Tensor

from instamap.errors import OptionError
from instamap.geometry import rotations

ALLOWED = "Cn or Dn with n from 1 to 999, T, O, I (which is I2), I1, I2, I3 or I4"
_GOLDEN = (1 + math.sqrt(5)) / 2
_Z = (0.0, 0.0, 1.0)
# of two rotations that generate the group, each with its order; their directions are RELION's
_AXES = {
    "T": ((_Z, 3), ((0.0, math.sqrt(2), 1.0), 2)),
    "O": ((_Z, 4), ((1.0, 1.0, 1.0), 3)),
    "I1": ((_Z, 2), ((-_GOLDEN, 0.0, 1.0), 5)),
    "I2": ((_Z, 2), ((1.0, 0.0, _GOLDEN), 5)),
    "I3": ((_Z, 5), ((-1.0, 0.0, _GOLDEN), 2)),
    "I4": ((_Z, 5), ((1.0, 0.0, _GOLDEN), 2)),
}


def canonical(name: str) -> str:
    """The one way to write a group's name: "c4" and "C04" are C4, "I" is I2. Raises OptionError
    with what is allowed.
    """
    word = name.strip().upper()
    word = "I2" if word == "I" else word
    numbered = re.fullmatch(r"([CD])0*([1-9][0-9]{0,2})", word)
    if word not in _AXES and not numbered:
        raise OptionError(f"symmetry '{name}' is unknown; choose {ALLOWED}")
    return numbered[1] + numbered[2] if numbered else word


def point_group(name: str) -> Tensor:
    """The rotations "S 3 3" (float64, the identity first) of a point group, as RELION 3.1 orients
    it.

    Cn turns about z; Dn adds a two-fold axis along x. T has a three-fold axis along z, O four-fold
    axes along x, y and z, I1 and I2 two-fold axes there and I3 and I4 a five-fold one along z. A
    density of that symmetry obeys ρ(g x) = ρ(x) for each g, so that poses A and A g show the same
    image. Raises OptionError for an unknown name.
    """
    word = canonical(name)
    if word[0] in "CD":
        order = int(word[1:])
        turns = _turn(_Z, order, torch.arange(order))
        return (
            turns
            if word[0] == "C"
            else torch.cat([turns, turns @ _turn((1.0, 0.0, 0.0), 2, torch.tensor(1))])
        )
    return _closure(
        torch.stack([_turn(axis, order, torch.tensor(1)) for axis, order in _AXES[word]])
    )


def _turn(axis: tuple[float, float, float], order: int, times: Tensor) -> Tensor:
    """Rotations "*n 3 3" about an axis by `times` "*n" 1/order of a full turn."""
    direction = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0)
    return rotations.from_rotvec(2 * math.pi / order * times.double()[..., None] * direction)


def _closure(generators: Tensor) -> Tensor:
    """All products of the generators "G 3 3"; different rotations of these groups differ by far
    more than rounding.
    """
    group = torch.eye(3, dtype=generators.dtype)[None]
    while True:
        products = torch.cat([group, (group[:, None] @ generators).flatten(0, 1)])
        distance = (products[:, None] - products).flatten(2).norm(dim=-1)
        known = (distance < 0.1).tril(-1).any(1)
        if int((~known).sum()) == len(group):
            return group
        group = products[~known]
