"""A set with hidden compositions: parts of a molecule that are there or not, each for itself, and
perhaps one more part that swings about its hinge meanwhile.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.lib import swinging
from instamap.geometry import rotations
from instamap.progress import SILENT, Progress
from instamap.simulate import atomic_model, particle_set
from instamap.simulate.exposure import Exposure
from instamap.simulate.potential import Potential
from instamap.simulate.write_set import write_set

PRESENT = "truth_present.npy"  # "n G": 1 where a part is there, 0 where it is not
ANGLES = swinging.ANGLES  # "n 1": degrees; absent where nothing swings
FIRST_ARM = "A,B:1-235"
SECOND_ARM = "C,D:1-235"
STEM = "B:236-999,D:236-999"


@dataclass(frozen=True)
class Recipe:
    """guests: chains, or residues of one, joined by commas, of each part that comes and goes;
    shares: of the particles that have it. arm: the part that swings, to `states` angles from
    -amplitude to amplitude degrees, or "" where none does.
    """

    model: Path
    guests: tuple[str, ...] = (FIRST_ARM, SECOND_ARM)
    shares: tuple[float, ...] = (0.5, 0.5)
    arm: str = ""
    states: int = 24
    amplitude: float = 45.0
    count: int = 4000
    box: int = 64
    pixel: float = 4.0
    snr: float = 0.05
    solvent: float = 0.6
    seed: int = 6


@dataclass(frozen=True)
class Truth:
    """present "n G": 1 where a part is there; angle "n": degrees by which the arm is turned."""

    present: Tensor
    angle: Tensor


class ComingAndGoing:
    """A specimen (see `instamap.simulate.write_set`), the i-th image of which shows the parts that
    row i of the truth says.

    Parts are in the places that they have in the whole model, whose centre of mass is the origin.
    The arm turns as `benchmarks.lib.swinging` says.
    """

    def __init__(self, recipe: Recipe, truth: Truth):
        self.recipe = recipe
        self.box = recipe.box
        self.pixel_size = recipe.pixel
        self.state = torch.cat([truth.present, truth.angle[:, None]], 1)
        self.done = 0
        self.atoms = atomic_model.read(recipe.model)
        self.guests = [swinging.select_atoms(recipe.model, words) for words in recipe.guests]
        self.arm = torch.zeros(len(self.atoms), dtype=torch.bool)
        if recipe.arm:
            self.arm = swinging.select_atoms(recipe.model, recipe.arm)
            places = self.atoms.position
            self.hinge, self.axis = swinging.find_hinge(places[self.arm], places[~self.arm])
        whole = torch.ones(len(recipe.guests) + 1, dtype=torch.float64)
        whole[-1] = 0.0
        self.whole = self._potential(whole)

    def project(self, rotation: Tensor, origin: Tensor) -> Tensor:
        """Of the next rows: each is asked for once, in order."""
        state = self.state[self.done : self.done + len(rotation)]
        self.done += len(rotation)
        images = torch.empty(len(rotation), self.box, self.box)
        states, number = state.unique(dim=0, return_inverse=True)
        for k, one in enumerate(states):
            some = (number == k).nonzero()[:, 0]
            made = self._potential(one)
            # it is held up at a centre of mass of its own
            off = rotation[some] @ (made.centre - self.whole.centre)
            images[some] = made.project(rotation[some], origin[some] - off[:, :2])
        return images

    def density(self) -> Tensor:
        """The map of the whole model as it is in the file."""
        return self.whole.density()

    def _potential(self, state: Tensor) -> Potential:
        """The parts that a state "G+1" has, with the arm at its angle."""
        kept = torch.ones(len(self.atoms), dtype=torch.bool)
        for guest, present in zip(self.guests, state[:-1], strict=True):
            if not present:
                kept &= ~guest
        position = self.atoms.position.clone()
        if self.arm.any():
            turn = rotations.from_rotvec(self.axis * torch.deg2rad(state[-1]))
            position[self.arm] = (position[self.arm] - self.hinge) @ turn.T + self.hinge
        atoms = replace(
            self.atoms,
            position=position[kept],
            b_factor=self.atoms.b_factor[kept],
            occupancy=self.atoms.occupancy[kept],
            kind=self.atoms.kind[kept],
        )
        return Potential(atoms, self.box, self.pixel_size, solvent=self.recipe.solvent)


def drawn(recipe: Recipe) -> Truth:
    """What all particles show, each part and the angle by themselves."""
    generator = torch.Generator().manual_seed(recipe.seed)
    chance = torch.rand(recipe.count, len(recipe.guests), generator=generator)
    present = (chance < torch.tensor(recipe.shares)).double()
    steps = torch.zeros(1, dtype=torch.float64)
    if recipe.arm:
        end = recipe.amplitude
        steps = torch.linspace(-end, end, recipe.states, dtype=torch.float64)
    number = torch.randint(len(steps), (recipe.count,), generator=generator)
    return Truth(present, steps[number])


def make(recipe: Recipe, out: Path, progress: Progress = SILENT) -> None:
    """Write particles.star, particles.mrcs, truth.mrc, truth_present.npy, truth_angles.npy (where
    an arm swings) and recipe.json to the folder `out`.
    """
    truth = drawn(recipe)
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    poses = particle_set.Plan(recipe.count).draw(recipe.pixel, generator)
    specimen = ComingAndGoing(recipe, truth)
    exposure = Exposure(recipe.snr)
    write_set(out, specimen, poses, exposure, generator=generator, progress=progress)
    np.save(out / PRESENT, truth.present.numpy())
    if recipe.arm:
        np.save(out / ANGLES, truth.angle[:, None].numpy())
    made = {**asdict(recipe), "model": recipe.model.name}
    (out / "recipe.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def auc(score: Tensor, present: Tensor) -> float:
    """The area under the receiver operating characteristic of scores "n" for what is there (1) or
    not (0), "n": the chance that one that has the part scores above one that has not, ties being
    half (Mann & Whitney 1947).
    """
    values, number = score.unique(return_inverse=True)
    there = present > 0.5
    with_part = torch.bincount(number[there], minlength=len(values)).double()
    without = torch.bincount(number[~there], minlength=len(values)).double()
    below = without.cumsum(0) - without
    won = (with_part * (below + 0.5 * without)).sum()
    return float(won / (with_part.sum() * without.sum()))


def spearman(first: Tensor, second: Tensor) -> float:
    """The correlation of ranks of two values "n"; ties have the mean of their ranks."""
    ranks = torch.stack([_ranks(first), _ranks(second)])
    if not (ranks.std(dim=1) > 0).all():
        return 0.0
    return float(torch.corrcoef(ranks)[0, 1])


def _ranks(values: Tensor) -> Tensor:
    _, number, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.double().cumsum(0)
    return (ends - 0.5 * (counts - 1))[number]


def read_off(z: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """What a quadratic function of the coordinates "n L", fitted to every other particle, says of
    the truth "n G" on the rest; and which particles these are.
    """
    features = swinging.quadratic(z)
    learn = torch.arange(len(z)) % 2 == 0
    weights = torch.linalg.lstsq(features[learn], truth[learn], driver="gelsd").solution
    return features[~learn] @ weights, ~learn
