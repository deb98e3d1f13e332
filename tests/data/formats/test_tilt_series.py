"""Tilt series of RELION 5 and WarpTools: the geometry in closed form, which image is which tilt's,
particles that are not parted, and the real files.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from instamap.data import formats, noise, writers
from instamap.data.formats.star import StarFormat
from instamap.data.formats.tilt_series import TiltSeriesFormat
from instamap.data.particles import Particles
from instamap.errors import DataError
from instamap.fourier import ctf
from instamap.likelihoods.gaussian import Gaussian
from instamap.maps import fsc
from instamap.scene import Scene, Views
from instamap.statistics import initial_map, streaming

TILTS = 5
PIXEL_SIZE = 3.0
BINNING = 2.0
BOX = 8
SIZE = (400, 300, 200)  # of the tomograms, in pixels of the tilt series
HAND = -1.0
DOSE = (6.0, 3.0, 0.0, 9.0, 12.0)
SCALE = (0.7, 0.9, 1.0, 0.9, 0.7)
VISIBLE = ([1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 1, 1, 1])
ANGLES = ((10.0, 50.0, -30.0), (100.0, 120.0, 75.0), (-60.0, 20.0, 10.0))
SUBTOMOGRAM = ((5.0, 30.0, 70.0), (-20.0, 80.0, 15.0), (0.0, 0.0, 0.0))
ORIGINS = ((4.0, -2.0, 3.0), (-1.0, 0.5, 2.0), (0.0, 6.0, -5.0))
PLACES = ((100.0, -50.0, 40.0), (-200.0, 30.0, -60.0), (20.0, 150.0, 10.0))  # Å, from the centre


def about(axis: str, degrees: float) -> np.ndarray:
    """The rotation about an axis, which turns x to y, y to z or z to x."""
    c = math.cos(math.radians(degrees))
    s = math.sin(math.radians(degrees))
    matrices = {
        "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
        "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
        "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
    }
    return np.array(matrices[axis])


def relion_matrix(rot: float, tilt: float, psi: float) -> np.ndarray:
    return about("z", -psi) @ about("y", -tilt) @ about("z", -rot)


def tilt_angles(series: int) -> list[tuple[float, float, float]]:
    """X tilt, Y tilt and Z rotation of each tilt."""
    return [(1.5 + series, -40.0 + 20 * tilt, 85.0 + tilt) for tilt in range(TILTS)]


def projection(series: int, tilt: int) -> np.ndarray:
    x, y, z = tilt_angles(series)[tilt]
    return about("z", z) @ about("y", y) @ about("x", x)


def row_vector(values) -> str:
    return "[" + ",".join(repr(float(value)) for value in values) + "]"


def tilt_rows(series: int, *, matrices: bool, shifted: bool = True) -> list[dict]:
    rows = []
    for tilt in range(TILTS):
        row = {
            "rlnDefocusU": 20000 + 100 * tilt + 1000 * series,
            "rlnDefocusV": 19000 + 100 * tilt,
            "rlnDefocusAngle": 30 + tilt,
            "rlnPhaseShift": 2 * tilt,
            "rlnCtfScalefactor": SCALE[tilt],
            "rlnMicrographPreExposure": DOSE[tilt],
        }
        if matrices:
            for name, values in zip("XYZ", projection(series, tilt), strict=True):
                row[f"rlnTomoProj{name}"] = row_vector([*values, 17.5 if shifted else 0.0])
            row["rlnTomoProjW"] = "[0,0,0,1]"
        else:
            names = ("rlnTomoXTilt", "rlnTomoYTilt", "rlnTomoZRot")
            row |= dict(zip(names, tilt_angles(series)[tilt], strict=True))
        rows.append(row)
    return rows


def particle_row(number: int, *, centred: bool) -> dict:
    place = np.array(PLACES[number])
    row = {
        "rlnTomoName": f"TS_{number // 2}",
        "rlnTomoParticleName": f"TS_{number // 2}/{number + 1}",
        "rlnOpticsGroup": number // 2 + 1,
        "rlnImageName": f"stacks/{number}.mrcs",
        "rlnTomoVisibleFrames": "[" + ",".join(map(str, VISIBLE[number])) + "]",
        "rlnRandomSubset": number % 2 + 1,
    }
    if centred:
        names = [f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ"]
        row |= dict(zip(names, place, strict=True))
    else:
        names = [f"rlnCoordinate{axis}" for axis in "XYZ"]
        row |= dict(zip(names, place / PIXEL_SIZE + np.array(SIZE) / 2, strict=True))
    for kind, values in (("Angle", ANGLES[number]), ("TomoSubtomogram", SUBTOMOGRAM[number])):
        names = [f"rln{kind}{name}" for name in ("Rot", "Tilt", "Psi")]
        row |= dict(zip(names, values, strict=True))
    names = [f"rlnOrigin{axis}Angst" for axis in "XYZ"]
    return row | dict(zip(names, ORIGINS[number], strict=True))


@pytest.fixture
def write_set(write_star, tmp_path):
    """write_set(**kind) writes an optimisation set with its particles and tomograms."""

    def write(
        *,
        matrices: bool = True,
        centred: bool = True,
        own_files: bool = False,
        shifted: bool = True,
        **of_tomograms: object,
    ) -> Path:
        optics = []
        overview = []
        series = {}
        for number in range(2):
            name = f"TS_{number}"
            optics.append(
                {
                    "rlnOpticsGroup": number + 1,
                    "rlnOpticsGroupName": f"opticsGroup{number + 1}",
                    "rlnVoltage": 300,
                    "rlnSphericalAberration": 2.7,
                    "rlnAmplitudeContrast": 0.1,
                    "rlnTomoTiltSeriesPixelSize": PIXEL_SIZE,
                    "rlnTomoSubtomogramBinning": BINNING,
                    "rlnImagePixelSize": PIXEL_SIZE * BINNING,
                    "rlnImageSize": BOX,
                    "rlnImageDimensionality": 2,
                    "rlnCtfDataAreCtfPremultiplied": 1,
                }
            )
            row = {
                "rlnTomoName": name,
                "rlnTomoHand": HAND,
                "rlnTomoTiltSeriesPixelSize": PIXEL_SIZE,
                **{f"rlnTomoSize{axis}": size for axis, size in zip("XYZ", SIZE, strict=True)},
                **of_tomograms,
            }
            rows = tilt_rows(number, matrices=matrices, shifted=shifted)
            if own_files:
                row["rlnTomoTiltSeriesStarFile"] = f"tilts/{name}.star"
                (tmp_path / "tilts").mkdir(exist_ok=True)
                write_star(tmp_path / "tilts" / f"{name}.star", {name: rows})
            else:
                series[name] = rows
            overview.append(row)
        rows = [particle_row(number, centred=centred) for number in range(3)]
        general = [{"rlnTomoSubTomosAre2DStacks": 1}]
        tables = {"general": general, "optics": optics, "particles": rows}
        write_star(tmp_path / "particles.star", tables)
        write_star(tmp_path / "tomograms.star", {"global": overview, **series})
        path = tmp_path / "optimisation_set.star"
        path.write_text(
            "data_\n\n_rlnTomoParticlesFile  particles.star\n"
            "_rlnTomoTomogramsFile  tomograms.star\n"
        )
        return path

    return write


@pytest.fixture
def write_stacks(write_stack, tmp_path):
    """write_stacks(every_tilt) writes stacks whose pixels are the tilt's number, with noise."""

    def write(*, every_tilt: bool) -> None:
        random = np.random.default_rng(0)
        for number, flags in enumerate(VISIBLE):
            tilts = [tilt for tilt in range(TILTS) if every_tilt or flags[tilt]]
            images = (
                random.uniform(-0.1, 0.1, (len(tilts), BOX, BOX)) + np.array(tilts)[:, None, None]
            )
            write_stack(tmp_path / "stacks" / f"{number}.mrcs", images.astype(np.float32))

    return write


def images_of_sample() -> list[tuple[int, int]]:
    """Each row's particle and tilt."""
    return [
        (number, tilt)
        for number, flags in enumerate(VISIBLE)
        for tilt in range(TILTS)
        if flags[tilt]
    ]


def spots(places: np.ndarray) -> np.ndarray:
    """An image of Gaussians 4 Å wide at places "k 2" in Å."""
    axis = (np.arange(64) - 32) * 2.0
    y, x = np.meshgrid(axis, axis, indexing="ij")
    square = (x - places[:, 0, None, None]) ** 2 + (y - places[:, 1, None, None]) ** 2
    return np.exp(-square / 32).sum(0)


@pytest.mark.parametrize("matrices", [True, False])
@pytest.mark.parametrize("centred", [True, False])
def test_images_are_those_of_the_documented_geometry(write_set, matrices, centred):
    """Gaussians fixed in the particle, placed in the tomogram and projected along each tilt, are
    where the table's poses put them.
    """
    table = formats.read(write_set(matrices=matrices, centred=centred, own_files=not matrices))
    atoms = np.random.default_rng(1).uniform(-20, 20, (4, 3))
    rows = images_of_sample()
    assert len(table) == len(rows)
    for row, (number, tilt) in enumerate(rows):
        series = number // 2
        subtomogram = relion_matrix(*SUBTOMOGRAM[number])
        in_tomogram = (relion_matrix(*ANGLES[number]) @ atoms.T).T - np.array(ORIGINS[number])
        in_tomogram = in_tomogram @ subtomogram.T + np.array(PLACES[number])
        seen = in_tomogram @ projection(series, tilt).T
        centre = projection(series, tilt) @ np.array(PLACES[number])
        truth = spots(seen[:, :2] - centre[:2])
        from_table = atoms @ table.rotation[row].numpy().T
        found = spots(from_table[:, :2] - table.origin[row].numpy())
        np.testing.assert_allclose(found, truth, atol=1e-9)

        # a place that is higher along the beam is less or more defocused, by hand
        moved = np.array(PLACES[number]) - subtomogram @ np.array(ORIGINS[number])
        depth = (projection(series, tilt) @ moved)[2]
        u = 20000 + 100 * tilt + 1000 * series + HAND * depth
        assert float(table.optics.defocus_u[row]) == pytest.approx(u, abs=1e-6)
        difference = float(table.optics.defocus_u[row] - table.optics.defocus_v[row])
        assert difference == pytest.approx(1000 + 1000 * series, abs=1e-6)


def test_each_tilt_has_its_ctf(write_set):
    table = formats.read(write_set(rlnTomoDefocusSlope=0.0))
    tilts = [tilt for _, tilt in images_of_sample()]
    assert table.optics.dose.tolist() == [DOSE[tilt] for tilt in tilts]
    assert table.optics.scale.tolist() == [SCALE[tilt] for tilt in tilts]
    assert table.optics.b_factor.tolist() == [0.0] * len(tilts)
    degrees = torch.rad2deg(table.optics.phase_shift)
    assert degrees.tolist() == pytest.approx([2.0 * tilt for tilt in tilts])
    assert table.optics.defocus_v.tolist() == [19000.0 + 100 * tilt for tilt in tilts]
    assert table.premultiplied
    assert table.pixel_size.unique().tolist() == [PIXEL_SIZE * BINNING]


def test_dose_by_b_factor(write_set):
    table = formats.read(write_set(rlnCtfBfactorPerElectronDose=4.0))
    expected = [4 * DOSE[tilt] for _, tilt in images_of_sample()]
    assert table.optics.b_factor.tolist() == expected
    assert table.optics.dose is None


def test_dose_weights_are_grant_and_grigorieffs(write_set):
    """At 1/10 Å⁻¹ half of a component's worth is lost after 0.245 10^1.665 + 2.81 = 14.1 e/Å²."""
    square = torch.tensor([0.0, 1e-2], dtype=torch.float64)
    critical = 0.245 * 10**1.665 + 2.81
    factor = ctf.dose_weight(torch.tensor(critical), square)
    assert factor.tolist() == pytest.approx([1.0, math.exp(-0.5)])
    optics = formats.read(write_set()).optics
    weighted = ctf.ctf(optics, BOX, PIXEL_SIZE)
    bare = ctf.ctf(replace(optics, dose=None), BOX, PIXEL_SIZE)
    nyquist = 1 / (2 * PIXEL_SIZE)
    factor = ctf.dose_weight(optics.dose, torch.tensor(nyquist**2))
    torch.testing.assert_close(weighted[:, 0, -1], bare[:, 0, -1] * factor)


@pytest.mark.parametrize("every_tilt", [True, False])
def test_images_are_those_of_the_visible_tilts(write_set, write_stacks, every_tilt):
    """Stacks hold the visible tilts alone, or all: each row is the image of its tilt."""
    write_stacks(every_tilt=every_tilt)
    particles = Particles.open(write_set())
    means = particles.images(torch.arange(particles.count)).mean((1, 2))
    tilts = torch.tensor([float(tilt) for _, tilt in images_of_sample()])
    torch.testing.assert_close(means, tilts, atol=0.1, rtol=0)


def test_stacks_elsewhere_are_looked_at_too(write_set, write_stacks, tmp_path):
    write_stacks(every_tilt=True)
    path = write_set()
    elsewhere = tmp_path.parent / f"{tmp_path.name}-images"
    (tmp_path / "stacks").rename(elsewhere)
    particles = Particles.open(path, datadir=elsewhere)
    assert float(particles.images(torch.tensor([5])).mean()) == pytest.approx(0, abs=0.1)
    assert particles.table.image_names[6].startswith("000003@")


def test_images_of_a_particle_stay_together(write_set, write_stacks):
    write_stacks(every_tilt=False)
    particles = Particles.open(write_set())
    number = torch.tensor([number for number, _ in images_of_sample()])
    assert torch.equal(particles.table.particle, number)
    assert torch.equal(particles.exclusive_groups(), number)
    assert torch.equal(particles.particle_numbers(), number)
    assert torch.equal(particles.image_numbers(), torch.arange(particles.count))
    assert torch.equal(particles.split(0), number % 2)
    # what is named wins
    assert torch.equal(particles.exclusive_groups("rlnTomoName"), number // 2)
    alone = torch.arange(particles.count)
    assert torch.equal(particles.particle_numbers("rlnImageName"), alone)


def test_drawn_halves_do_not_part_particles(write_set, write_stacks):
    write_stacks(every_tilt=False)
    path = write_set()
    star = path.with_name("particles.star")
    star.write_text(star.read_text().replace("rlnRandomSubset", "rlnSomething"))
    particles = Particles.open(path)
    half = particles.split(0)
    for number in range(3):
        assert len(half[particles.table.particle == number].unique()) == 1


def test_particles_find_their_tomograms(write_set, tmp_path):
    path = write_set()
    star = tmp_path / "particles.star"
    whole = formats.read(path)
    assert torch.equal(formats.read(star).rotation, whole.rotation)
    path.unlink()
    assert torch.equal(formats.read(star).rotation, whole.rotation)
    (tmp_path / "other.star").write_bytes((tmp_path / "tomograms.star").read_bytes())
    fails(star, "2 tomograms files", "'other.star'", "optimisation set")
    (tmp_path / "other.star").unlink()
    (tmp_path / "tomograms.star").unlink()
    fails(star, "no tomograms file beside it", "optimisation set")


def test_coordinates_are_written_once_a_particle(write_set, tmp_path):
    table = formats.read(write_set())
    own = torch.tensor([[1.0], [2.0], [3.0]])
    file = tmp_path / "latents.star"
    writers.write_latents(table, own[table.particle], file)
    text = file.read_text()
    assert text.count("stacks/") == 3
    assert "_rlnTomoVisibleFrames" in text
    assert formats.read(file).columns.numbers("instamapLatent1")[5] == 2.0
    chosen = (table.particle != 1).nonzero()[:, 0]
    writers.write_latents(table, own[table.particle], file, chosen)
    assert file.read_text().count("stacks/") == 2
    # of single images it is said image by image
    writers.write_latents(table, own[table.particle], file, chosen[1:])
    some = formats.read(file)
    assert torch.equal(some.rotation, table.rotation[chosen[1:]])
    assert torch.equal(some.optics.dose, table.optics.dose[chosen[1:]])


def test_poses_are_written_once_an_image(write_set, tmp_path):
    table = formats.read(write_set())
    views = Views.of(table.rotation.flip(0), table.origin + 1)
    changed = np.arange(len(table)) < 4
    table.source.with_poses(views, changed).write(tmp_path / "poses.star")
    new = StarFormat().read(tmp_path / "poses.star")
    torch.testing.assert_close(new.rotation[:4], views.rotation[:4], atol=1e-7, rtol=0)
    assert torch.equal(new.rotation[4:], table.rotation[4:])
    assert torch.equal(new.optics.dose, table.optics.dose)


def test_exports_whose_depth_and_hand_are_unknown(write_set):
    """WarpTools up to 2025 counted in other pixels than it said, and wrote one hand for all: what
    is seen is that of a particle mirrored in z.
    """
    table = formats.read(write_set(centred=False, shifted=False))
    assert table.ignored == ("rlnTomoHand",)
    assert "mirrored" in table.assumed and "instamapMirrored 0" in table.assumed
    plain = formats.read(write_set(centred=False, shifted=False, instamapMirrored=0))
    assert plain.ignored == ("rlnTomoHand",)
    assert plain.assumed is None
    atoms = torch.from_numpy(np.random.default_rng(1).uniform(-20, 20, (4, 3)))
    mirrored = atoms * torch.tensor([1.0, 1.0, -1.0])
    seen = (table.rotation @ mirrored.mT)[:, :2]
    torch.testing.assert_close(seen, (plain.rotation @ atoms.mT)[:, :2])
    torch.testing.assert_close(torch.linalg.det(table.rotation), torch.ones(len(table)).double())
    assert torch.equal(table.origin, plain.origin)
    tilts = [tilt for _, tilt in images_of_sample()]
    assert table.optics.defocus_v.tolist() == [19000.0 + 100 * tilt for tilt in tilts]
    sound = formats.read(write_set(centred=True, shifted=False))
    assert sound.ignored == () and sound.assumed is None


def test_any_tomogram_can_be_mirrored(write_set):
    """Depth and with it defocus stay what they are; z of the map alone points the other way."""
    plain = formats.read(write_set())
    mirrored = formats.read(write_set(instamapMirrored=1))
    signs = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    expected = signs[:, None] * plain.rotation * signs
    torch.testing.assert_close(mirrored.rotation, expected, atol=1e-7, rtol=0)
    assert torch.equal(mirrored.origin, plain.origin)
    assert torch.equal(mirrored.optics.defocus_u, plain.optics.defocus_u)
    fails(write_set(instamapMirrored=2), "instamapMirrored", "TS_0", "is 2", "0 or 1")


def fails(path: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        formats.read(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    "file, before, after, words",
    [
        ("particles", "[1,0,1,1,0]", "[1,0,1,1]", ["row 2", "4 values", "5 tilts"]),
        ("particles", "[1,0,1,1,0]", "[0,0,0,0,0]", ["row 2", "no tilt that is visible"]),
        ("particles", "[1,0,1,1,0]", "[2,0,1,1,0]", ["row 2", "0 or 1"]),
        ("particles", "TS_1 TS_1/3", "TS_9 TS_1/3", ["row 3", "'TS_9'", "tomograms.star"]),
        ("particles", " 8 2 1\n", " 8 3 1\n", ["3-D subtomograms", "2-D stacks"]),
        ("tomograms", "data_global", "data_other", ["lists no tomograms"]),
        ("tomograms", "data_TS_1", "data_TS_8", ["no table data_TS_1"]),
        ("tomograms", "rlnTomoTiltSeriesPixelSize", "rlnOther", ["pixel size", "TS_0"]),
        ("tomograms", "rlnTomoProjX", "rlnTomoProjQ", ["no column rlnTomoYTilt"]),
        ("tomograms", "20100 ", "none ", ["rlnDefocusU of tilt 2", "data_TS_0", "1 of 5"]),
        ("optimisation_set", "_rlnTomoTomogramsFile  tomograms.star", "", ["without"]),
        ("optimisation_set", "tomograms.star", "gone.star", ["'gone.star'", "put it there"]),
    ],
)
def test_files_that_do_not_belong_together(write_set, tmp_path, file, before, after, words):
    path = write_set()
    changed = tmp_path / f"{file}.star"
    text = changed.read_text()
    assert before in text
    changed.write_text(text.replace(before, after, 1))
    fails(path, *words)


def test_matrices_that_are_no_rotations(write_set, tmp_path):
    path = write_set()
    tomograms = tmp_path / "tomograms.star"
    first = row_vector([*projection(0, 0)[0], 17.5])
    tomograms.write_text(tomograms.read_text().replace(first, "[3,0,0,17.5]"))
    fails(path, "tilt 1", "data_TS_0", "rotation")
    tomograms.write_text(tomograms.read_text().replace("[3,0,0,17.5]", "[a,b]"))
    fails(path, "rlnTomoProjX of tilt 1", "four numbers")


def test_other_files_are_not_taken(write_set, write_star, tmp_path, optics, particle):
    path = write_set()
    assert TiltSeriesFormat.recognises(path)
    assert TiltSeriesFormat.recognises(tmp_path / "particles.star")
    assert not TiltSeriesFormat.recognises(tmp_path / "tomograms.star")
    plain = write_star(tmp_path / "plain.star", {"optics": [optics], "particles": [particle]})
    assert not TiltSeriesFormat.recognises(plain)


@pytest.fixture(scope="module")
def ribosomes(shared_data):
    folder = shared_data / "ribosome-tilts"
    name = "warptools_test_4-tomos_10-ptcls_box-32_angpix-12_optimisation_set.star"
    series = Particles.open(folder / "warptools" / name)
    return series, Particles.open(folder / "particles.star")


def test_real_series_are_the_images_of_the_plain_file(ribosomes):
    """The plain file's numbers have 6 decimals, and its B-factor is twice the dose, in Å²."""
    series, plain = ribosomes
    rows = torch.arange(plain.count)
    assert torch.equal(series.images(rows), plain.images(rows))
    torch.testing.assert_close(series.views.rotation, plain.views.rotation, atol=1e-7, rtol=0)
    assert torch.equal(series.views.origin, plain.views.origin)
    for name in ("defocus_u", "defocus_v", "defocus_angle", "voltage", "phase_shift"):
        ours = getattr(series.views.optics, name)
        torch.testing.assert_close(ours, getattr(plain.views.optics, name))
    torch.testing.assert_close(2 * series.views.optics.dose, plain.views.optics.b_factor)
    assert series.premultiplied and plain.premultiplied
    assert torch.equal(series.particle_numbers(), plain.particle_numbers("rlnGroupName"))


def test_real_series_make_the_map_of_the_plain_file(ribosomes):
    """But for weights of dose and tilt, which the plain file leaves out."""
    series, plain = ribosomes
    ours = least_squares(series)
    theirs = least_squares(plain)
    curve = fsc.fsc(ours, theirs)
    assert (curve[1:13] > 0.99).all(), curve
    assert (curve > 0.98).all(), curve
    mirrored = ours.flip(0).roll(1, 0)
    assert fsc.fsc(mirrored, theirs)[6:12].max() < 0.5


def least_squares(particles: Particles) -> torch.Tensor:
    scene = Scene(
        particles.box,
        particles.pixel_size,
        particles.count,
        premultiplied=True,
        noise_variance=noise.estimate(particles).float(),
    )
    rows = torch.arange(particles.count)
    likelihood = Gaussian(Gaussian.Options(), scene)
    statistics = streaming.accumulate(particles, {"map": rows}, likelihood)["map"]
    axis = torch.arange(particles.box) - particles.box // 2
    square = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2
    window = (square < (particles.box // 2 - 2) ** 2).to(statistics.b)
    return initial_map.solve(statistics, window, steps=10)
