"""A set with hidden compositions: parts of a molecule that are there or not, each for itself, and
perhaps one more part that swings about its hinge meanwhile.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.lib import atomic_states
from benchmarks.lib.atomic_states import ANGLES, Arm, StatesOfAtoms, select_atoms
from instamap.progress import SILENT, Progress
from instamap.simulate.atomic_model import Atoms

PRESENT = "truth_present.npy"  # "n G": 1 where a part is there, 0 where it is not
FIRST_ARM = "A,B:1-235"
SECOND_ARM = "C,D:1-235"
STEM = "B:236-999,D:236-999"


@dataclass(frozen=True)
class Recipe(atomic_states.Recipe):
    """guests: chains, or residues of one, joined by commas, of each part that comes and goes;
    shares: of the particles that have it. arm: the part that swings, or "" where none does.
    """

    guests: tuple[str, ...] = (FIRST_ARM, SECOND_ARM)
    shares: tuple[float, ...] = (0.5, 0.5)
    arm: str = ""
    states: int = 24
    count: int = 4000
    seed: int = 6


@dataclass(frozen=True)
class Truth:
    """present "n G": 1 where a part is there; angle "n": degrees by which the arm is turned."""

    present: Tensor
    angle: Tensor


class ComingAndGoing(StatesOfAtoms):
    """A specimen whose i-th image shows the parts that row i of the truth says.

    Parts are in the places that they have in the whole model, which is the reference. The arm is
    held by all other atoms.
    """

    def __init__(self, recipe: Recipe, truth: Truth):
        whole = torch.ones(len(recipe.guests) + 1, dtype=torch.float64)
        whole[-1] = 0.0
        states = torch.cat([truth.present, truth.angle[:, None]], 1)
        super().__init__(recipe, states, whole)
        self.guests = [select_atoms(recipe.model, words) for words in recipe.guests]
        self.arm = None
        if recipe.arm:
            atoms = select_atoms(recipe.model, recipe.arm)
            self.arm = Arm.held_by(~atoms, atoms, self.atoms.position)

    def atoms_in(self, state: Tensor) -> Atoms:
        """The parts that a state "G+1" has, with the arm at its angle."""
        kept = torch.ones(len(self.atoms), dtype=torch.bool)
        for guest, present in zip(self.guests, state[:-1], strict=True):
            if not present:
                kept &= ~guest
        position = self.atoms.position
        if self.arm is not None:
            position = self.arm.turned(position, state[-1])
        return replace(
            self.atoms,
            position=position[kept],
            b_factor=self.atoms.b_factor[kept],
            occupancy=self.atoms.occupancy[kept],
            kind=self.atoms.kind[kept],
        )


def drawn(recipe: Recipe) -> Truth:
    """What all particles show, each part and the angle by themselves."""
    generator = torch.Generator().manual_seed(recipe.seed)
    chance = torch.rand(recipe.count, len(recipe.guests), generator=generator)
    present = (chance < torch.tensor(recipe.shares)).double()
    angles = recipe.angles if recipe.arm else torch.zeros(1, dtype=torch.float64)
    number = torch.randint(len(angles), (recipe.count,), generator=generator)
    return Truth(present, angles[number])


def make(recipe: Recipe, out: Path, progress: Progress = SILENT) -> None:
    """Write the set, with truth_present.npy and, where an arm swings, truth_angles.npy, to the
    folder `out`.
    """
    truth = drawn(recipe)
    arrays = {PRESENT: truth.present}
    if recipe.arm:
        arrays[ANGLES] = truth.angle[:, None]
    atomic_states.write(out, recipe, ComingAndGoing(recipe, truth), arrays, progress)
