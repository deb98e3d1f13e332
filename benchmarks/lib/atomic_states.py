"""Sets of an atomic model whose particles are in different states: some atoms are elsewhere, or not
there.
"""

import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from instamap.errors import DataError
from instamap.geometry import rotations
from instamap.progress import SILENT, Progress
from instamap.simulate import atomic_model, particle_set
from instamap.simulate.atomic_model import Atoms
from instamap.simulate.exposure import Exposure
from instamap.simulate.potential import Potential
from instamap.simulate.write_set import VariedSpecimen, write_set

ANGLES = "truth_angles.npy"  # "n H": degrees of each of the hidden angles
RECIPE = "recipe.json"


@dataclass(frozen=True)
class Recipe:
    """What a set is made of.

    states: angles that an arm takes, from -amplitude to amplitude degrees. pixel: Å. solvent: as of
    `instamap simulate`, as is snr. seed: of states and poses.
    """

    model: Path
    states: int = 12
    amplitude: float = 45.0
    count: int = 10_000
    box: int = 64
    pixel: float = 4.0
    snr: float = 0.05
    solvent: float = 0.6
    seed: int = 5

    @property
    def angles(self) -> Tensor:
        """The angles "S" (degrees) that an arm takes."""
        end = self.amplitude
        return torch.linspace(-end, end, self.states, dtype=torch.float64)


@dataclass(frozen=True)
class Arm:
    """Atoms "P" (bool) that turn together about an `axis` "3" of length 1 through a `hinge` "3"."""

    atoms: Tensor
    hinge: Tensor
    axis: Tensor

    @staticmethod
    def held_by(rest: Tensor, atoms: Tensor, position: Tensor) -> "Arm":
        """The arm of some `atoms` "P" at `position` "P 3", held by what is in `rest` "P".

        It turns about the atom of the rest that is nearest to the arm's middle, and about the axis
        that is at right angles to the plane of that atom, the arm's middle and that of the rest.
        """
        middle = position[atoms].mean(0)
        others = position[rest]
        hinge = others[(others - middle).norm(dim=1).argmin()]
        axis = torch.linalg.cross(middle - hinge, others.mean(0) - hinge)
        return Arm(atoms, hinge, axis / axis.norm())

    def turned(self, position: Tensor, angle: Tensor) -> Tensor:
        """Positions "P 3" with the arm turned by an angle in degrees."""
        turn = rotations.from_rotvec(self.axis * torch.deg2rad(angle))
        moved = position.clone()
        moved[self.atoms] = (moved[self.atoms] - self.hinge) @ turn.T + self.hinge
        return moved


class StatesOfAtoms(VariedSpecimen):
    """A specimen, the i-th image of which shows the model in the i-th of the states "n S".

    reference "S": the state whose map is the truth. The frame is that of the model as it is in the
    file, with the reference's centre of mass at the origin.
    """

    def __init__(self, recipe: Recipe, states: Tensor, reference: Tensor):
        self.recipe = recipe
        self.box = recipe.box
        self.pixel_size = recipe.pixel
        self.states = states
        self.atoms = atomic_model.read(recipe.model)
        self._reference_state = reference

    @abstractmethod
    def atoms_in(self, state: Tensor) -> Atoms:
        """The atoms in a state "S"."""

    @cached_property
    def _reference(self) -> Potential:
        return self._potential(self._reference_state)

    def _potential(self, state: Tensor) -> Potential:
        atoms = self.atoms_in(state)
        return Potential(atoms, self.box, self.pixel_size, solvent=self.recipe.solvent)

    def project_rows(self, rows: Tensor, rotation: Tensor, origin: Tensor) -> Tensor:
        states = self.states[rows]
        images = torch.empty(len(rotation), self.box, self.box)
        different, number = states.unique(dim=0, return_inverse=True)
        for k, state in enumerate(different):
            some = (number == k).nonzero()[:, 0]
            made = self._potential(state)
            # it is held up at a centre of mass of its own
            off = rotation[some] @ (made.centre - self._reference.centre)
            images[some] = made.project(rotation[some], origin[some] - off[:, :2])
        return images

    def density(self) -> Tensor:
        """The map "D D D" of the reference."""
        return self._reference.density()


def select_atoms(path: Path, words: str) -> Tensor:
    """Which of the atoms that `atomic_model.read` gives, "P", are in 'A,B:1-235': chain A and
    residues 1 to 235 of chain B. A chain whose name is blank is chosen by ':1-235'.

    Raises DataError for a chain or residues that the model does not have.
    """
    structure = atomic_model.load(path)
    structure.remove_waters()
    chains = []
    residues = []
    for chain in structure[0]:
        for residue in chain:
            there = sum(1 for atom in residue if atom.occ > 0)
            chains += [chain.name] * there
            residues += [residue.seqid.num] * there
    chain_of = np.array(chains)
    residue_of = np.array(residues)
    chosen = np.zeros(len(chains), dtype=bool)
    for word in words.split(","):
        name, _, span = word.partition(":")
        inside = chain_of == name
        if not inside.any():
            names = ", ".join(f"'{one}'" for one in dict.fromkeys(chains))
            raise DataError(f"'{word}' selects chain '{name}', but '{path}' has {names}; name one")
        if span:
            low, high = (int(end) for end in span.split("-"))
            first = residue_of[inside].min()
            last = residue_of[inside].max()
            inside &= (low <= residue_of) & (residue_of <= high)
            if not inside.any():
                raise DataError(
                    f"'{word}' selects no residues of chain '{name}' of '{path}', which has"
                    f" {first} to {last}; name some of them"
                )
        chosen |= inside
    return torch.from_numpy(chosen)


def write(
    out: Path,
    recipe: Recipe,
    specimen: VariedSpecimen,
    truth: Mapping[str, Tensor],
    progress: Progress = SILENT,
) -> None:
    """Write particles.star, particles.mrcs, truth.mrc, the recipe and arrays of the truth, by their
    files' names, to the folder `out`.
    """
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    poses = particle_set.Plan(recipe.count).draw(recipe.pixel, generator)
    exposure = Exposure(recipe.snr)
    write_set(out, specimen, poses, exposure, generator=generator, progress=progress)
    for name, values in truth.items():
        np.save(out / name, values.numpy())
    made = {**asdict(recipe), "model": recipe.model.name}
    (out / RECIPE).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
