"""Masks: the sphere's formula, files that fit or are refused, and a particle found in noise. Also
the picture of a map.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.command import instamap

from instamap.errors import DataError
from instamap.geometry import grids
from instamap.maps import mask, mrc
from instamap.report import slices

ndimage = pytest.importorskip(
    "scipy.ndimage", reason="scipy is the judge of distances and components"
)


def ball(box: int, centre, radius: float) -> torch.Tensor:
    """A blurred ball about `centre` (x, y, z in voxels from the origin)."""
    return torch.sigmoid(
        2
        * (
            radius
            - (grids.voxel_centres(box, 1.0) - torch.tensor(centre, dtype=torch.float32)).norm(
                dim=-1
            )
        )
    )


@given(
    box=st.integers(4, 17),
    pixel_size=st.floats(0.5, 4),
    radius=st.floats(1, 20),
    edge=st.floats(0, 10),
)
def test_a_sphere_is_one_then_half_a_cosine_then_zero(box, pixel_size, radius, edge):
    made = mask.sphere(box, pixel_size, radius, edge)
    r = grids.voxel_centres(box, pixel_size).norm(dim=-1)
    slack = 1e-3  # voxels on a boundary may fall to either side in float32
    assert (made[r < radius - edge - slack] == 1).all() and (made[r > radius + slack] <= 1e-6).all()
    between = (r > radius - edge + slack) & (r < radius - slack)
    expected = 0.5 + 0.5 * torch.cos(math.pi * (r - radius + edge) / max(edge, slack))
    assert torch.allclose(made[between], expected[between], atol=1e-4)


def test_the_volume_of_a_sphere():
    volume = float(mask.sphere(64, 2.0, 50.0, 0.0).sum()) * 2.0**3
    assert volume == pytest.approx(
        4 / 3 * math.pi * 50.0**3, rel=0.01
    )  # 65,000 voxels; the surface scatters by about its root


def test_a_fitting_mask_is_loaded(tmp_path):
    soft = mask.sphere(8, 2.0, 7.0, 3.0)
    soft[0, 0, 0], soft[4, 4, 4] = -5e-4, 1 + 5e-4  # as interpolation leaves them
    mrc.write(tmp_path / "mask.mrc", soft, 2.01)
    assert torch.equal(mask.load(tmp_path / "mask.mrc", 8, 2.0), soft.clamp(0, 1))


@pytest.mark.parametrize(
    ("value", "box", "pixel_size", "said"),
    [
        (1.0, 10, 2.0, "box of 8, the data of 10"),
        (1.0, 8, 2.1, "pixels of 2 Å, the data of 2.1 Å"),
        (0.0, 8, 2.0, "is empty"),
        (1.1, 8, 2.0, "values from 0 to 1.1"),
        (-0.1, 8, 2.0, "values from -0.1 to 0"),
    ],
)
def test_other_masks_are_refused(tmp_path, value, box, pixel_size, said):
    map = torch.zeros(8, 8, 8)
    map[4] = value
    mrc.write(tmp_path / "mask.mrc", map, 2.0)
    with pytest.raises(DataError, match=f"mask.mrc' .*{said}"):
        mask.load(tmp_path / "mask.mrc", box, pixel_size)


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    density=st.floats(0.05, 0.9),
    seed=st.integers(0, 2**32),
)
def test_components_are_those_of_scipy(shape, density, seed):
    solid = np.random.default_rng(seed).random(shape) < density
    ours = mask._components(torch.from_numpy(solid)).tolist()
    theirs = ndimage.label(solid)[0][solid].tolist()
    pairs = set(zip(ours, theirs, strict=True))
    assert len(pairs) == len(set(ours)) == len(set(theirs)), "one label of ours for each of theirs"


def test_a_maze_is_one_component():
    maze = torch.zeros(
        1, 33, 33, dtype=torch.bool
    )  # a corridor of 560 voxels, which spreading step by step would take 560 rounds
    maze[0, ::2] = True
    maze[0, 1::4, -1] = maze[0, 3::4, 0] = True
    assert len(mask._components(maze).unique()) == 1


@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3), seed=st.integers(0, 2**32), limit=st.integers(1, 8)
)
def test_distances_are_those_of_scipy_up_to_the_limit(shape, seed, limit):
    solid = np.random.default_rng(seed).random(shape) < 0.02
    solid.flat[seed % solid.size] = True
    ours = mask._distance(torch.from_numpy(solid), limit).numpy()
    theirs = ndimage.distance_transform_edt(~solid)
    near = theirs <= limit
    assert np.allclose(ours[near], theirs[near], atol=1e-5) and (ours[~near] > limit).all()


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_the_particle_is_found_in_noise(level):
    particle = ball(48, (0, 0, -8), 9) + ball(48, (0, 6, 6), 8)
    found = mask.from_map(
        particle + level * torch.randn(48, 48, 48, generator=torch.Generator().manual_seed(0)), 3.0
    )
    assert ((found >= 0) & (found <= 1)).all()
    assert (found[particle > 0.5] == 1).all(), "all of the particle is inside"
    distance = ndimage.distance_transform_edt((particle < 0.5).numpy())
    # 3 + 6 voxels are the edge; the 15 Å filter moves the surface by up to 5 voxels, noise by a
    # voxel or two
    assert (found.numpy()[distance > 3 + 6 + 5 + 2] == 0).all(), "and nothing far from it"


def test_large_islands_stay_and_small_ones_go():
    islands = (
        ball(64, (-16, 0, 0), 9) + ball(64, (14, 0, 0), 6) + ball(64, (0, 22, 0), 3)
    )  # volumes as 27 : 8 : 1
    found = mask.from_map(islands, 2.0, low_pass=4.0, extend=1, edge=1)
    assert found[32, 32, 16] == 1 and found[32, 32, 46] == 1 and found[32, 54, 32] == 0


@given(scale=st.floats(1e-3, 1e3), offset=st.floats(-5, 5))
def test_the_unit_of_the_density_does_not_matter(scale, offset):
    map = ball(24, (0, 2, 0), 5)
    there = mask.from_map(scale * (map + offset), 3.0) > 0.5
    assert (
        there != (mask.from_map(map, 3.0) > 0.5)
    ).float().mean() < 1e-3  # voxels at the very threshold, in float32


def test_extend_and_edge_are_voxels():
    map = (grids.voxel_centres(32, 1.0).norm(dim=-1) < 6).float()
    found = mask.from_map(map, 1.0, low_pass=2.0, threshold=0.5, extend=2, edge=4)[16, 16, 16:]
    core = int((map[16, 16, 16:] > 0.5).sum()) - 1  # the last voxel of the ball on this axis
    assert (
        (found[: core + 3] == 1).all()
        and found[core + 4] == pytest.approx(0.5)
        and (found[core + 6 :] == 0).all()
    )


@pytest.mark.parametrize(
    "map", [torch.zeros(16, 16, 16), torch.ones(16, 16, 16), torch.full((16, 16, 16), math.nan)]
)
def test_a_map_without_contrast_is_refused(map):
    with pytest.raises(DataError, match="flat"):
        mask.from_map(map, 2.0)


@pytest.mark.parametrize(
    "map", [torch.zeros(8, 8, 8), torch.randn(9, 9, 9, generator=torch.Generator().manual_seed(0))]
)
def test_a_map_is_drawn(tmp_path, map):
    slices.plot(tmp_path / "map.png", map, 1.5)
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG") and len(
        list(tmp_path.iterdir())
    ) == 1


@given(seed=st.integers(0, 2**32), extend=st.floats(0, 4), edge=st.floats(0, 5))
def test_a_level_then_an_extension_then_an_edge(seed, extend, edge):
    volume = torch.from_numpy(np.random.default_rng(seed).random((11, 11, 11), np.float32))
    made = mask.from_level(volume, 0.99, extend=extend, edge=edge).numpy()
    solid = volume.numpy() >= 0.99
    slack = 1e-5  # distances are the same to float32
    to_solid = ndimage.distance_transform_edt(~solid)
    if (abs(to_solid - extend) < slack).any():
        return  # a voxel on the boundary may fall to either side
    inside = solid if extend == 0 else solid | (to_solid < extend)
    distance = ndimage.distance_transform_edt(~inside)
    expected = np.where(inside, 1.0, 0.0)
    soft = ~inside & (distance < edge)
    expected[soft] = 0.5 + 0.5 * np.cos(np.pi * distance[soft] / edge)
    assert np.allclose(made, expected, atol=1e-4)


def test_of_a_level_dust_can_be_left_out():
    volume = ball(32, (0, 0, 0), 7) + ball(32, (12, 0, 0), 2)
    whole = mask.from_level(volume, 0.5)
    clean = mask.from_level(volume, 0.5, largest_parts=True)
    assert whole[16, 16, 28] == 1 and clean[16, 16, 28] == 0 and clean[16, 16, 16] == 1


@pytest.mark.parametrize(("level", "many"), [(2.0, "no voxel"), (-1.0, "every voxel")])
def test_a_level_outside_the_map_is_refused(level, many):
    with pytest.raises(DataError, match=f"{many} of the map reaches level {level:g}: its values"):
        mask.from_level(ball(12, (0, 0, 0), 3), level)


@given(
    place=st.tuples(*[st.floats(0, 30)] * 3),
    pixel_size=st.floats(0.8, 3),
    radius=st.floats(1, 6),
)
def test_a_point_is_a_ball(place, pixel_size, radius):
    """Coordinates are from the first voxel, x first."""
    point = torch.tensor([place], dtype=torch.float64)
    index = torch.arange(16, dtype=torch.float64) * pixel_size
    z, y, x = torch.meshgrid(index, index, index, indexing="ij")
    distance = (torch.stack([x, y, z], -1) - point).norm(dim=-1)
    inside = distance <= radius
    if not inside.any() or ((distance - radius).abs() < 1e-9).any():
        return  # tested below; a voxel on the boundary may fall to either side
    made = mask.from_points(point, 16, pixel_size, radius=radius)
    assert torch.equal(made > 0.5, inside)


def test_points_outside_the_box_are_refused():
    with pytest.raises(DataError, match="none of 2 points is inside a box of 8 voxels of 2 Å"):
        mask.from_points(torch.full((2, 3), 80.0), 8, 2.0, radius=3.0)


def test_the_command_makes_the_mask_of_a_level(tmp_path):
    volume = ball(32, (0, 0, 4), 8)
    mrc.write(tmp_path / "map.mrc", volume, 2.0, origin=(5.0, 0.0, -3.0))
    out = tmp_path / "mask.mrc"
    words = ("--level", 0.5, "--extend", 2, "--edge", 3)
    done = instamap("mask", tmp_path / "map.mrc", "-o", out, *words)
    assert done.code == 0 and "of the box is inside, 32 voxels of 2 Å" in done.out
    made, pixel_size = mrc.read(out)
    assert torch.equal(made, mask.from_level(volume, 0.5, extend=2, edge=3))
    assert pixel_size == 2.0 and mrc.read_origin(out) == (5.0, 0.0, -3.0)


def test_the_command_finds_the_particle_without_a_level(tmp_path):
    volume = ball(32, (0, 0, 4), 8)
    mrc.write(tmp_path / "map.mrc", volume, 2.0)
    assert instamap("mask", tmp_path / "map.mrc", "-o", tmp_path / "mask.mrc").code == 0
    assert torch.equal(mrc.read(tmp_path / "mask.mrc")[0], mask.from_map(volume, 2.0))


PDB = "ATOM      1  CA  ALA A   1    {:8.3f}{:8.3f}{:8.3f}  1.00 20.00           C\n"


@pytest.mark.parametrize("centred", [False, True])
def test_the_command_puts_a_model_where_the_map_is(tmp_path, centred):
    """The middle of the mask is the atom, in the frame of the map's origin."""
    pytest.importorskip("gemmi", reason="models are read with gemmi")
    origin = (10.0, -4.0, 6.0)
    mrc.write(tmp_path / "map.mrc", torch.rand(24, 24, 24), 2.0, origin=origin)
    voxel = torch.tensor([6.0, 10.0, 15.0])  # x, y, z
    start = torch.tensor([-24.0, -24.0, -24.0]) if centred else torch.tensor(origin)
    (tmp_path / "model.pdb").write_text(PDB.format(*(voxel * 2 + start).tolist()))
    words = ["--like", tmp_path / "map.mrc", "--radius", 4, "--extend", 0, "--edge", 0]
    words += ["--centred"] * centred
    out = tmp_path / "mask.mrc"
    assert instamap("mask", tmp_path / "model.pdb", "-o", out, *words).code == 0
    z, y, x = (mrc.read(out)[0] > 0.5).nonzero().double().mean(0).tolist()
    assert (x, y, z) == pytest.approx(voxel.tolist())
    assert mrc.read_origin(out) == origin


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("map.mrc", "--level", "9"), "no voxel of the map reaches level 9"),
        (("map.mrc", "--edge", "-1"), "--edge is -1; give a length of at least 0"),
        (("map.mrc", "--centred"), "are for models, and 'map.mrc' is a map"),
        (("none.mrc",), "map 'none.mrc' does not exist"),
        (("model.pdb",), "model 'model.pdb' has no box; give --like"),
        (("map.mrc", "-o", "map.mrc"), "is one of the files that are read"),
    ],
)
def test_the_command_refuses(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    mrc.write("map.mrc", ball(16, (0, 0, 0), 4), 2.0)
    assert said in instamap("mask", *words).refusal


@pytest.mark.parametrize("size", [40, 41])
def test_a_mask_in_the_middle_of_an_empty_box_is_that_of_the_whole_map(size):
    """Also where the map's corners are beyond the sphere of the small box, and most of it is
    dense: the solvent is told by the box.
    """
    inner = 24
    middle = ball(inner, (0.0, 0.0, 0.0), 9.5) + ball(inner, (7.0, 7.0, 7.0), 2.0)
    middle = middle * mask.sphere(inner, 1.0, 13.0, 3.0) - 0.05
    low = size // 2 - inner // 2
    whole = torch.zeros(size, size, size)
    along = slice(low, low + inner)
    whole[along, along, along] = middle
    options = {"low_pass": 2.0, "extend": 1, "edge": 1}
    expected = mask.from_map(whole, 1.0, **options)
    found = mask.from_map(middle, 1.0, box=size, **options)
    assert torch.equal(found, expected[along, along, along])
    assert not torch.equal(mask.from_map(middle, 1.0, **options), found)


@given(values=st.lists(st.integers(-3, 3), min_size=1, max_size=20), zeros=st.integers(0, 25))
def test_the_median_counts_zeros_that_are_not_there(values, zeros):
    volume = torch.tensor(values, dtype=torch.float32)
    expected = torch.cat([volume, torch.zeros(zeros)]).median()
    assert mask._median(volume, zeros) == expected
