"""A set with two hidden motions: the arms of an antibody, each of which swings about its hinge
whatever the other does.
"""

import itertools
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from instamap.geometry import rotations
from instamap.progress import SILENT, Progress
from instamap.simulate import atomic_model, particle_set
from instamap.simulate.exposure import Exposure
from instamap.simulate.potential import Potential
from instamap.simulate.write_set import write_set

ANGLES = "truth_angles.npy"  # "n 2": degrees
FULL = (-(10**6), 10**6)


@dataclass(frozen=True)
class Recipe:
    """arms: chains, or residues of one, joined by commas, of each arm. states: angles of each, from
    -amplitude to amplitude degrees.
    """

    model: Path
    arms: tuple[str, ...] = ("A,B:1-235", "C,D:1-235")
    states: int = 12
    amplitude: float = 45.0
    count: int = 10_000
    box: int = 64
    pixel: float = 4.0
    snr: float = 0.05
    solvent: float = 0.6
    seed: int = 5


class SwingingArms:
    """A specimen (see `instamap.simulate.write_set`), the i-th of which shows the arms at
    the angles "n 2" (degrees) of row i.

    An arm turns about the atom of the rest (of what is in no arm) that is nearest to the arm's
    middle, and about the axis that is at right angles to the plane of that atom, the arm's middle
    and the middle of the rest. The frame is that of the model as it is in the file, with its centre
    of mass at the origin.
    """

    def __init__(self, recipe: Recipe, angles: Tensor):
        self.recipe = recipe
        self.angles = angles
        self.box = recipe.box
        self.pixel_size = recipe.pixel
        self.done = 0
        self.atoms = atomic_model.read(recipe.model)
        self.arms = [select_atoms(recipe.model, words) for words in recipe.arms]
        rest = self.atoms.position[~torch.stack(self.arms).any(0)]
        self.hinges = [find_hinge(self.atoms.position[arm], rest) for arm in self.arms]
        self.still = self._potential(torch.zeros(len(self.arms), dtype=torch.float64))

    def project(self, rotation: Tensor, origin: Tensor) -> Tensor:
        """Of the next rows: each is asked for once, in order."""
        angles = self.angles[self.done : self.done + len(rotation)]
        self.done += len(rotation)
        images = torch.empty(len(rotation), self.box, self.box)
        states, number = angles.unique(dim=0, return_inverse=True)
        for k, state in enumerate(states):
            some = (number == k).nonzero()[:, 0]
            made = self._potential(state)
            off = (rotation[some] @ (made.centre - self.still.centre))[
                :, :2
            ]  # it is held up at a centre of mass of its own
            images[some] = made.project(rotation[some], origin[some] - off)
        return images

    def density(self) -> Tensor:
        """The map of the model as it is in the file."""
        return self.still.density()

    def positions(self, angles: Tensor) -> Tensor:
        """Atoms "P 3" (Å, in the file's frame) with the arms at `angles` "2" (degrees)."""
        moved = self.atoms.position.clone()
        for arm, (hinge, axis), angle in zip(self.arms, self.hinges, angles, strict=True):
            moved[arm] = (moved[arm] - hinge) @ rotations.from_rotvec(
                axis * torch.deg2rad(angle)
            ).T + hinge
        return moved

    def _potential(self, angles: Tensor) -> Potential:
        atoms = replace(self.atoms, position=self.positions(angles))
        return Potential(atoms, self.box, self.pixel_size, solvent=self.recipe.solvent)


def find_hinge(arm: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Where an arm is held "3", and the axis "3" about which it swings, of length 1."""
    hinge = rest[(rest - arm.mean(0)).norm(dim=1).argmin()]
    axis = torch.linalg.cross(arm.mean(0) - hinge, rest.mean(0) - hinge)
    return hinge, axis / axis.norm()


def select_atoms(path: Path, words: str) -> Tensor:
    """Which of the atoms that `model.read` gives, "P", are in 'A,B:1-235': chain A and residues 1
    to 235 of chain B.
    """
    structure = atomic_model.load(path)
    structure.remove_waters()
    spans = {}
    for word in words.split(","):
        chain, _, span = word.partition(":")
        spans[chain] = tuple(int(end) for end in span.split("-")) if span else FULL

    def inside(chain, residue):
        return (
            chain.name in spans
            and spans[chain.name][0] <= residue.seqid.num <= spans[chain.name][1]
        )

    return torch.tensor(
        [inside(c, r) for c in structure[0] for r in c for atom in r if atom.occ > 0]
    )


def drawn(recipe: Recipe) -> Tensor:
    """Angles "n 2" (degrees) of all particles, all pairs of states being as probable."""
    steps = torch.linspace(-recipe.amplitude, recipe.amplitude, recipe.states, dtype=torch.float64)
    pairs = torch.tensor(
        list(itertools.product(steps.tolist(), repeat=len(recipe.arms))), dtype=torch.float64
    )
    return pairs[
        torch.randint(
            len(pairs), (recipe.count,), generator=torch.Generator().manual_seed(recipe.seed)
        )
    ]


def make(recipe: Recipe, out: Path, progress: Progress = SILENT) -> None:
    """Write particles.star, particles.mrcs, truth.mrc, truth_angles.npy and recipe.json to the
    folder `out`.
    """
    angles = drawn(recipe)
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    poses = particle_set.Plan(recipe.count).draw(recipe.pixel, generator)
    write_set(
        out,
        SwingingArms(recipe, angles),
        poses,
        Exposure(recipe.snr),
        generator=generator,
        progress=progress,
    )
    np.save(out / ANGLES, angles.numpy())
    (out / "recipe.json").write_text(
        json.dumps({**asdict(recipe), "model": recipe.model.name}, indent=1) + "\n",
        encoding="utf-8",
    )


def quadratic(z: Tensor) -> Tensor:
    """1, each coordinate and each product of two "n F" of coordinates "n L"."""
    pairs = itertools.combinations_with_replacement(range(z.shape[1]), 2)
    return torch.stack([torch.ones_like(z[:, 0]), *z.T, *[z[:, i] * z[:, j] for i, j in pairs]], 1)


def read_off(z: Tensor, truth: Tensor) -> list[float]:
    """R² of each hidden angle "n" of `truth` "n H" by a quadratic function of the coordinates "n
    L".

    It is fitted to every other particle and judged on the rest, so that it may be below 0.
    """
    features = quadratic(z)
    learn = torch.arange(len(z)) % 2 == 0
    weights = torch.linalg.lstsq(features[learn], truth[learn], driver="gelsd").solution
    rest = truth[~learn] - features[~learn] @ weights
    return (
        1 - rest.square().sum(0) / (truth[~learn] - truth[~learn].mean(0)).square().sum(0)
    ).tolist()


def canonical(z: Tensor, truth: Tensor) -> list[float]:
    """Canonical correlations, the largest first, of coordinates "n L" and hidden angles "n H"; 0
    where there is nothing to correlate.

    Hotelling, Biometrika 28, 321 (1936).
    """
    bases = []
    for values in (z, truth):
        u, s, _ = torch.linalg.svd(values - values.mean(0), full_matrices=False)
        bases.append(u[:, s > 1e-9 * math.sqrt(len(values))])
    found = (
        torch.linalg.svdvals(bases[0].T @ bases[1]).clamp(max=1).tolist()
        if all(b.shape[1] for b in bases)
        else []
    )
    return found + [0.0] * (min(z.shape[1], truth.shape[1]) - len(found))
