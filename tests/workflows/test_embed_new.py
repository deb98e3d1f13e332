"""New particles along a known motion: where their blob is, images of one particle together; the
command and what it refuses.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import starfile
import torch
from support import blobs
from support.blobs import seeded
from support.command import instamap
from support.motions import PIXEL, Blobs, save
from torch import Tensor

from instamap.motion.motion_model import MotionModel
from instamap.simulate import random_poses
from instamap.simulate.exposure import Exposure
from instamap.simulate.write_set import write_set
from instamap.workflows import embed_new

COUNT = 80
SNR = 0.3  # images, two of each particle in turn: 1 and 41, 2 and 42, ...
HALF = COUNT // 2
TRUTH = torch.linspace(-1, 1, HALF, dtype=torch.float64).repeat(2)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """new/particles.star with images of known coordinates, and run/: their motion, which was fitted
    to others.
    """
    folder = tmp_path_factory.mktemp("infer")
    g = torch.Generator().manual_seed(0)
    drawn = random_poses.uniform(
        COUNT, shift=PIXEL, defocus=(2e3, 4e3), generator=g
    )  # so little that a blob keeps some contrast
    written = write_set(folder / "new", Blobs(TRUTH), drawn, Exposure(SNR), generator=g)
    tables = starfile.read(written.star)
    tables["particles"]["rlnGroupName"] = [f"tilt{i % HALF}" for i in range(COUNT)]
    starfile.write(tables, written.star, overwrite=True)
    motion = save(
        folder / "run", Path("gone.star"), torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]
    )
    halves = []
    for half in motion.halves:
        with torch.no_grad():
            half.model.representation.values *= written.gain
        halves.append(
            replace(half, coarse_maps=torch.stack([half.conformation(z) for z in half.nodes]))
        )
    MotionModel(halves, motion.latents, motion.settings).save(folder / "run")
    return folder


def placed(world: Path, out: Path, *words, run: str = "run") -> Tensor:
    done = instamap("infer", world / run, world / "new" / "particles.star", "-o", out, *words)
    assert done.code == 0, done.err
    return torch.from_numpy(np.load(out / "latents.npy"))[:, 0]


def together(world: Path) -> None:
    """run-together/: the same motion, of a run in which images of one rlnGroupName were one
    particle.
    """
    motion = MotionModel.open(world / "run")
    (world / "run-together").mkdir(exist_ok=True)
    motion.save(world / "run-together")
    text = (world / "run" / "run.toml").read_text()
    (world / "run-together" / "run.toml").write_text('group_by = "rlnGroupName"\n' + text)


def test_particles_are_placed_where_their_blob_is(world, tmp_path):
    z = placed(world, tmp_path / "out")
    # A view along the motion shows none of it; all others tell the coordinate to a fraction of the
    # spacing of states, which is 0.5.
    assert (
        float((z - TRUTH).abs().median()) < 0.1
        and float(torch.corrcoef(torch.stack([z, TRUTH]))[0, 1]) > 0.95
    )
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "inferred.json",
        "latents.npy",
        "particles_latents.star",
    }
    found = starfile.read(tmp_path / "out" / "particles_latents.star")["particles"]
    np.testing.assert_allclose(found["instamapLatent1"], z, atol=1e-6)
    assert list(found["rlnGroupName"]) == [f"tilt{i % HALF}" for i in range(COUNT)]


def test_images_of_one_particle_share_coordinates_as_in_the_run(world, tmp_path):
    together(world)
    alone = placed(world, tmp_path / "alone")
    shared = placed(world, tmp_path / "shared", run="run-together")
    assert torch.equal(shared[:HALF], shared[HALF:]) and not torch.equal(alone[:HALF], alone[HALF:])

    def rms(z):
        return float((z - TRUTH).square().mean().sqrt())

    assert rms(shared) < rms(alone), "two images know more than one"
    assert torch.equal(placed(world, tmp_path / "named", "--group-by", "rlnGroupName"), shared)
    assert torch.equal(
        placed(world, tmp_path / "each", "--group-by", "rlnImageName", run="run-together"), alone
    )


def test_particles_are_read_in_pieces_that_part_none(world, monkeypatch):
    """Chunks of five images, whose particles have two each."""
    motion = MotionModel.open(world / "run")
    some = embed_new.open_particles(motion, world / "new" / "particles.star")
    unit = embed_new.particle_numbers(motion, some, "rlnGroupName")
    whole = embed_new.embed(motion, some, unit)
    monkeypatch.setattr(embed_new, "IMAGES_AT_ONCE", 5)
    torch.testing.assert_close(
        embed_new.embed(motion, some, unit), whole, atol=1e-5, rtol=0
    )  # of basis changes in single precision


def test_where_images_are_is_said_when_they_would_not_be_found(world, tmp_path):
    done = instamap(
        "infer", world / "run", world / "new" / "particles.star", "-o", tmp_path / "out"
    )
    hint = f"images are named as before: read particles_latents.star with --datadir {world / 'new'}"
    assert (
        done.code == 0
        and hint in done.out.splitlines()
        and f"placed {COUNT} particles; " in done.out
    )
    done = instamap(
        "infer",
        world / "run",
        world / "new" / "particles.star",
        "-o",
        world / "new" / "placed",
        "--group-by",
        "rlnGroupName",
    )
    assert (
        done.code == 0
        and "--datadir" not in done.out
        and f"placed {HALF} particles in {COUNT} images; " in done.out
    )


def test_mistakes_are_answered_before_the_work_and_leave_nothing(world, tmp_path, monkeypatch):
    monkeypatch.setattr(embed_new, "embed", lambda *given: pytest.fail("the work has begun"))
    new = world / "new" / "particles.star"
    (tmp_path / "file").write_text("mine")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "latents.npy").write_text("mine")

    def call(*words):
        return instamap("infer", world / "run", new, *words).refusal

    before = {
        path: path.read_bytes()
        for folder in (tmp_path, world / "run")
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert f"output '{tmp_path / 'file'}' is a file; name a folder" in call("-o", tmp_path / "file")
    assert f"output folder '{world / 'run'}' holds a run; choose another" in call(
        "-o", world / "run"
    )
    assert f"output folder '{world / 'run'}' holds a run; choose another" in call(
        "-o", world / "run", "--force"
    )
    assert "has a file 'latents.npy' that coordinates would replace" in call("-o", tmp_path / "old")
    said = call("-o", tmp_path / "out", "--group-by", "rlnTomoName")
    assert (
        "has no column rlnTomoName, by which the run tells images of one particle; name another"
        " with --group-by" in said
    )
    assert {path: path.read_bytes() for path in before} == before and not (
        tmp_path / "out"
    ).exists()


def test_the_particles_file_itself_is_never_replaced(world, tmp_path):
    out = tmp_path / "out"
    placed(world, out)
    said = instamap(
        "infer",
        world / "run",
        out / "particles_latents.star",
        "-o",
        out,
        "--datadir",
        world / "new",
        "--force",
    ).refusal
    assert "which would be replaced; choose another folder, or copy the file" in said


def test_coordinates_are_replaced_when_asked(world, tmp_path):
    placed(world, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    placed(world, tmp_path / "out", "--force")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine" and not list(
        tmp_path.glob(".out*")
    )


def test_the_mean_of_both_fits_is_taken_in_shared_coordinates(world, tmp_path):
    """The second fit's own coordinates run the other way and are 0.5 on: the outcome stays."""
    motion = MotionModel.open(world / "run")
    first, second = motion.halves
    turned = replace(
        second, turn=-torch.eye(1), offset=torch.full((1,), 0.5), nodes=0.5 - second.nodes
    )
    some = embed_new.open_particles(motion, world / "new" / "particles.star")
    plain = embed_new.embed(motion, some)
    found = embed_new.embed(replace(motion, halves=[first, turned]), some)
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=0)


def test_factors_of_contrast_are_those_that_images_were_made_with():
    """Images of one map, times factors that differ by 30 %: found to what the noise leaves open."""
    g = seeded(3)
    count = 400
    factor = 1 + 0.3 * torch.randn(count, generator=g)
    there = torch.zeros(count, 1, 3)
    images = blobs.images(there, factor[:, None], 0.3, g)
    maps = torch.stack([blobs.blob(0.0, 0.0, 0.0)] * 2)
    half = SimpleNamespace(contrast_spread=0.3, coarse_maps=maps)
    found = embed_new.with_contrast(images, half)
    mean = (found.data / images.data).real.nanmedian(1).values
    square = (found.power / images.power).nanmedian(1).values
    relative = factor / factor.mean()
    assert float((mean - relative).square().mean().sqrt()) < 0.1
    assert float(torch.corrcoef(torch.stack([mean, relative]))[0, 1]) > 0.95
    assert (square >= mean.square() - 1e-5).all(), "its uncertainty is in the square"
    same = SimpleNamespace(contrast_spread=0.0, coarse_maps=maps)
    assert embed_new.with_contrast(images, same) is images


def test_dim_and_bright_particles_are_placed_alike(world):
    """A motion of a run with contrast, in images some of which are half and others 1.6 times as
    strong: their coordinates come nearer to what they are than without factors.
    """
    motion = MotionModel.open(world / "run")
    opened = embed_new.open_particles(motion, world / "new" / "particles.star")
    strength = torch.tensor([0.5, 1.6]).repeat(COUNT // 2)
    original = opened.images

    def images(rows):
        return original(rows) * strength[rows, None, None]

    opened.images = images
    errors = []
    for spread in (0.0, 0.5):
        halves = [replace(half, contrast_spread=spread) for half in motion.halves]
        z = embed_new.embed(replace(motion, halves=halves), opened)[:, 0]
        errors.append(float((z - TRUTH).square().mean().sqrt()))
    assert errors[1] < errors[0], errors
