"""Particle sets to measure on: found, made on demand by an outside tool, or copied with other
images.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from instamap.data import writers
from instamap.data.particles import Particles
from instamap.geometry import rotations

# Arguments of the tool by the name of the set's folder; {data} is the folder `data` beside the
# tool's own.
RECIPES = {
    "T": (
        "--model {data}/models/3j5p.pdb.gz --count 4000 --snr 0.02 --pixel 3 --solvent 0.6 --seed 1"
    ),
    "t256a": (
        "--model {data}/models/3j5p.pdb.gz --all-atoms --box 256 --pixel 0.8 --sigma 0.7"
        " --count 3000 --snr 0.03 --seed 1"
    ),
    "tiny": (
        "--model {data}/models/3j5p.pdb.gz --box 32 --pixel 6 --count 1200 --snr 0.05 --solvent 0.6"
        " --seed 7"
    ),
    "S": (
        "--model {data}/models/3j5p.pdb.gz --box 48 --pixel 4 --count 1500 --snr 0.05 --solvent 0.6"
        " --seed 11"
    ),
    "U": (
        "--model {data}/models/8eow.cif.gz --poses {data}/empiar-10076-poses.npz --box 56 --pixel"
        " 3.5 --count 3000 --snr 0.03 --solvent 0.6 --noise coloured --seed 5"
    ),
    "W": (
        "--model {data}/models/groel_apo_subunit.pdb.gz --box 64 --pixel 2.5 --count 3000 --snr"
        " 0.04 --solvent 0.6 --seed 8"
    ),
    "antibody": (
        "--model {data}/models/1igt.pdb.gz --poses {data}/empiar-10076-poses.npz --count 4000 --snr"
        " 0.03 --pixel 3.5 --solvent 0.6 --noise coloured --seed 2"
    ),
    "channel": (
        "--model {data}/models/8eow.cif.gz --box 96 --pixel 2 --count 3000 --snr 0.05 --solvent 0.5"
        " --groups 3 --seed 3"
    ),
    "large": (
        "--model {data}/models/3j5p.pdb.gz --poses {data}/empiar-10076-poses.npz --count 131899"
        " --snr 0.02 --pixel 3 --solvent 0.6 --seed 1"
    ),
    "hinge": (
        "--model {data}/models/1igt.pdb.gz --count 10000 --snr 0.05 --pixel 4 --solvent 0.6"
        " --motion hinge --moving A,B:1-235 --amplitude 60 --seed 2"
    ),
    "dihedral": (
        "--model {data}/models/1igt.pdb.gz --count 5000 --snr 0.05 --pixel 4 --solvent 0.6 --motion"
        " dihedral --moving A,B:1-235 --amplitude 60 --seed 3"
    ),
    "pair": (
        "--model {data}/models/adk_open.pdb.gz --model2 {data}/models/adk_closed.pdb.gz --box 48"
        " --count 5000 --snr 0.1 --pixel 2.5 --solvent 0.6 --motion pair --seed 4"
    ),
    "two-states": (
        "--model {data}/models/adk_open.pdb.gz --model2 {data}/models/adk_closed.pdb.gz --poses"
        " {data}/empiar-10076-poses.npz --count 10000 --snr 0.1 --pixel 2 --solvent 0.6 --motion"
        " pair --states 2 --seed 1"
    ),
    "two-states-noisy": (
        "--model {data}/models/adk_open.pdb.gz --model2 {data}/models/adk_closed.pdb.gz --poses"
        " {data}/empiar-10076-poses.npz --count 10000 --snr 0.02 --pixel 2 --solvent 0.6 --motion"
        " pair --states 2 --seed 3"
    ),
}
OWN_POSES = 1.0  # degrees about each axis, rms, by which rows of one image differ
REFERENCES = ("truth.mrc", "relion_reference.mrc")


def find(folder: Path, make: Path | None = None) -> Path:
    """The folder of a set, made first where it is missing, `make` is given and its name is that of
    a recipe. Exits where it cannot be.
    """
    if (folder / "particles.star").exists():
        return folder
    if make is None or folder.name not in RECIPES:
        sys.exit(
            f"no set in '{folder}'; give a folder with particles.star, or --make and a folder"
            f" called one of {', '.join(RECIPES)}"
        )
    arguments = RECIPES[folder.name].format(data=make.resolve().parents[1] / "data").split()
    if subprocess.run([sys.executable, str(make), "--out", str(folder), *arguments]).returncode:
        sys.exit(f"'{make}' could not make the set '{folder}'; see above")
    return folder


def reference(folder: Path) -> Path | None:
    """The map that results are held against: the truth, or a published one."""
    return next((folder / name for name in REFERENCES if (folder / name).exists()), None)


def describe(folder: Path) -> dict:
    """The set's name and, where it is known, how it was made; without the paths of this machine."""
    recipe = folder / "recipe.json"
    made = json.loads(recipe.read_text(encoding="utf-8")) if recipe.exists() else {}
    plain = {
        key: Path(value).name if key in ("model", "model2", "poses") and value else value
        for key, value in made.items()
    }
    return {
        "set": folder.resolve().name,
        **{key: value for key, value in plain.items() if key != "out"},
    }


def rewrite(
    folder: Path, out: Path, images: Callable[[Particles, Tensor], Tensor], count: int | None = None
) -> Path:
    """Write to the folder `out` the first `count` particles of a set with other images, in float32
    in one stack.

    images(particles, rows "B") -> "B D D". What the STAR file says is kept but for the names of the
    images. Returns `out`.
    """
    particles = Particles.open(folder / "particles.star")
    out.mkdir(parents=True, exist_ok=True)
    star = out / "particles.star"
    stack = out / "particles.mrcs"
    writers.write_particles(
        particles,
        star,
        stack,
        name=stack.name,
        images=lambda rows: images(particles, rows),
        count=count,
    )
    return out


def listed(folder: Path, out: Path, count: int, seed: int = 0) -> Path:
    """Write to the folder `out` a STAR file of `count` rows that name the images of a set again and
    again, each row with a pose of its own: its image's, turned by about OWN_POSES about each axis.

    Stacks are linked. What else the STAR file says of an image is kept, its half too. Returns
    `out`.
    """
    particles = Particles.open(folder / "particles.star")
    out.mkdir(parents=True, exist_ok=True)
    rows = torch.arange(count) % particles.count
    generator = torch.Generator().manual_seed(seed)
    angles = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    turns = rotations.from_rotvec(torch.deg2rad(OWN_POSES * angles))
    views = particles.views[rows]
    turned = replace(views, rotation=turns @ views.rotation)
    source = particles.table.source.take(rows.numpy())
    source.with_poses(turned, np.ones(count, bool)).write(out / "particles.star")
    for stack in particles.stacks.files:
        (out / stack.name).symlink_to(stack.resolve())
    return out
