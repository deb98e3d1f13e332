"""A set with two hidden motions: the arms of an antibody, each of which swings about its hinge
whatever the other does.
"""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.lib import atomic_states
from benchmarks.lib.atomic_states import ANGLES, Arm, StatesOfAtoms, select_atoms
from instamap.progress import SILENT, Progress
from instamap.simulate.atomic_model import Atoms


@dataclass(frozen=True)
class Recipe(atomic_states.Recipe):
    """arms: chains, or residues of one, joined by commas, of each arm."""

    arms: tuple[str, ...] = ("A,B:1-235", "C,D:1-235")


class SwingingArms(StatesOfAtoms):
    """A specimen whose i-th image shows the arms at the angles "n H" (degrees) of row i.

    Each is held by what is in no arm.
    """

    def __init__(self, recipe: Recipe, angles: Tensor):
        still = torch.zeros(len(recipe.arms), dtype=torch.float64)
        super().__init__(recipe, angles, still)
        chosen = [select_atoms(recipe.model, words) for words in recipe.arms]
        rest = ~torch.stack(chosen).any(0)
        self.arms = [Arm.held_by(rest, atoms, self.atoms.position) for atoms in chosen]

    def positions(self, angles: Tensor) -> Tensor:
        """Atoms "P 3" (Å, in the file's frame) with the arms at `angles` "H" (degrees)."""
        moved = self.atoms.position
        for arm, angle in zip(self.arms, angles, strict=True):
            moved = arm.turned(moved, angle)
        return moved

    def atoms_in(self, state: Tensor) -> Atoms:
        return replace(self.atoms, position=self.positions(state))


def drawn(recipe: Recipe) -> Tensor:
    """Angles "n H" (degrees) of all particles, all tuples of states being as probable."""
    every = list(itertools.product(recipe.angles.tolist(), repeat=len(recipe.arms)))
    generator = torch.Generator().manual_seed(recipe.seed)
    number = torch.randint(len(every), (recipe.count,), generator=generator)
    return torch.tensor(every, dtype=torch.float64)[number]


def make(recipe: Recipe, out: Path, progress: Progress = SILENT) -> None:
    """Write the set, with truth_angles.npy, to the folder `out`."""
    angles = drawn(recipe)
    atomic_states.write(out, recipe, SwingingArms(recipe, angles), {ANGLES: angles}, progress)
