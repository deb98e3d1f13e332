"""Wrong poses come back: the STAR file with corrected ones, whole runs, and what is refused."""

import json
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
import torch
from support.command import Outcome, instamap
from support.posed_blobs import BOX, PIXEL, noisy, poses, rms_error, wrong

from instamap.data import writers
from instamap.data.formats import star as read_star
from instamap.data.particles import Particles
from instamap.geometry import grids, rotations
from instamap.maps import mrc
from instamap.plugin.choice import choose
from instamap.poses import correction
from instamap.scene import Views
from instamap.workflows.choose import resolve
from instamap.workflows.settings import Settings

# The STAR file


def _set(folder: Path, views: Views, noise: float = 1.0) -> Path:
    """A set on disk in RELION's older form (pixels) with columns and a table of its own."""
    seen = noisy(views, noise).float().numpy()
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


def _run(star_file: Path, rounds: int) -> tuple[Outcome, Views]:
    """A run that holds out more than usual, as the set is small."""
    out = star_file.with_name("out")
    words = ("--held-out", 0.2, "--deform", "rigid", *QUICK, "-W", f"rounds={rounds}")
    run = instamap("reconstruct", star_file, "-o", out, *words)
    assert run.code == 0, run.err
    return run, Particles.open(out / "particles_refined.star").views


def test_a_run_brings_poses_back(tmp_path):
    truth = poses(400)
    given = correction.corrected(truth, wrong(400, 3.0, 4.0))
    path = _set(tmp_path / "set", given)
    _restack(tmp_path / "set", truth)
    run, refined = _run(path, 2)
    before = rms_error(given, truth)
    after = rms_error(refined, truth)
    # maps of 160 images each say no more
    assert after[0] < before[0] / 1.4 and after[1] < before[1] / 4, (before, after)
    said = json.loads((tmp_path / "set" / "out" / "poses.json").read_text())
    assert said["corrected"] and said["rounds"][1]["angle"] == pytest.approx(3.0, rel=0.3)
    assert said["rounds"][1]["shift"] == pytest.approx(4.0, rel=0.2)
    assert "poses: corrected by" in run.out
    assert "workflow        poses  rounds=2" in run.err


def _restack(folder, views: Views, noise: float = 1.0) -> None:
    """The images of other views in the place of those in a set."""
    seen = noisy(views, noise).float().numpy()
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
    assert missing.code == 2
    assert "nowhere.mrc" in missing.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--workflow", "poses"), "choose --deform rigid"),
        (
            ("--workflow", "poses", "--deform", "rigid", "-D", "from=image"),
            "from is 'image'; choose -D from=table, or --objective images",
        ),
        (
            ("--workflow", "poses", "--deform", "rigid", "-D", "strain=2"),
            "no place for strain=2; leave it out, or choose --objective images",
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
def test_the_automatic_workflow_is_one_that_heeds_every_option(item: str) -> None:
    """Closed forms read neither weights of regularisers nor a step size."""
    usual = _resolved("angle=2", "shift=3", "from=table")
    assert (usual.workflow.name, usual.objective.name) == ("poses", "normal")
    other = _resolved(item)
    assert (other.workflow.name, other.objective.name) == ("map", "images")


def _resolved(*items: str) -> Settings:
    rigid = choose("deformation", "rigid", items)
    return resolve(Settings(Path("x.star"), deformation=rigid))
