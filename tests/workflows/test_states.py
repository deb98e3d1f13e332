"""Maps of states are where a known field puts them; movies keep their camera and grays; pose is
found in coordinates where it is.
"""

import csv
import errno
import json
import math
import os
import re
import shutil
from pathlib import Path
from unittest import mock

import mrcfile
import numpy as np
import pytest
import torch
from PIL import Image
from support.command import Outcome, instamap
from support.motions import BOX, PIXEL, REACH, blob, save, save_maps

from instamap.cli import progress_bars
from instamap.cli.progress_bars import ProgressBars
from instamap.errors import DataError, OptionError
from instamap.geometry import grids, rotations
from instamap.maps import local_resolution, mrc
from instamap.motion import conformation_maps, pose_dependence
from instamap.motion.kmeans import kmeans, nearest
from instamap.motion.motion_model import MotionModel
from instamap.report import coordinates_plot, movie, render
from instamap.tensor_files import write_safetensors

COUNT = 60
KEPT = ".instamap-kept"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def particles(tmp_path_factory, write_star, make_particle, make_optics) -> Path:
    """A STAR file of COUNT particles whose images are nowhere: coordinates need none."""
    angle = 180 * torch.rand(COUNT, 2, generator=seeded(), dtype=torch.float64)
    rows = [
        make_particle(
            rlnImageName=f"{i + 1}@gone.mrcs",
            rlnAngleRot=float(rot),
            rlnAngleTilt=float(tilt),
            fooLabel="007",
        )
        for i, (rot, tilt) in enumerate(angle)
    ]
    path = tmp_path_factory.mktemp("particles") / "particles.star"
    return write_star(
        path, {"optics": [make_optics()], "particles": rows, "foo": [{"fooBar": "1.50"}]}
    )


@pytest.fixture(scope="module")
def line(tmp_path_factory, particles) -> Path:
    """A motion with one coordinate, from -1 to 1 in the order of the particles."""
    folder = tmp_path_factory.mktemp("motion") / "line"
    save(folder, particles, torch.linspace(-1, 1, COUNT, dtype=torch.float64)[:, None])
    return folder


@pytest.fixture(scope="module")
def plane(tmp_path_factory, particles) -> Path:
    """A motion with two coordinates, in four clumps at the corners of a square."""
    folder = tmp_path_factory.mktemp("motion") / "plane"
    corner = torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]], dtype=torch.float64).repeat(
        COUNT // 4, 1
    )
    save(
        folder,
        particles,
        corner + 0.05 * torch.randn(COUNT, 2, generator=seeded(), dtype=torch.float64),
    )
    return folder


# Which states


def test_clumps_are_found_and_counted():
    middles = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 9.0]], dtype=torch.float64)
    points = middles.repeat_interleave(torch.tensor([10, 20, 30]), 0) + 0.1 * torch.randn(
        60, 2, generator=seeded(), dtype=torch.float64
    )
    found = min(
        (kmeans(points, 3, seeded(s)) for s in range(5)),
        key=lambda c: float(torch.cdist(points, c).amin(1).sum()),
    )
    size = torch.bincount(nearest(points, found))
    assert sorted(size.tolist()) == [10, 20, 30]
    for place, number in zip(found, size, strict=True):
        where = {10: 0, 20: 1, 30: 2}[int(number)]
        torch.testing.assert_close(place, middles[where], atol=0.1, rtol=0)


def test_clusters_are_those_of_the_seed_and_in_order():
    points = torch.randn(200, 2, generator=seeded(), dtype=torch.float64) * torch.tensor([3.0, 1.0])
    one = conformation_maps.clusters(points, 6, 1)
    same = conformation_maps.clusters(points, 6, 1)
    assert torch.equal(one, same) and one.shape == (6, 2)
    assert (one[:, 0].diff() > 0).all(), "the first axis is the principal one by far"
    for k in range(6):  # Lloyd's fixed point
        torch.testing.assert_close(points[nearest(points, one) == k].mean(0), one[k])
    with pytest.raises(
        OptionError,
        match="kmeans is 4; it must be from 1 to 3, the number of different coordinates",
    ):
        conformation_maps.clusters(torch.tensor([0.0, 1, 1, 2])[:, None], 4, 0)


def test_a_path_in_one_coordinate_leaves_out_the_ends():
    z = torch.linspace(-1, 1, 101, dtype=torch.float64)[torch.randperm(101, generator=seeded())][
        :, None
    ]
    torch.testing.assert_close(
        conformation_maps.path(z, 7, 0),
        torch.linspace(-0.96, 0.96, 7, dtype=torch.float64)[:, None],
    )
    with pytest.raises(OptionError, match="path is 1; it must be 2 states or more"):
        conformation_maps.path(z, 1, 0)


def test_a_path_in_two_coordinates_follows_a_bow():
    """A half circle, whose first principal axis is its diameter: the path goes round, where a
    straight one would cross the middle.
    """
    angle = torch.linspace(0, math.pi, 2000, dtype=torch.float64)
    bow = torch.stack([torch.cos(angle), torch.sin(angle)], -1)
    found = conformation_maps.path(
        bow + 0.02 * torch.randn(2000, 2, generator=seeded(), dtype=torch.float64), 20, 0
    )
    assert found.shape == (20, 2) and ((found.norm(dim=1) - 1).abs() < 0.12).all()
    assert (found[:, 0].diff() > 0).all() and found[0, 0] < -0.85 and found[-1, 0] > 0.85


def test_points_along_corners_are_at_equal_distances():
    corners = torch.tensor([[0.0, 0], [3, 0], [3, 1]], dtype=torch.float64)
    torch.testing.assert_close(
        conformation_maps.through(corners, 5),
        torch.tensor([[0.0, 0], [1, 0], [2, 0], [3, 0], [3, 1]], dtype=torch.float64),
    )
    assert torch.equal(conformation_maps.through(corners[:1], 2), corners[[0, 0]])
    assert torch.equal(conformation_maps.through(corners[[0, 0, 1]], 2), corners[:2])


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("0.5,1\n-1,2e-1\n", [[0.5, 1.0], [-1.0, 0.2]]),
        ("\ufeffz2 , z1\n1,2\n\n", [[2.0, 1.0]]),
        ("state,file,z1,z2,particles\n1,state_001.mrc,3,4,\n", [[3.0, 4.0]]),
    ],
)
def test_states_are_read_from_numbers_or_named_columns(tmp_path, text, rows):
    (tmp_path / "z.csv").write_text(text, encoding="utf-8")
    assert torch.equal(
        conformation_maps.read(tmp_path / "z.csv", 2), torch.tensor(rows, dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1\n2\n", "has 1 numbers a row, but particles have 2 coordinates; give 2 a row"),
        ("1,2\n1,2,3\n", "row 2 of .* has 3 values, others 2"),
        ("z1\n1\n", "has coordinates z1, particles have z1, z2"),
        ("z1,z2,z3\n1,2,3\n", "has coordinates z1, z2, z3, particles have z1, z2"),
        ("a,b\n1,2\n", "has coordinates nowhere, particles have z1, z2"),
        ("1,2\n1,two\n", "row 2 of .* has a value that is no number"),
        ("z1,z2\n1,2\n1,\n", "row 2 of .* has a coordinate that is no number"),
        ("z1,z2\n", "has no row of numbers"),
        ("", "has no row of numbers"),
        (None, "can't be read"),
    ],
)
def test_other_states_are_refused(tmp_path, text, said):
    if text is not None:
        (tmp_path / "z.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        conformation_maps.read(tmp_path / "z.csv", 2)


# Their maps


def test_the_blob_is_where_the_field_moves_it(line, plane, tmp_path):
    """By whole voxels, where interpolation is exact: thirds of 12 Å. The sphere's soft edge begins
    at 22 Å.
    """
    deep = grids.voxel_centres(BOX, PIXEL).norm(dim=-1) < 22
    for folder, z in ((line, [[-1.0], [1 / 3]]), (plane, [[1 / 3, -2 / 3], [0.0, 1.0]])):
        motion = MotionModel.open(folder)
        z = torch.tensor(z, dtype=torch.float64)
        done = conformation_maps.write(motion, z, tmp_path)
        for state, (first, *second) in zip(done, z.tolist(), strict=True):
            expected = blob((REACH * first, REACH * second[0] if second else 0.0, 0.0))
            for end in ("", "_half1", "_half2"):
                map, pixel_size = mrc.read(tmp_path / state.file.replace(".mrc", f"{end}.mrc"))
                torch.testing.assert_close(map[deep], expected[deep], atol=1e-4, rtol=0)
            assert pixel_size == PIXEL and state.z == (first, *second)


def test_half_maps_tell_the_resolution(tmp_path, particles):
    """Equal halves agree to Nyquist; noise of their own in each ends it; noise alone has none to
    speak of (the median of five: first shells hold a few independent components, which may agree by
    chance); of an empty half nobody knows.
    """
    latents = torch.zeros(COUNT, 1, dtype=torch.float64)
    z = torch.zeros(1, 1, dtype=torch.float64)
    pairs = torch.randn(5, 2, BOX, BOX, BOX, generator=seeded(1))
    noise = pairs[0]

    def worth(*densities) -> float | None:
        [state] = conformation_maps.write(
            save(tmp_path / "motion", particles, latents, densities), z, tmp_path
        )
        assert state.particles == COUNT
        return state.resolution

    assert worth(blob(), blob()) == 2 * PIXEL
    assert (
        2 * PIXEL
        < worth(*(blob() + 0.02 * n for n in noise))
        < worth(*(blob() + 0.2 * n for n in noise))
        < BOX * PIXEL
    )
    assert sorted(worth(*pair) for pair in pairs)[2] > 0.5 * BOX * PIXEL
    assert worth(blob(), 0 * blob()) is None


def test_one_fit_has_no_half_maps(tmp_path, particles):
    motion = save(
        tmp_path / "motion", particles, torch.zeros(COUNT, 1, dtype=torch.float64), (blob(),)
    )
    [state] = conformation_maps.write(motion, torch.zeros(1, 1, dtype=torch.float64), tmp_path)
    assert state.resolution is None and {p.name for p in tmp_path.glob("*.mrc")} == {
        "state_001.mrc"
    }


# The camera


def test_the_camera_sees_a_blob_where_it_is():
    """To the right, up, and hidden behind nothing: the middle of what is not white is where the
    axes say, to 1 % of the picture.
    """
    right, up, away = render.axes()
    torch.testing.assert_close(torch.linalg.cross(right, up), -away)
    place = (8.0, -6.0, 10.0)
    camera = render.Camera(size=48, reach=30.0, level=0.5, solvent=0.0)
    picture = render.surface(blob(place, 16, PIXEL), PIXEL, camera)
    assert picture.shape == (144, 144, 3) and picture.min() >= 0 and picture.max() <= 1
    assert torch.equal(picture[0, 0], torch.ones(3)), "the background is white"
    row, column = (picture.min(-1).values < 0.9).nonzero().double().mean(0)
    there = torch.tensor(place)
    assert column / 143 == pytest.approx(0.5 + float(right @ there) / 60, abs=0.015)
    assert row / 143 == pytest.approx(0.5 - float(up @ there) / 60, abs=0.015)
    radius = math.sqrt(2 * math.log(2)) * 6  # where the Gaussian is one half
    area = float((picture.min(-1).values < 0.9).double().mean()) * 60**2
    assert area == pytest.approx(math.pi * radius**2, rel=0.25), (
        "smoothing and the soft edge change it a little"
    )


def test_light_comes_from_the_upper_left():
    picture = render.surface(
        blob((0, 0, 0), 16, PIXEL), PIXEL, render.Camera(48, 15.0, 0.5, 0.0)
    ).sum(-1)
    middle = 71
    step = 25
    assert picture[middle - step, middle - step] > picture[middle + step, middle + step] + 0.1


def test_what_is_in_front_hides_what_is_behind():
    away = render.axes()[2]
    camera = render.Camera(48, 30.0, 0.5, 0.0)
    far = blob(tuple((14 * away).tolist()))
    near = blob(tuple((-14 * away).tolist()))
    both, alone = (render.surface(map, PIXEL, camera)[71, 71] for map in (near + far, near))
    behind = render.surface(far, PIXEL, camera)[71, 71]
    assert (both - alone).abs().max() < 0.02 < (behind - alone).abs().max()


def test_the_threshold_parts_two_levels():
    values = torch.cat(
        [torch.randn(9000, generator=seeded()), 10 + torch.randn(1000, generator=seeded(1))]
    )
    level, solvent = render.threshold(values)
    assert 3 < level < 7 and abs(solvent) < 0.1


def test_nothing_is_to_be_seen_in_a_flat_map():
    assert render.threshold(torch.ones(5)) == (2.0, 1.0)
    assert torch.equal(
        render.surface(torch.ones(16, 16, 16), PIXEL, render.Camera(16, 20.0, 2.0, 1.0)),
        torch.ones(48, 48, 3),
    )


# The movie


@pytest.fixture
def filmed(tmp_path):
    """filmed(maps) writes a movie of them, and says what all frames share, and of the MP4."""

    def film(maps: list, **options) -> tuple[movie.MovieCamera, str]:
        files = [tmp_path / f"{i}.mrc" for i in range(len(maps))]
        for file, map in zip(files, maps, strict=True):
            mrc.write(file, map, PIXEL)
        z = torch.linspace(-1, 1, len(maps), dtype=torch.float64)[:, None]
        return movie.write(files, z, z, tmp_path, rays=32, **options)

    return film


def pixels(frame: Path) -> np.ndarray:
    with Image.open(frame) as image:
        return np.asarray(image.convert("L"), dtype=float)


def test_all_frames_have_one_size_one_camera_and_the_same_grays(filmed, tmp_path):
    """A map of half the density is half as dark, and one farther out appears farther out, at the
    same size.
    """
    looked, _ = filmed([blob(), 0.5 * blob(), blob((12.0, 0.0, 0.0))])
    frames = [pixels(tmp_path / f"frame_{i:03d}.png") for i in (1, 2, 3)]
    assert {f.shape for f in frames} == {(540, 960)} and not (tmp_path / "frame_004.png").exists()
    shadow = [f[90:205, 550:670] for f in frames]  # the projection along z, with its axis left out
    dark = [255 - s[10:-10, 10:-10].min() for s in shadow]
    assert (
        dark[0] > 230
        and dark[1] == pytest.approx(0.5 * dark[0], rel=0.15)
        and dark[2] == pytest.approx(dark[0], rel=0.05)
    )
    across = [
        float(
            (255 - s[10:-10, 10:-10]).sum(0)
            @ np.arange(s.shape[1] - 20)
            / (255 - s[10:-10, 10:-10]).sum()
        )
        for s in shadow
    ]
    assert (
        across[2] - across[0] == pytest.approx(125 * 12 / (BOX * PIXEL), rel=0.2)
        and abs(across[1] - across[0]) < 1
    )
    surface = [f[:, :530] < 235 for f in frames]
    assert (
        surface[2].sum() == pytest.approx(surface[0].sum(), rel=0.1)
        and surface[1].sum() < surface[0].sum()
    )
    assert looked.surface.reach == pytest.approx(
        movie.CAMERA_MARGIN * movie._reach(blob((12.0, 0, 0)), PIXEL, looked.surface.level)
    )


def test_the_gif_runs_there_and_back(filmed, tmp_path):
    filmed([blob((x, 0.0, 0.0)) for x in (-8.0, 0.0, 4.0, 8.0)])
    with Image.open(tmp_path / "movie.gif") as gif:
        assert gif.n_frames == 6 and gif.size == (960, 540) and gif.info["loop"] == 0
        shown = []
        for number in range(6):
            gif.seek(number)
            shown.append(np.asarray(gif.convert("L"), dtype=float))
    for there, back in ((1, 5), (2, 4)):
        assert np.abs(shown[there] - shown[back]).max() == 0
    assert np.abs(shown[0] - shown[3]).max() > 50
    assert np.abs(shown[1] - pixels(tmp_path / "frame_002.png")).mean() < 3, (
        "256 colours are enough"
    )


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_an_mp4_is_made_with_ffmpeg(filmed, tmp_path):
    assert filmed([blob((x, 0.0, 0.0)) for x in (-4.0, 0.0, 4.0)])[1] == "movie.mp4"
    assert (tmp_path / "movie.mp4").read_bytes()[4:8] == b"ftyp"


def test_without_ffmpeg_the_rest_is_there(filmed, tmp_path, monkeypatch):
    monkeypatch.setattr(movie.shutil, "which", lambda name: None)
    assert filmed([blob(), 0.5 * blob()])[1] == "no movie.mp4: ffmpeg is not installed"
    assert (tmp_path / "movie.gif").exists() and not (tmp_path / "movie.mp4").exists()


def test_an_ffmpeg_that_fails_is_quoted(filmed, tmp_path, monkeypatch):
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\ntouch movie.mp4\necho 'no encoder' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(movie.shutil, "which", lambda name: str(broken))
    assert filmed([blob(), 0.5 * blob()])[1] == f"no movie.mp4: {broken} fails: no encoder"
    assert (tmp_path / "movie.gif").exists() and not (tmp_path / "movie.mp4").exists()


# Coordinates and pose


def test_the_share_that_pose_explains():
    """Of what is all pose, half pose, no pose, and nothing. With 2,000 particles chance alone would
    explain 8/1999.
    """
    turned = rotations.random(2000, generator=seeded())
    x, _, z = turned[:, 2].unbind(-1)
    pose = x * z + 0.5 * z
    free = torch.randn(2000, generator=seeded(1), dtype=torch.float64)
    pose, free = (v / v.std() for v in (pose, free))
    found = pose_dependence.explained_by_view(
        torch.stack([3 * pose, pose + free, free, 0 * free], -1), turned
    )
    assert (
        found[0] == pytest.approx(1.0)
        and found[1] == pytest.approx(0.5, abs=0.04)
        and found[2] < 0.01
        and found[3] is None
    )
    assert pose_dependence.explained_by_view(free[:9, None], turned[:9]) == [None]


def test_in_plane_turns_do_not_count():
    """Psi is not in the direction of view."""
    psi = 2 * math.pi * torch.rand(2000, generator=seeded(), dtype=torch.float64)
    tilt = torch.acos(2 * torch.rand(2000, generator=seeded(1), dtype=torch.float64) - 1)
    turned = rotations.from_euler(torch.zeros_like(psi), tilt, psi)
    assert pose_dependence.explained_by_view(torch.cos(psi)[:, None], turned)[0] < 0.01
    assert pose_dependence.explained_by_view(torch.cos(tilt)[:, None], turned)[0] == pytest.approx(
        1.0
    )


def test_angles_in_pictures_are_those_of_the_file():
    angle = torch.deg2rad(
        torch.tensor([[30.0, 50.0, 70.0], [-120.0, 170.0, 5.0]], dtype=torch.float64)
    )
    found = coordinates_plot.viewing_angles(rotations.from_euler(*angle.unbind(-1)))
    torch.testing.assert_close(
        found["rot"].values, torch.tensor([30.0, -120.0], dtype=torch.float64)
    )
    torch.testing.assert_close(
        found["tilt"].values, torch.tensor([50.0, 170.0], dtype=torch.float64)
    )


# The command


def table(file: Path) -> list[dict]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def test_clusters_from_the_command_line(plane, tmp_path):
    out = tmp_path / "states"
    done = instamap("states", plane, "--kmeans", 4, "--frames", 3, "-o", out, "--seed", 1)
    assert done.code == 0, done.err
    names = {p.name for p in out.iterdir()}
    maps = {f"state_{i:03d}{end}.mrc" for i in (1, 2, 3, 4) for end in ("", "_half1", "_half2")}
    rest = {"states.csv", "states.json", "latents.png", "particles_latents.star", "movie.gif"}
    frames = {
        f"{kind}_{i:03d}.{end}"
        for i in (1, 2, 3)
        for kind, end in (("morph", "mrc"), ("frame", "png"))
    }
    assert names - {"movie.mp4"} == maps | rest | frames
    rows = table(out / "states.csv")
    assert [row["file"] for row in rows] == [f"state_{i:03d}.mrc" for i in (1, 2, 3, 4)]
    assert sum(int(row["particles"]) for row in rows) == COUNT and {
        row["resolution"] for row in rows
    } == {f"{2 * PIXEL:.2f}"}
    assert (
        re.search(r"state_001.mrc +[-+]\d", done.out)
        and "explains: z1 " in done.out
        and "--datadir" not in done.out
    )
    said = json.loads((out / "states.json").read_text())
    assert (
        said["states"] == {"kmeans": 4, "seed": 1}
        and len(said["leakage"]) == 2
        and 0 < said["level"] < 1
    )
    for state, number in (
        (1, 1),
        (4, 3),
    ):  # the morph begins with the first state and ends with the last
        one, two = (
            mrc.read(out / f"{name}.mrc")[0]
            for name in (f"state_{state:03d}", f"morph_{number:03d}")
        )
        torch.testing.assert_close(one, two, atol=1e-5, rtol=0)
    assert (
        mrc.read(out / "morph_002.mrc")[0] - mrc.read(out / "morph_001.mrc")[0]
    ).abs().max() > 0.1


def test_the_table_of_states_asks_for_the_same_states(line, tmp_path):
    first = tmp_path / "first"
    second = tmp_path / "second"
    assert instamap("states", line, "--path", 3, "-o", first).code == 0
    assert {p.name for p in first.glob("frame_*.png")} == {
        f"frame_00{i}.png" for i in (1, 2, 3)
    } and not list(first.glob("morph*"))
    assert [float(row["z1"]) for row in table(first / "states.csv")] == pytest.approx(
        [-0.96, 0, 0.96], abs=1e-6
    )
    assert (
        instamap("states", line, "--at", first / "states.csv", "--frames", 0, "-o", second).code
        == 0
    )
    assert not list(second.glob("frame*")) and not (second / "movie.gif").exists()
    for name in ("state_001.mrc", "state_003_half2.mrc"):
        with mrcfile.open(first / name) as one, mrcfile.open(second / name) as two:
            np.testing.assert_allclose(one.data, two.data, atol=1e-5)


def test_every_state_has_a_local_resolution_if_asked(line, tmp_path):
    """All in one window, that of the coarsest state, so that their maps can be compared."""
    out = tmp_path / "states"
    done = instamap("states", line, "--path", 2, "--frames", 0, "--local", "-o", out)
    assert done.code == 0 and "local, median (tenths)" in done.out, done
    states = table(out / "states.csv")
    coarsest = max(float(row["resolution"]) for row in states)
    for number in (1, 2):
        halves = [mrc.read(out / f"state_00{number}_half{half}.mrc")[0] for half in (1, 2)]
        bands = local_resolution.choose_bands(len(halves[0]), PIXEL, coarsest)
        expected = local_resolution.estimate(*halves, PIXEL, bands)
        found, pixel_size = mrc.read(out / f"state_00{number}_locres.mrc")
        assert pixel_size == PIXEL
        assert torch.allclose(found, expected.resolution, rtol=0.01)
        assert mrcfile.validate(out / f"state_00{number}_locres.mrc")


def test_states_without_half_maps_have_no_local_resolution(tmp_path, particles):
    save(tmp_path / "run", particles, torch.linspace(-1, 1, 60)[:, None], (blob(),))
    out = tmp_path / "states"
    done = instamap("states", tmp_path / "run", "--path", 2, "--frames", 0, "--local", "-o", out)
    assert done.code == 0 and not list(out.glob("*_locres*")), done


def test_compressed_states_hold_the_same_maps(line, tmp_path):
    plain = tmp_path / "plain"
    packed = tmp_path / "packed"
    words = ("states", line, "--path", 2)
    assert instamap(*words, "-o", plain).code == 0
    done = instamap(*words, "--compress", "--local", "-o", packed)
    assert done.code == 0 and "state_*.mrc.gz" in done.out, done
    assert not list(packed.glob("*.mrc")) and (packed / "frame_002.png").exists()
    for file in plain.glob("*.mrc"):
        assert torch.equal(mrc.read(file)[0], mrc.read(packed / f"{file.name}.gz")[0])
    assert [row["file"] for row in table(packed / "states.csv")] == [
        "state_001.mrc.gz",
        "state_002.mrc.gz",
    ]
    assert (packed / "state_001_locres.mrc.gz").exists()
    again = instamap(*words, "-o", packed, "--force")
    assert again.code == 0 and not list(packed.glob("*.gz")), "of the earlier states"


def test_states_are_replaced_whole(line, tmp_path):
    out = tmp_path / "states"
    assert (
        instamap("states", line, "--path", 2, "-o", out).code == 0
        and (out / "frame_002.png").exists()
    )
    assert (
        "already holds states; choose another or add --force"
        in instamap("states", line, "-o", out).refusal
    )
    (out / "notes.txt").write_text("mine")
    assert instamap("states", line, "--kmeans", 1, "-o", out, "--force").code == 0
    left = {p.name for p in out.iterdir()}
    assert left == {
        "state_001.mrc",
        "state_001_half1.mrc",
        "state_001_half2.mrc",
        "states.csv",
        "states.json",
        "latents.png",
        "particles_latents.star",
        "notes.txt",
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--kmeans", 2, "--path", 3],
            "states are chosen in two ways; give one of --kmeans, --path and --at",
        ),
        (["--path", 3, "--frames", 5], "frames is 5, but those of --path are its 3 states"),
        (["--kmeans", 99], "kmeans is 99; it must be from 1 to 60"),
        (["--at", "none.csv"], "'none.csv' can't be read"),
        (["--particles", "none.star"], "STAR file 'none.star' does not exist"),
    ],
)
def test_mistakes_are_answered_in_a_line_and_leave_nothing(line, tmp_path, words, said):
    assert said in instamap("states", line, "-o", tmp_path / "out", *words).refusal
    assert not (tmp_path / "out").exists() and not list(tmp_path.iterdir())


def test_a_folder_without_motion_and_one_with_a_run(line, tmp_path):
    assert "holds no motion" in instamap("states", tmp_path, "-o", tmp_path / "out").refusal
    assert (
        f"output folder '{line}' holds a run; choose another"
        in instamap("states", line, "-o", line).refusal
    )


def test_a_star_file_of_other_particles_is_refused(line, tmp_path, write_star, particle, optics):
    other = write_star(tmp_path / "other.star", {"optics": [optics], "particles": [particle]})
    said = instamap("states", line, "-o", tmp_path / "out", "--particles", other).refusal
    assert (
        "has 1 rows, but the run has coordinates of 60; give the STAR file that was fitted" in said
    )


def test_without_a_number_there_are_as_many_states_as_coordinates(tmp_path, particles):
    """A run that found no motion has one; a number that is asked for is not changed."""
    for count, said in (
        (
            1,
            "all particles have the same coordinates (the run found no motion): there is one state",
        ),
        (3, "particles have 3 different coordinates: there are 3 states instead of the usual 8"),
    ):
        run = tmp_path / f"run{count}"
        out = tmp_path / f"states{count}"
        save(run, particles, (torch.arange(COUNT, dtype=torch.float64) % count)[:, None])
        done = instamap("states", run, "-o", out, "--frames", 2)
        assert done.code == 0 and said in done.out.splitlines(), done
        assert (
            len(table(out / "states.csv"))
            == count
            == json.loads((out / "states.json").read_text())["states"]["kmeans"]
        )
        asked = instamap("states", run, "-o", tmp_path / "more", "--kmeans", 8).refusal
        assert (
            f"kmeans is 8; it must be from 1 to {count}, the number of different coordinates"
            in asked
        )


def test_enough_coordinates_have_the_usual_states_without_a_word(line, tmp_path):
    done = instamap("states", line, "-o", tmp_path / "states", "--frames", 0)
    assert (
        done.code == 0
        and len(table(tmp_path / "states" / "states.csv")) == 8
        and "usual" not in done.out
    )


def test_a_file_is_no_folder(line, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert (
        f"output '{tmp_path / 'file'}' is a file; name a folder"
        in instamap("states", line, "-o", tmp_path / "file").refusal
    )


def test_states_with_maps_of_their_own_are_written(tmp_path, particles):
    """At a state's own coordinates, its own map has all but e^-4 of the weight, with two neighbours
    at twice the width.
    """
    save_maps(
        tmp_path / "run", particles, torch.linspace(-1, 1, COUNT, dtype=torch.float64)[:, None]
    )
    (tmp_path / "z.csv").write_text("0.5\n")
    assert (
        instamap(
            "states", tmp_path / "run", "-o", tmp_path / "out", "--at", tmp_path / "z.csv"
        ).code
        == 0
    )
    map = mrc.read(tmp_path / "out" / "state_001.mrc")[0]
    shares = torch.tensor([1.0, math.exp(-2), math.exp(-2), math.exp(-8)])
    expected = sum(
        w * blob((REACH * z, 0, 0))
        for w, z in zip(shares / shares.sum(), (0.5, 0.0, 1.0, -0.5), strict=True)
    )
    torch.testing.assert_close(map, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["half1.safetensors", "half2.safetensors", "latents.npy"])
@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.999])
def test_a_file_that_is_cut_off_is_named(tmp_path, particles, name, kept):
    """After some bytes or a share of them."""
    save(tmp_path / "run", particles, torch.zeros(COUNT, 1, dtype=torch.float64))
    file = tmp_path / "run" / name
    whole = file.read_bytes()
    file.write_bytes(whole[: int(kept if kept >= 1 else kept * len(whole))])
    said = instamap("states", tmp_path / "run", "-o", tmp_path / "out").refusal
    assert (
        f"'{file}' is damaged or does not belong to this run (" in said
        and "copy it again, or repeat the run" in said
    )
    assert not (tmp_path / "out").exists()


def test_a_half_of_other_parts_and_settings_without_parts_are_named(tmp_path, particles):
    save(tmp_path / "run", particles, torch.zeros(COUNT, 1, dtype=torch.float64))
    toml = tmp_path / "run" / "run.toml"
    text = toml.read_text()
    toml.write_text(text.replace("points = 5", "points = 6"))
    assert (
        f"'{tmp_path / 'run' / 'half1.safetensors'}' is damaged or does not belong to this run ("
        in instamap("states", tmp_path / "run").refusal
    )
    toml.write_text(text.partition("[deformation]")[0])
    assert (
        f"settings file '{toml}' names no deformation"
        in instamap("states", tmp_path / "run").refusal
    )
    write_safetensors(tmp_path / "run" / "half1.safetensors", {}, {"scene": 3})
    toml.write_text(text)
    line = instamap("states", tmp_path / "run").refusal
    assert "half1.safetensors' is damaged" in line and "another version" in line


def test_models_of_earlier_versions_are_refused_and_not_loaded(tmp_path, particles):
    save(tmp_path / "run", particles, torch.zeros(COUNT, 1, dtype=torch.float64))
    for name in ("half1", "half2"):
        (tmp_path / "run" / f"{name}.safetensors").unlink()
    (tmp_path / "run" / "half1.pt").write_bytes(b"a pickle")
    line = instamap("states", tmp_path / "run", "-o", tmp_path / "out").refusal
    assert "earlier version of instamap (half1.pt); repeat the run with this version" in line


def test_one_bit_in_a_model_and_coordinates_that_are_no_numbers_are_noticed(tmp_path, particles):
    run = tmp_path / "run"
    save(run, particles, torch.zeros(COUNT, 1, dtype=torch.float64))
    model = run / "half1.safetensors"
    whole = model.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 0x40
    model.write_bytes(flipped)
    line = instamap("states", run, "-o", tmp_path / "out").refusal
    assert f"'{model}' is damaged" in line and "(its checksum differs)" in line
    model.write_bytes(whole)
    z = np.zeros((COUNT, 1))
    z[3] = np.nan
    np.save(run / "latents.npy", z)
    for words in (("states", run), ("select", run, "--within=-9,9")):
        line = instamap(*words, "-o", tmp_path / "out").refusal
        assert "latents.npy' is damaged" in line and "coordinates of particle 4 are [nan]" in line


# A run that is stopped


def stopped(after: str, count: int, *words) -> Outcome:
    """A run of the command that Ctrl-C stops when so many of its maps are done."""

    class Stopping(ProgressBars):
        def counted(self, what: str, done: int, total: int) -> None:
            super().counted(what, done, total)
            if what == after and done == count:
                raise KeyboardInterrupt

    with mock.patch.object(progress_bars, "ProgressBars", Stopping):
        outcome = instamap("states", *words)
    assert outcome.code == 130, outcome
    return outcome


@pytest.mark.parametrize("after", ["maps", "maps of the morph"])
def test_states_go_on_bit_for_bit(plane, tmp_path, monkeypatch, after):
    """What was done is not computed again, and nothing hidden is left."""
    words = (plane, "--kmeans", 4, "--frames", 3)
    out = tmp_path / "out"
    said = stopped(after, 2, *words, "-o", out)
    assert "the same command with --resume goes on" in said.err
    assert [path.name for path in out.iterdir()] == [KEPT]
    assert instamap("states", *words, "-o", tmp_path / "unbroken").code == 0
    made = []
    whole = conformation_maps.maps_at
    monkeypatch.setattr(conformation_maps, "maps_at", lambda *at: made.append(at) or whole(*at))
    done = instamap("states", *words, "-o", out, "--resume")
    assert done.code == 0, done
    assert len(made) == (2 if after == "maps" else 0)
    first, second = (
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in (out, tmp_path / "unbroken")
    )
    assert first == second


def test_a_state_without_half_maps_goes_on_too(tmp_path, particles):
    latents = torch.linspace(-1, 1, COUNT, dtype=torch.float64)[:, None]
    save(tmp_path / "run", particles, latents, (blob(),))
    words = (tmp_path / "run", "--path", 3, "--frames", 0, "-o", tmp_path / "out")
    stopped("maps", 2, *words)
    assert instamap("states", *words, "--resume").code == 0
    assert [row["resolution"] for row in table(tmp_path / "out" / "states.csv")] == ["", "", ""]


def test_other_states_do_not_go_on(line, tmp_path):
    out = tmp_path / "out"
    words = (line, "--frames", 0, "-o", out)
    stopped("maps", 2, *words, "--path", 3)
    refusal = instamap("states", *words, "--path", 4, "--resume").refusal
    assert "give the same settings, or leave out --resume" in refusal
    assert (out / KEPT / "state-2.npz").exists()
    assert instamap("states", *words, "--path", 4).code == 0
    assert not (out / KEPT).exists()
    assert "nothing to go on from" in instamap("states", *words, "--resume", "--force").refusal


def test_a_damaged_kept_map_is_made_again(line, tmp_path):
    words = (line, "--path", 3, "--frames", 0, "-o")
    stopped("maps", 2, *words, tmp_path / "out")
    (tmp_path / "out" / KEPT / "state-1.npz").write_bytes(b"PK")
    assert instamap("states", *words, tmp_path / "out", "--resume").code == 0
    assert instamap("states", *words, tmp_path / "unbroken").code == 0
    for name in ("state_001.mrc", "state_001_half2.mrc", "states.csv"):
        same = (tmp_path / "unbroken" / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == same, name


def test_a_refused_write_names_the_place_of_the_file(line, tmp_path, monkeypatch):
    out = tmp_path / "out"
    replace = os.replace

    def full(source, target):
        if Path(target).name == "state_002.mrc":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    done = instamap("states", line, "--path", 3, "--frames", 0, "-o", out)
    assert done.code == 2
    assert f"'{out / 'state_002.mrc'}' cannot be written: no space is left" in done.err
    assert ".instamap-new" not in done.err
