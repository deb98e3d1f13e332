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
from instamap.forward.central_slice import Slice
from instamap.forward.ewald import Ewald
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


def _write_star(folder, box, generator, count=COUNT, **aberrations):
    angles = torch.rand(count, 3, generator=generator) * torch.tensor([360.0, 180.0, 360.0])
    origin = torch.randn(count, 2, generator=generator) * 5
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
            **{name: [value] for name, value in aberrations.items()},
        }
    )
    number = range(count)
    particles = pd.DataFrame(
        {
            "rlnImageName": [f"{i + 1:06d}@projections.mrcs" for i in number],
            "rlnOpticsGroup": 1,
            "rlnAngleRot": angles[:, 0],
            "rlnAngleTilt": angles[:, 1],
            "rlnAnglePsi": angles[:, 2],
            "rlnOriginXAngst": origin[:, 0],
            "rlnOriginYAngst": origin[:, 1],
            "rlnDefocusU": [15000.0 + 1000 * (i % 6) for i in number],
            "rlnDefocusV": 13000.0,
            "rlnDefocusAngle": [20.0 * (i % 9) for i in number],
            "rlnPhaseShift": [15.0 * (i % 6) for i in number],
            "rlnCtfBfactor": [30.0 * (i % 6) for i in number],
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


# Large ones, as pixels are: at 6 Å they turn phases by up to several radians.
TILT = {"rlnBeamTiltX": 20.0, "rlnBeamTiltY": -12.0}
ODD = {"rlnOddZernike": "[5,-8,400,300,-500,200]"}
# RELION takes a beam tilt in place of the terms (3, ±1): together they would be two names of one
TREFOIL = {"rlnOddZernike": "[5,-8,400,0,0,200]"}
EVEN = {"rlnEvenZernike": "[0.3,30,-7,40,2000,-800,-1800,700,900]"}
DISTORTED = {
    "rlnMagMat00": 1.04,
    "rlnMagMat01": 0.03,
    "rlnMagMat10": -0.02,
    "rlnMagMat11": 0.97,
}
ALL_ABERRATIONS = TILT | TREFOIL | EVEN | DISTORTED
IMAGES = 300


@pytest.mark.parametrize(
    "aberrations",
    [TILT, ODD, EVEN, DISTORTED, ALL_ABERRATIONS],
    ids=["tilt", "odd", "even", "distorted", "all"],
)
def test_relion_reconstruct_undoes_our_aberrations(tmp_path, aberrations):
    """Signs, units, order of terms, and where in the plane they are: RELION finds the map in images
    that we made, and does not where it is not told of their aberrations.
    """
    box = 48
    generator = torch.Generator().manual_seed(box)
    centres = torch.randn(12, 3, generator=generator, dtype=torch.float64) * 14

    def density(x):
        square = (x[..., None, :] - centres).square().sum(-1)
        return torch.exp(-square / (2 * 4.0**2)).sum(-1)

    truth = density(grids.voxel_centres(box, PIXEL, dtype=torch.float64))
    state = generator.get_state()
    _write_star(tmp_path, box, generator, IMAGES, **aberrations)
    blank = torch.zeros(IMAGES, box, box)
    mrcfile.write(tmp_path / "projections.mrcs", blank.numpy())
    views = Particles.open(tmp_path / "particles.star").views
    slices = Slice(Slice.Options(), Scene(box=box, pixel_size=PIXEL)).double().eval()
    images = ctf.apply(slices(density, views), views.optics, PIXEL)
    with mrcfile.new(tmp_path / "projections.mrcs", overwrite=True) as file:
        file.set_data(images.float().numpy())
        file.voxel_size = PIXEL
    found = _fsc(_reconstructed(tmp_path), truth)
    generator.set_state(state)
    _write_star(tmp_path, box, generator, IMAGES)
    unaware = _fsc(_reconstructed(tmp_path), truth)
    assert found[2:18].min() > 0.99
    assert unaware[2:18].min() < 0.99


def test_relion_reconstruct_sees_our_ewald_sphere(tmp_path):
    """With electrons of 50 V, at which a particle of 100 Å is thick for pixels of 3 Å: RELION's map
    is better with its correction than without, and far worse with the opposite curvature.
    """
    box = 48
    generator = torch.Generator().manual_seed(box)
    centres = torch.randn(12, 3, generator=generator, dtype=torch.float64) * 14

    def density(x):
        square = (x[..., None, :] - centres).square().sum(-1)
        return torch.exp(-square / (2 * 4.0**2)).sum(-1)

    _write_star(tmp_path, box, generator, IMAGES)
    tables = starfile.read(tmp_path / "particles.star")
    defocus = [400.0 + 4 * i for i in range(IMAGES)]
    tables["optics"]["rlnVoltage"] = 0.05
    tables["optics"]["rlnSphericalAberration"] = 0.0
    tables["particles"]["rlnDefocusU"] = defocus
    tables["particles"]["rlnDefocusV"] = defocus
    tables["particles"] = tables["particles"].drop(columns=["rlnPhaseShift", "rlnCtfBfactor"])
    starfile.write(tables, tmp_path / "particles.star", overwrite=True)
    mrcfile.write(tmp_path / "projections.mrcs", torch.zeros(IMAGES, box, box).numpy())
    views = Particles.open(tmp_path / "particles.star").views
    part = Ewald(Ewald.Options(), Scene(box=box, pixel_size=PIXEL)).double().eval()
    images = []
    for rows in torch.arange(IMAGES).split(50):
        one, other = part.in_phase_and_quadrature(density, views[rows])
        transferred = ctf.apply(one, views.optics[rows], PIXEL)
        images.append(transferred + ctf.apply_quadrature(other, views.optics[rows], PIXEL))
    with mrcfile.new(tmp_path / "projections.mrcs", overwrite=True) as file:
        file.set_data(torch.cat(images).float().numpy())
        file.voxel_size = PIXEL
    truth = density(grids.voxel_centres(box, PIXEL, dtype=torch.float64))
    options = ("--ewald", "--mask_diameter", "140", "--skip_weighting", "--skip_mask")
    flat, curved, reverse = (
        float(_fsc(_reconstructed(tmp_path, *chosen), truth)[15:19].mean())
        for chosen in ((), options, (*options, "--reverse_curvature"))
    )
    assert curved > 0.9 and curved > flat + 0.01 and reverse < 0.7, (flat, curved, reverse)


def _reconstructed(folder, *options):
    """RELION's map of particles.star."""
    files = ["--i", "particles.star", "--o", "relion.mrc"]
    command = ["relion_reconstruct", *files, "--ctf", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.tensor(mrcfile.read(folder / "relion.mrc")).double()


def _fsc(one, other):
    shell = grids.shells(len(one), 3).flatten()
    a, b = (torch.fft.fftn(volume).flatten() for volume in (one, other))
    sums = [
        torch.zeros(int(shell.max()) + 1, dtype=torch.float64).index_add_(0, shell, values)
        for values in ((a * b.conj()).real, a.abs() ** 2, b.abs() ** 2)
    ]
    return sums[0] / (sums[1] * sums[2]).sqrt()
