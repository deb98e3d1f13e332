"""Coordinates in STAR files beside everything that was there; selections by bounds and polygons."""

import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.command import instamap
from support.motions import save

from instamap.data import writers
from instamap.data.formats import star as reading
from instamap.data.particles import Particles
from instamap.errors import DataError, OptionError
from instamap.motion import selection

LATENTS = torch.tensor(
    [[-0.9, 0.1], [0.25, -0.4], [0.5, 0.9], [0.1, 0.2], [0.45, -1.25]], dtype=torch.float64
)
ODD = {
    "fooLabel": "000012",
    "fooTiny": "1.2e-11",
    "fooLong": "0.12345678901234567",
    "fooText": "a/b-c",
    "rlnOriginXAngst": "-1.250000",
    "rlnOriginYAngst": "0.5",
    "fooNothing": "nan",
    "instamapLatent7": "0.5",
}


@pytest.fixture
def project(tmp_path, write_star, write_stack, make_particle, make_optics) -> Path:
    """A project with images in Extract/, five particles in Refine/ that name them from the
    project's root, and a motion of them.
    """
    write_stack(
        tmp_path / "Extract" / "stack.mrcs",
        np.random.default_rng(0).normal(size=(5, 16, 16)).astype(np.float32),
    )
    rows = [make_particle(rlnImageName=f"{i}@Extract/stack.mrcs", **ODD) for i in (3, 1, 5, 2, 4)]
    (tmp_path / "Refine").mkdir()
    optics = make_optics(rlnImageSize=16, rlnImageDimensionality=2)
    tables = {
        "foo": [{"fooBar": "x", "fooNumber": "1.50"}] * 2,
        "optics": [optics],
        "particles": rows,
    }
    star = write_star(tmp_path / "Refine" / "particles.star", tables)
    save(tmp_path / "motion", star, LATENTS)
    return tmp_path


def words(path: Path) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Columns and rows of every table as they are written, by name."""
    found = {}
    for text in path.read_text().split("data_")[1:]:
        name, _, body = text.partition("\n")
        lines = [
            line
            for line in body.splitlines()
            if line.strip() and not line.startswith("#") and line.strip() != "loop_"
        ]
        found[name] = (
            [line.split()[0] for line in lines if line.startswith("_")],
            [s.split() for s in lines if not s.startswith("_")],
        )
    return found


def check_kept(star: Path, given: Path, rows: list[int]) -> None:
    """All but the new columns is what was given, to the letter; that of an earlier run is gone."""
    before = words(given)
    after = words(star)
    assert list(after) == list(before)
    head, values = before.pop("particles")
    new_head, new_values = after.pop("particles")
    assert after == before
    gone = head.index("_instamapLatent7")
    assert new_head == [*head[:gone], *head[gone + 1 :], "_instamapLatent1", "_instamapLatent2"]
    for row, found in zip(rows, new_values, strict=True):
        assert found[:-2] == [*values[row][:gone], *values[row][gone + 1 :]]
        assert [float(v) for v in found[-2:]] == LATENTS[row].tolist()


# The STAR file


def test_every_row_table_and_column_is_kept(project):
    out = project / "states"
    done = instamap("states", project / "motion", "--kmeans", 1, "-o", out)
    assert done.code == 0, done.err
    given = project / "Refine" / "particles.star"
    check_kept(out / "particles_latents.star", given, [0, 1, 2, 3, 4])
    again = reading.read(out / "particles_latents.star")
    assert torch.equal(again.rotation, reading.read(given).rotation)
    found, true = (
        Particles.open(star).images(torch.arange(5))
        for star in (out / "particles_latents.star", given)
    )
    assert torch.equal(found, true)


def test_a_subset_keeps_order_and_everything_else(project):
    done = instamap(
        "select", project / "motion", "--within", "0.2,0.5", "-o", project / "subset.star"
    )
    assert done.code == 0 and done.out == f"3 of 5 particles in {project}/subset.star\n", done
    check_kept(project / "subset.star", project / "Refine" / "particles.star", [1, 2, 4])


def test_a_file_of_one_table_without_a_loop(tmp_path, make_particle):
    row = make_particle(rlnDetectorPixelSize=5.0, rlnMagnification=10000, rlnVoltage=300)
    text = "\ndata_\n\n" + "".join(f"_{name} {value}\n" for name, value in row.items())
    (tmp_path / "one.star").write_text(text)
    writers.write_latents(
        reading.read(tmp_path / "one.star", ctf=False), LATENTS[:1], tmp_path / "new.star"
    )
    lines = (tmp_path / "new.star").read_text().split("data_\n\n")[1].splitlines()
    written = dict(line.split("\t") for line in lines if line)
    expected = {f"_{name}": str(value) for name, value in row.items()}
    latents = {"_instamapLatent1": "-0.900000", "_instamapLatent2": "0.100000"}
    assert list(written.items()) == list({**expected, **latents}.items())


@pytest.mark.skipif(shutil.which("relion_star_handler") is None, reason="RELION is not installed")
def test_relion_reads_it_and_keeps_the_coordinates(project):
    """By relion_star_handler, which would refuse the file, or drop columns that it can't hold."""
    assert (
        instamap(
            "select", project / "motion", "--within", "0.2,", "-o", project / "subset.star"
        ).code
        == 0
    )
    command = [
        "relion_star_handler",
        "--i",
        "subset.star",
        "--o",
        "again.star",
        "--select",
        "rlnAngleRot",
        "--minval",
        "-400",
    ]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [
        line.split()
        for line in (project / "again.star").read_text().partition("data_particles")[2].splitlines()
    ]
    head = [line[0] for line in lines if len(line) == 2 and line[0].startswith("_")]
    rows = [dict(zip(head, line, strict=True)) for line in lines if len(line) == len(head)]
    assert [row["_rlnImageName"] for row in rows] == [f"{i}@Extract/stack.mrcs" for i in (1, 5, 4)]
    found = [[float(row[f"_instamapLatent{i}"]) for i in (1, 2)] for row in rows]
    assert found == LATENTS[[1, 2, 4]].tolist()


def test_where_images_are_is_said_when_they_would_not_be_found(project, tmp_path_factory):
    """Outside the project: the folder that is said finds them. Beside a stack of the same name:
    that would be another.
    """
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = instamap(
        "select", project / "motion", "--within", "0.2,", "-o", elsewhere / "subset.star"
    )
    assert (
        done.code == 0
        and done.out.splitlines()[1]
        == f"images are named as before: read subset.star with --datadir {project}"
    )
    images = Particles.open(elsewhere / "subset.star", datadir=project).images(torch.arange(3))
    true = Particles.open(project / "Refine" / "particles.star").images(torch.tensor([1, 2, 4]))
    assert torch.equal(images, true)
    shutil.copytree(project / "Extract", elsewhere / "Extract")
    assert (
        f"--datadir {project}"
        in instamap(
            "select", project / "motion", "--within", "0.2,", "-o", elsewhere / "two.star"
        ).out
    )


def test_the_datadir_of_the_run_is_said(project, tmp_path_factory):
    (project / "Extract").rename(project / "Moved")
    save(
        project / "motion",
        project / "Refine" / "particles.star",
        LATENTS,
        datadir=str(project / "Moved"),
    )
    out = instamap(
        "select", project / "motion", "--within", "0.2,", "-o", project / "subset.star"
    ).out
    assert f"--datadir {project / 'Moved'}" in out
    shutil.rmtree(project / "Moved")  # images that are gone are not a matter of selecting
    out = instamap(
        "select", project / "motion", "--within", "0.2,", "-o", project / "subset.star", "--force"
    ).out
    assert out == f"3 of 5 particles in {project}/subset.star\n"


# Selections


@pytest.mark.parametrize(
    ("bounds", "rows"),
    [
        (["0.2,0.5"], [1, 2, 4]),
        (["-0.9,0.1"], [0, 3]),
        (["0.25,"], [1, 2, 4]),
        ([",0.1"], [0, 3]),
        ([","], [0, 1, 2, 3, 4]),
        (["0.2,0.5", "-0.5,1"], [1, 2]),
        ([",", "-inf,0"], [1, 4]),
        (["2,3"], []),
    ],
)
def test_bounds(bounds, rows):
    assert selection.within(LATENTS, bounds).nonzero()[:, 0].tolist() == rows


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        (["0.2"], 'within is "0.2"; it must be two numbers'),
        (["a,b"], 'within is "a,b"'),
        (["1,2,3"], 'within is "1,2,3"'),
        (["0.5,0.2"], "the first number must not be above the second"),
        (["nan,1"], "must not be above"),
        ([",", ",", ","], "within is given 3 times, but particles have z1, z2"),
    ],
)
def test_bounds_that_are_none(bounds, said):
    with pytest.raises(OptionError, match=said):
        selection.within(LATENTS, bounds)


@given(st.integers(3, 12), st.integers(0, 2**31))
def test_a_convex_polygon_is_its_half_planes(corners, seed):
    generator = torch.Generator().manual_seed(seed)
    angle = (
        (2 * math.pi * torch.rand(corners, generator=generator, dtype=torch.float64)).sort().values
    )
    ring = torch.stack([torch.cos(angle), torch.sin(angle)], -1)
    points = 3 * torch.rand(500, 2, generator=generator, dtype=torch.float64) - 1.5
    edge = ring.roll(-1, 0) - ring
    off = points[:, None] - ring
    left = edge[:, 0] * off[..., 1] - edge[:, 1] * off[..., 0]
    clear = (left.abs() > 1e-9).all(1)  # on an edge either answer will do
    for polygon in (ring, ring.flip(0)):
        assert torch.equal(selection.inside(points, polygon)[clear], (left > 0).all(1)[clear])


def test_a_polygon_with_a_bay():
    bay = torch.tensor([[0.0, 0], [4, 0], [4, 4], [2, 1], [0, 4]], dtype=torch.float64)
    points = torch.tensor(
        [[2.0, 0.5], [2, 2], [0.5, 3], [3.5, 3], [5, 1], [-1, 0]], dtype=torch.float64
    )
    assert selection.inside(points, bay).tolist() == [True, False, True, True, False, False]


def test_a_lasso_from_the_command_line(project):
    """Around the second and the last particle, in either order of coordinates; with bounds, both
    must hold.
    """
    (project / "plain.csv").write_text("0,0\n0.6,0\n0.6,-2\n0,-2\n")
    (project / "named.csv").write_text("z2,z1\n0,0\n0,0.6\n-2,0.6\n-2,0\n")
    for file in ("plain.csv", "named.csv"):
        out = project / f"{file}.star"
        assert (
            instamap("select", project / "motion", "--lasso", project / file, "-o", out).code == 0
        )
        check_kept(out, project / "Refine" / "particles.star", [1, 4])
    out = project / "both.star"
    assert (
        instamap(
            "select",
            project / "motion",
            "--lasso",
            project / "plain.csv",
            "--within",
            "-1,0.3",
            "-o",
            out,
        ).code
        == 0
    )
    check_kept(out, project / "Refine" / "particles.star", [1])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0,0\n1,1\n", "must have three corners or more"),
        ("0,0,0\n1,0,0\n0,1,0\n", "has 3 columns; it must have two"),
        ("z1,z3\n0,0\n1,1\n1,0\n", "column 'z3', but particles have z1, z2"),
        ("z1,z1\n0,0\n1,1\n1,0\n", "column 'z1' twice"),
        ("x,y\n0,0\n1,1\n1,0\n", "column 'x'"),
        ("z1,z2\n0,0\n1,a\n1,0\n", "of two numbers each"),
    ],
)
def test_lassos_that_are_none(tmp_path, text, said):
    (tmp_path / "lasso.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        selection.lasso(LATENTS, tmp_path / "lasso.csv")


def test_a_lasso_needs_two_coordinates(tmp_path):
    with pytest.raises(
        DataError, match="needs two coordinates, but particles have one; select with --within"
    ):
        selection.lasso(LATENTS[:, :1], tmp_path / "lasso.csv")


def test_what_is_refused_leaves_nothing(project):
    motion = project / "motion"
    out = project / "subset.star"
    assert "give --within or --lasso" in instamap("select", motion, "-o", out).refusal
    assert (
        "none of the 5 particles of"
        in instamap("select", motion, "--within", "5,6", "-o", out).refusal
    )
    assert not out.exists()
    given = project / "Refine" / "particles.star"
    before = given.read_bytes()
    said = instamap("select", motion, "--within", "0.2,", "-o", given, "--force").refusal
    assert "is one of the files that are read" in said and given.read_bytes() == before
    out.write_text("mine")
    assert (
        "is already there" in instamap("select", motion, "--within", "0.2,", "-o", out).refusal
        and out.read_text() == "mine"
    )
    assert (
        "cannot be written"
        in instamap(
            "select", motion, "--within", "0.2,", "-o", project / "no" / "subset.star"
        ).refusal
    )
    given.unlink()
    assert (
        f"STAR file '{given}' does not exist"
        in instamap("select", motion, "--within", "0.2,", "-o", project / "new.star").refusal
    )
