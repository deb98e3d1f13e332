"""Wrong poses come back: derivatives and evidence in closed form, the names that `rigid` has, the
STAR file, whole runs.
"""

import json
import math
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
import torch
from support.command import instamap

from instamap.data import writers
from instamap.data.formats import star as read_star
from instamap.data.particles import Particles
from instamap.geometry import grids, rotations
from instamap.maps import mrc
from instamap.model import compose, default_parts
from instamap.plugin.choice import choose
from instamap.poses import correction
from instamap.poses.expansion import Expansion, Images, Reference, refine
from instamap.poses.pose_prior import Prior
from instamap.scene import Batch, Scene, Views
from instamap.statistics.particle_statistics import Coarse
from instamap.testing.scenes import Gaussians
from instamap.workflows.poses import resolved
from instamap.workflows.settings import Settings

BOX = 24
PIXEL = 4.0
WIDTH = 4.0
CENTRES = torch.nn.functional.normalize(
    torch.randn(9, 3, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
)
CENTRES *= torch.linspace(12, 32, 9, dtype=torch.float64)[:, None]
MASSES = torch.tensor([3.0, 1, 2, 1, 2, 1, 4, 2, 1], dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def density() -> torch.Tensor:
    """The blobs as a map "D D D" [z, y, x]."""
    square = (
        (grids.voxel_centres(BOX, PIXEL, dtype=torch.float64)[..., None, :] - CENTRES)
        .square()
        .sum(-1)
    )
    return (torch.exp(-square / (2 * WIDTH**2)) @ MASSES).float()


def images(views: Views) -> torch.Tensor:
    """The blobs' projections "n D D" in closed form: one at x lands at (A x)[:2] - origin."""
    where = (CENTRES @ views.rotation.mT)[..., :2] - views.origin[:, None]
    a = grids.axis(BOX, PIXEL, dtype=torch.float64)
    x, y = (torch.exp(-((a - where[..., i, None]) ** 2) / (2 * WIDTH**2)) for i in (0, 1))
    return math.sqrt(2 * math.pi) * WIDTH * torch.einsum("npy,npx,p->nyx", y, x, MASSES)


def poses(count: int, seed: int = 0) -> Views:
    return Views.of(
        rotations.random(count, generator=seeded(seed)), 4 * normal(count, 2, seed=seed + 1)
    )


def wrong(count: int, angle: float, shift: float, seed: int = 5) -> torch.Tensor:
    """Corrections "n 5" with `angle` degrees about each axis and `shift` Å along each."""
    return normal(count, 5, seed=seed) * torch.tensor(
        [math.radians(angle)] * 3 + [shift] * 2, dtype=torch.float64
    )


def away(given: Views, truth: Views) -> tuple[float, float]:
    """Rms of the angle in degrees and of the shift in Å between poses."""
    turn = rotations.to_rotvec(given.rotation.double().mT @ truth.rotation).norm(dim=1)
    shift = (given.origin - truth.origin).norm(dim=1)
    return float(torch.rad2deg(turn).square().mean().sqrt()), float(shift.square().mean().sqrt())


class Held:
    """A set of images in memory, as what reads particles wants them."""

    def __init__(self, seen: torch.Tensor, views: Views):
        self.seen = seen.float()
        self.views = views
        self.box = BOX
        self.pixel_size = PIXEL
        self.premultiplied = False

    def batch(self, rows):
        return Batch(self.seen[rows], self.views[rows].to(torch.float32))


def held_against(
    truth: Views, given: Views, noise: float, limit: float = BOX / 2, seed: int = 7
) -> Images:
    seen = images(truth)
    seen = seen + noise * seen.std() * normal(*seen.shape, seed=seed)
    variance = torch.full((1, BOX // 2 + 1), float((max(noise, 1e-2) * seen.std()) ** 2))
    rows = torch.arange(len(given))
    return Images(Coarse.read(Held(seen, given), rows, variance, rows), given, limit)


# Rotations


@pytest.mark.parametrize("tilt", [None, 0.0, math.pi])
def test_angles_and_vectors_give_their_rotation_back(tilt):
    angles = normal(50, 3) * 2
    if tilt is not None:
        angles[:, 1] = tilt
    turn = rotations.from_euler(*angles.unbind(-1))
    assert torch.allclose(
        rotations.from_euler(*rotations.to_euler(turn).unbind(-1)), turn, atol=1e-7
    )
    vector = normal(50, 3, seed=1) * torch.logspace(-9, 0, 50)[:, None]
    assert torch.allclose(
        rotations.to_rotvec(rotations.from_rotvec(vector)), vector, atol=1e-12, rtol=1e-6
    )


# What one image says


def test_the_expansion_is_the_derivative_of_the_likelihood():
    truth = poses(5)
    one = held_against(truth, truth, 0.5)
    reference = Reference(density())
    z = wrong(5, 3.0, 3.0)
    found = one.expand(reference, z)
    for i, size in enumerate(
        (2e-3, 2e-3, 2e-3, 0.05, 0.05)
    ):  # values are float32 sums of hundreds of nats
        step = torch.zeros(5, 5, dtype=torch.float64)
        step[:, i] = size
        up, down = (
            one.expand(reference, correction.followed(z, sign * step)).value for sign in (1, -1)
        )
        slope = (up - down) / (2 * size)
        assert torch.allclose(
            slope,
            found.gradient[:, i],
            rtol=0.02,
            atol=0.01 * float(found.gradient[:, i].abs().max()),
        ), i


def test_gauss_newton_finds_poses_that_were_known():
    truth = poses(40)
    reference = Reference(density())
    given = correction.corrected(truth, wrong(40, 3.0, 4.0))
    found = refine(
        held_against(truth, given, 0.05),
        reference,
        torch.zeros(40, 5).double(),
        Prior(1.0, 100.0),
        6,
    )
    before = away(given, truth)
    after = away(correction.corrected(given, found.z), truth)
    assert before[0] > 4 and before[1] > 4
    assert after[0] < before[0] / 8 and after[1] < before[1] / 20, (before, after)


def test_a_tight_prior_leaves_poses_alone():
    truth = poses(6)
    reference = Reference(density())
    given = correction.corrected(truth, wrong(6, 3.0, 4.0))
    found = refine(
        held_against(truth, given, 1.0), reference, torch.zeros(6, 5).double(), Prior(1e-6, 1e-6), 3
    )
    assert float(found.z.abs().max()) < 1e-3


def test_no_step_leads_down():
    truth = poses(30)
    reference = Reference(density())
    given = correction.corrected(truth, wrong(30, 40.0, 20.0))  # too far for a parabola
    prior = Prior(10.0, 1000.0)
    one = held_against(truth, given, 0.3)
    heights = [
        refine(one, reference, torch.zeros(30, 5).double(), prior, steps).value
        for steps in (0, 1, 2, 4)
    ]
    for low, high in zip(heights[:-1], heights[1:], strict=True):
        assert (high >= low - 1e-2).all()


def test_a_correction_is_what_rigid_calls_one():
    count = 4
    views = poses(count)
    z = wrong(count, 5.0, 6.0)
    scene = Scene(
        box=BOX, pixel_size=PIXEL, count=count, noise_variance=torch.ones(1, BOX // 2 + 1)
    )
    model = (
        compose(
            {
                **default_parts("rigid"),
                "deformation": choose("deformation", "rigid", ["angle=3", "shift=2"]),
            },
            scene,
        )
        .double()
        .eval()
    )
    blobs = Gaussians(
        0.5 * CENTRES, MASSES, WIDTH
    )  # nothing near the sphere beyond which rays see nothing
    model.field = lambda z=None: blobs if z is None else lambda x: blobs(model.deformation(x, z))
    with torch.no_grad():
        still, _ = model.project(correction.corrected(views, z))
        model.deformation.table.copy_(correction.as_rigid(views, z) / model.deformation.unit)
        moved, _ = model.project(views)
        model.deformation.table.zero_()
        plain, _ = model.project(views)
    size = float(still.abs().max())
    assert float((moved - still).abs().max()) < 1e-4 * size  # of the blobs' tails beyond the sphere
    assert float((plain - still).abs().max()) > 0.3 * size


# The prior


def _quadratic(mean: torch.Tensor, stiffness: float) -> Expansion:
    """log p(z) = -½ stiffness |z - mean|², expanded elsewhere."""
    z = normal(*mean.shape, seed=11)
    off = z - mean
    return Expansion(
        z,
        -0.5 * stiffness * off.square().sum(1),
        -stiffness * off,
        stiffness * torch.eye(5).double().expand(len(z), 5, 5),
    )


def test_the_evidence_is_the_integral():
    mean = normal(7, 5)
    prior = Prior(0.5, 2.0)
    stiffness = 3.0
    wide = stiffness * torch.tensor([0.25] * 3 + [4.0] * 2, dtype=torch.float64) + 1
    expected = -0.5 * (wide.log() + stiffness * mean.square() / wide).sum(1)
    assert torch.allclose(prior.evidence(_quadratic(mean, stiffness)), expected)


def test_widths_are_estimated_and_nothing_is_taken_for_nothing():
    stiffness = 1.0
    width = torch.tensor([1.5] * 3 + [3.0] * 2, dtype=torch.float64)
    seen = normal(4000, 5) * width + normal(
        4000, 5, seed=1
    )  # what was there, and errors of variance 1 / stiffness
    found = Prior(1.0, 1.0).estimate(_quadratic(seen, stiffness))
    assert found.angle == pytest.approx(1.5, rel=0.05) and found.shift == pytest.approx(
        3.0, rel=0.05
    )
    nothing = Prior(1.0, 1.0).estimate(_quadratic(normal(4000, 5, seed=2), stiffness))
    assert nothing.angle < 0.25 and nothing.shift < 0.25


# The STAR file


def _set(folder, views: Views, noise: float = 1.0):
    """A set on disk in RELION's older form (pixels) with columns and a table of its own."""
    seen = images(views)
    seen = (seen + noise * seen.std() * normal(*seen.shape, seed=7)).float().numpy()
    folder.mkdir()
    with mrcfile.new(folder / "images.mrcs") as file:
        file.set_data(seen)
        file.set_image_stack()
    angles = torch.rad2deg(rotations.to_euler(views.rotation)).tolist()
    names = (
        "fooLabel",
        "rlnImageName",
        "rlnAngleRot",
        "rlnAngleTilt",
        "rlnAnglePsi",
        "rlnOriginX",
        "rlnOriginY",
        "rlnPixelSize",
        "rlnVoltage",
        "rlnSphericalAberration",
        "rlnAmplitudeContrast",
        "rlnDefocusU",
        "rlnDefocusV",
        "rlnDefocusAngle",
    )
    optics = (PIXEL, 300.0, 0.0, 1.0, 0.0, 0.0, 0.0)  # contrast transfer of 1 everywhere
    rows = [
        (f"00{i}", f"{i + 1}@images.mrcs", *a, *(o / PIXEL for o in origin), *optics)
        for i, (a, origin) in enumerate(zip(angles, views.origin.tolist(), strict=True))
    ]
    lines = [
        "data_images",
        "",
        "loop_",
        *(f"_{name}" for name in names),
        *(" ".join(map(str, row)) for row in rows),
    ]
    lines += ["", "data_foo", "", "loop_", "_fooBar", "1.50", ""]
    (folder / "particles.star").write_text("\n".join(lines))
    return folder / "particles.star"


def test_the_star_file_keeps_all_but_poses(tmp_path):
    views = poses(6)
    path = _set(tmp_path / "set", views)
    particles = Particles.open(path)
    z = wrong(6, 5.0, 6.0)
    z[2] = 0
    corrected = correction.corrected(views, z)
    writers.write_poses(particles, corrected, (z != 0).any(1), tmp_path / "set" / "new.star")
    new = read_star.read(tmp_path / "set" / "new.star")
    table = correction.corrected(views, z)
    assert torch.allclose(new.rotation, table.rotation, atol=1e-6)
    assert torch.allclose(new.origin, table.origin, atol=1e-5)
    one, two = (
        starfile.read(
            tmp_path / "set" / n,
            always_dict=True,
            parse_as_string=["fooLabel", "fooBar", "rlnAngleRot", "rlnOriginX"],
        )
        for n in ("particles.star", "new.star")
    )
    assert list(one) == list(two) and list(one["images"]) == list(two["images"])
    assert (one["images"]["fooLabel"] == two["images"]["fooLabel"]).all() and two["foo"][
        "fooBar"
    ].tolist() == ["1.50"]
    same = (one["images"]["rlnAngleRot"] == two["images"]["rlnAngleRot"]).tolist()
    assert same == [False, False, True, False, False, False]  # to the letter


# Whole runs

QUICK = ("--workflow", "poses", "-O", "steps=150", "-R", "levels=4")


def _run(star_file, rounds):
    """A run that holds out more than usual, as the set is small."""
    (config := star_file.with_name("settings.toml")).write_text("held_out = 0.2\n")
    words = ("--config", config, "--deform", "rigid", *QUICK, "-W", f"rounds={rounds}")
    run = instamap("reconstruct", star_file, "-o", star_file.with_name("out"), *words)
    assert run.code == 0, run.err
    return run, Particles.open(star_file.with_name("out") / "particles_refined.star").views


def test_a_run_brings_poses_back(tmp_path):
    truth = poses(400)
    given = correction.corrected(truth, wrong(400, 3.0, 4.0))
    path = _set(tmp_path / "set", given)
    _restack(tmp_path / "set", truth)
    run, refined = _run(path, 2)
    before = away(given, truth)
    after = away(refined, truth)
    assert after[0] < before[0] / 1.4 and after[1] < before[1] / 4, (
        before,
        after,
    )  # maps of 160 images each say no more
    said = json.loads((tmp_path / "set" / "out" / "poses.json").read_text())
    assert said["corrected"] and said["rounds"][1]["angle"] == pytest.approx(3.0, rel=0.3)
    assert said["rounds"][1]["shift"] == pytest.approx(4.0, rel=0.2)
    assert "poses: corrected by" in run.out and "engine          poses" in run.err


def _restack(folder, views: Views, noise: float = 1.0) -> None:
    """The images of other views in the place of those in a set."""
    seen = images(views)
    seen = (seen + noise * seen.std() * normal(*seen.shape, seed=7)).float().numpy()
    with mrcfile.open(folder / "images.mrcs", "r+") as file:
        file.set_data(np.asarray(seen))


def test_right_poses_are_left_as_they_are(tmp_path):
    truth = poses(200)
    path = _set(tmp_path / "set", truth, noise=1.5)
    run, refined = _run(path, 1)
    assert torch.allclose(refined.rotation, truth.rotation, atol=1e-6) and torch.allclose(
        refined.origin, truth.origin, atol=1e-5
    )
    assert "poses: left as they were given" in run.out


def test_bodies_are_read_from_files_and_fitted_by_images(tmp_path):
    path = _set(tmp_path / "set", poses(12))
    x = grids.voxel_centres(BOX, PIXEL)[..., 0]
    for name, side in (("left", -1), ("right", 1)):
        mrc.write(tmp_path / f"{name}.mrc", (0.5 + side * x / 8).clamp(0, 1), PIXEL)
    bodies = f"bodies={tmp_path / 'left.mrc'},{tmp_path / 'right.mrc'}"
    words = ("reconstruct", path, "-o", tmp_path / "out", "--deform", "rigid", "-D", bodies)
    run = instamap(*words, "--objective", "images", "-O", "steps=2", "-O", "batch=2")
    assert run.code == 0, run.err
    missing = instamap(*words[:-1], "bodies=nowhere.mrc", "--force")
    assert "nowhere.mrc" in missing.refusal


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--workflow", "poses"), "choose --deform rigid"),
        (
            ("--workflow", "poses", "--deform", "rigid", "-D", "from=image"),
            "from is 'image'; choose -D from=table, or --engine images",
        ),
        (
            ("--workflow", "poses", "--deform", "rigid", "-D", "strain=2"),
            "no place for strain=2; leave it out, or choose --engine images",
        ),
        (
            ("--workflow", "poses", "--deform", "rigid", "-D", "learning_rate=0.1"),
            "no place for learning_rate=0.1",
        ),
        (
            ("--workflow", "poses", "--deform", "rigid", "--likelihood", "correlation"),
            "choose gaussian",
        ),
        (("--workflow", "poses", "--deform", "rigid", "-D", "bodies=a.mrc,b.mrc"), "as a whole"),
        (("--workflow", "poses", "--deform", "rigid", "--stage", "steps=3"), "stages"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, words, said):
    path = _set(tmp_path / "set", poses(4))
    assert said in instamap("reconstruct", path, "-o", tmp_path / "out", *words).refusal


@pytest.mark.parametrize(
    "item",
    [
        "magnitude=1",
        "total_variation=1",
        "strain=1",
        "learning_rate=0.1",
        "from=image",
        "bodies=a.mrc",
    ],
)
def test_the_automatic_engine_is_one_that_heeds_every_option(item):
    """Closed forms read neither weights of regularisers nor a step size."""

    def rigid(*items):
        return {**default_parts("rigid"), "deformation": choose("deformation", "rigid", [*items])}

    assert (
        resolved(
            Settings(Path("x.star"), parts=rigid("angle=2", "shift=3", "from=table"))
        ).engine.name
        == "poses"
    )
    assert resolved(Settings(Path("x.star"), parts=rigid(item))) is None
