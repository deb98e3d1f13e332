"""Conventions held against RELION itself: pose, origin, half pixel, hand, CTF sign, astigmatism,
phase shift, scale.
"""

import math
import shutil
import subprocess

import mrcfile
import pandas as pd
import pytest
import starfile
import torch

from instamap.data.particles import Particles
from instamap.forward.ray import Ray
from instamap.fourier import ctf
from instamap.geometry import grids
from instamap.maps import mrc
from instamap.scene import Scene, Views

pytestmark = pytest.mark.skipif(
    shutil.which("relion_project") is None, reason="RELION (Debian package relion) is not installed"
)

PIXEL = 3.0
SIGMA = 5.0
COUNT = 6
# RELION interpolates linearly in a Fourier transform padded twice, which costs 1e-4.
# Half a pixel would cost 2e-2. It is not made for odd boxes.
AGREEMENT = 0.9995


@pytest.fixture(params=[48, 64])
def case(request, tmp_path):
    """A map of a dozen Gaussians, random poses with everything a CTF can have, and RELION's
    projections.
    """
    box = request.param
    generator = torch.Generator().manual_seed(request.param)
    centres = torch.randn(12, 3, generator=generator, dtype=torch.float64) * 14
    weights = torch.rand(12, generator=generator, dtype=torch.float64) + 0.5

    def density(x):
        square = (x[..., None, :] - centres).square().sum(-1)
        return (torch.exp(-square / (2 * SIGMA**2)) * weights).sum(-1) / (
            2 * math.pi * SIGMA**2
        ) ** 1.5

    mrc.write(
        tmp_path / "map.mrc",
        density(grids.voxel_centres(box, PIXEL, dtype=torch.float64)).float(),
        PIXEL,
    )
    _write_star(tmp_path, box, generator)
    return tmp_path, box, density


def _write_star(folder, box, generator):
    angles = torch.rand(COUNT, 3, generator=generator) * torch.tensor([360.0, 180.0, 360.0])
    origin = torch.randn(COUNT, 2, generator=generator) * 5
    optics = pd.DataFrame(
        {
            "rlnOpticsGroupName": ["a"],
            "rlnOpticsGroup": [1],
            "rlnVoltage": [300.0],
            "rlnSphericalAberration": [2.7],
            "rlnAmplitudeContrast": [0.1],
            "rlnImagePixelSize": [PIXEL],
            "rlnImageSize": [box],
            "rlnImageDimensionality": [2],
        }
    )
    number = range(COUNT)
    particles = pd.DataFrame(
        {
            "rlnImageName": [f"{i + 1:06d}@projections.mrcs" for i in number],
            "rlnOpticsGroup": 1,
            "rlnAngleRot": angles[:, 0],
            "rlnAngleTilt": angles[:, 1],
            "rlnAnglePsi": angles[:, 2],
            "rlnOriginXAngst": origin[:, 0],
            "rlnOriginYAngst": origin[:, 1],
            "rlnDefocusU": [15000.0 + 1000 * i for i in number],
            "rlnDefocusV": 13000.0,
            "rlnDefocusAngle": [20.0 * i for i in number],
            "rlnPhaseShift": [15.0 * i for i in number],
            "rlnCtfBfactor": [30.0 * i for i in number],
        }
    )
    starfile.write({"optics": optics, "particles": particles}, folder / "particles.star")


def _relion(folder, *options):
    command = [
        "relion_project",
        "--i",
        "map.mrc",
        "--o",
        "projections",
        "--ang",
        "particles.star",
        "--angpix",
        str(PIXEL),
        *options,
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.tensor(mrcfile.read(folder / "projections.mrcs")).double()


@pytest.mark.parametrize("contrast_transfer", [False, True])
def test_ray_agrees_with_relion_project(case, contrast_transfer):
    folder, box, density = case
    theirs = _relion(folder, *(["--ctf"] if contrast_transfer else []))
    particles = Particles.open(folder / "particles.star")
    views = particles.views
    ray = Ray(Ray.Options(), Scene(box=box, pixel_size=PIXEL)).double().eval()
    ours = ray(density, Views(views.rotation, views.origin, views.index, views.group))
    if contrast_transfer:
        ours = ctf.apply(ours, views.optics, PIXEL)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] > AGREEMENT
    # RELION sums voxels where we integrate over Å; interpolation loses it up to 6 per mille.
    assert float((ours * theirs).sum() / (theirs * theirs).sum()) == pytest.approx(PIXEL, rel=1e-2)
