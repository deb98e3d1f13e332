"""A user's mask that covers half of the molecule: outside it every written map is exactly zero,
whatever made it.
"""

from pathlib import Path

import pytest
import torch
from support.command import correlation, instamap, maps
from support.swinging import write
from torch import Tensor

from instamap.geometry import grids, rotations
from instamap.maps import mask, mrc
from instamap.model import compose, default_parts, usual_forward
from instamap.parts import CurvedOperator, SharedDensity
from instamap.plugin.registry import default
from instamap.scene import Scene, Views
from instamap.simulate import particle_set

BOX = 16
PIXEL = 6.0
DEFORMATIONS = default().parts("deformation")
BENDING = [part.name for part in DEFORMATIONS if not issubclass(part.load(), SharedDensity)]
OPERATORS = default().parts("forward")
FORWARD = [("--forward", part.name) for part in OPERATORS]
FLAT = [
    ("--forward", part.name) for part in OPERATORS if not issubclass(part.load(), CurvedOperator)
]
PARTS = FORWARD + [("--deform", name, "--forward", usual_forward(name)) for name in BENDING]
IMAGES = [
    (
        "--objective",
        "images",
        "-O",
        f"batch={batch}",
        "-O",
        f"steps={24 // batch + 8}",
        "-O",
        "evaluate_every=8",
    )
    for batch in (1, 3)
]
NORMAL = ("--objective", "normal", "-O", "steps=20")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """particles.star, truth.mrc, and half.mrc: half of a ball around the molecule, with a soft edge
    on the round side only.
    """
    found = particle_set.demo(
        tmp_path_factory.mktemp("data"), count=80, box=BOX, pixel_size=PIXEL, snr=4.0
    ).parent
    half = mask.sphere(BOX, PIXEL, 42.0, 9.0)
    half[..., : BOX // 2] = 0  # x < 0
    mrc.write(found / "half.mrc", half, PIXEL)
    return found


def check(folder: Path, out: Path, words: tuple[str, ...]) -> None:
    outcome = instamap(
        "reconstruct", folder / "particles.star", "-o", out, "--mask", folder / "half.mrc", *words
    )
    assert outcome.code == 0 and "no signal" not in outcome.out, outcome
    half = mrc.read(folder / "half.mrc")[0]
    truth = mrc.read(folder / "truth.mrc")[0]
    found = maps(out)
    assert found.keys() == {"map", "half1", "half2"}
    for name, values in found.items():
        assert leak(values, half) == 0, f"{name} has density outside of the mask"
        assert (values[half > 0.5] != 0).all(), f"{name} has holes"
    assert correlation(found["map"], truth, half > 0.5) > 0.3, (
        "the half that is in the mask is not the molecule's"
    )


def leak(values: Tensor, window: Tensor) -> float:
    """The largest density where the mask is zero."""
    return float(values[window == 0].abs().max())


def test_the_mask_covers_half_of_the_molecule(folder):
    """Or else the tests below are easy."""
    half = mrc.read(folder / "half.mrc")[0]
    truth = mrc.read(folder / "truth.mrc")[0]
    assert 0.3 < float((half * truth).sum() / truth.sum()) < 0.7
    assert leak(truth, half) > 0.5 * float(truth.max())


@pytest.mark.slow
@pytest.mark.parametrize("engine", IMAGES, ids=("1", "3"))
@pytest.mark.parametrize("words", PARTS, ids=lambda words: "-".join(words[1::2]))
def test_density_is_zero_outside_with_batches_of_any_size(folder, tmp_path, words, engine):
    check(folder, tmp_path / "out", (*words, *engine))


@pytest.mark.parametrize("words", FLAT, ids=lambda words: words[1])
def test_density_is_zero_outside_with_normal_equations(folder, tmp_path, words):
    check(folder, tmp_path / "out", (*words, *NORMAL))


def test_jitter_does_not_carry_density_over_the_edge(folder, tmp_path):
    """Voxel centres move by up to one and a half voxels here, into the mask and out of it."""
    check(folder, tmp_path / "out", (*NORMAL, "-O", "jitter=3"))


def test_density_is_zero_outside_where_poses_are_corrected(folder, tmp_path):
    check(
        folder,
        tmp_path / "out",
        ("--deform", "rigid", "--workflow", "poses", "-O", "steps=20", "-W", "rounds=1"),
    )


@pytest.mark.slow
def test_density_is_zero_outside_in_every_map_of_a_motion(tmp_path):
    """Those of the run, of states with their half maps, and on the way between them. A lobe swings
    along the mask's flat side.
    """
    write(tmp_path, 240, 60.0, snr=6.0)
    truth, pixel = mrc.read(tmp_path / "truth.mrc")
    box = len(truth)
    half = mask.sphere(box, pixel, 0.42 * box * pixel, 2 * pixel)
    half[..., : box // 2] = 0  # x < 0
    mrc.write(tmp_path / "half.mrc", half, pixel)
    words = (
        "--deform",
        "bending-field",
        "-D",
        "latent=1",
        "-D",
        "points=5",
        "-R",
        "levels=4",
        "--mask",
        tmp_path / "half.mrc",
    )
    quick = ("--workflow", "motion", "-O", "steps=40", "-W", "nodes=3", "-W", "dimensions=1")
    outcome = instamap(
        "reconstruct", tmp_path / "particles.star", "-o", tmp_path / "run", *words, *quick
    )
    assert outcome.code == 0 and "no motion" not in outcome.out, outcome
    outcome = instamap(
        "states", tmp_path / "run", "-o", tmp_path / "states", "--kmeans", 2, "--frames", 2
    )
    assert outcome.code == 0, outcome
    found = maps(tmp_path / "run") | maps(tmp_path / "states")
    found = {name: values for name, values in found.items() if not name.endswith("_mask")}
    states = {f"state_00{k}{end}" for k in (1, 2) for end in ("", "_half1", "_half2")}
    assert found.keys() >= {"map", "half1", "half2", "morph_001", "morph_002"} | states
    for name, values in found.items():
        assert leak(values, half) == 0, f"{name} has density outside of the mask"
        assert (values[half > 0.5] != 0).all(), f"{name} has holes"
    assert correlation(found["state_001"], found["state_002"], half > 0.5) < 0.99, (
        "nothing has moved"
    )


@pytest.mark.parametrize("name", BENDING)
def test_particles_that_have_moved_stay_inside(folder, name):
    """The mask is that of the place where density is, not of the place in the common map from which
    it comes.
    """
    half = mrc.read(folder / "half.mrc")[0]
    generator = torch.Generator().manual_seed(0)
    model = compose(
        default_parts(name),
        Scene(BOX, PIXEL, count=3, mask=half, noise_variance=torch.ones(1, BOX // 2 + 1)),
    )
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator))
        views = Views.of(rotations.random(3, generator=generator, dtype=torch.float32))
        z = model.deformation.latent(views, torch.randn(3, BOX, BOX, generator=generator))
        x = grids.voxel_centres(BOX, PIXEL).reshape(-1, 3)
        density = model.density(x.expand(3, -1, -1), z)
        assert (model.deformation(x.expand(3, -1, -1), z) - x).norm(dim=-1).max() > 0.1 * PIXEL, (
            "nothing has moved"
        )
    window = half.flatten()
    far = torch.nn.functional.max_pool3d(half[None], 3, 1, 1).flatten() == 0
    assert (density[:, far] == 0).all() and (density[:, window > 0.5] != 0).all()
    assert (
        density[:, window == 0].abs().max() < 1e-5 * density.abs().max()
    )  # a voxel centre is known to rounding
