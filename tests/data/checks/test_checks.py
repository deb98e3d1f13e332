"""Checks before a run: what cannot be right is refused with its rows, what is doubtful is told."""

import mrcfile
import numpy as np
import pytest
import starfile
import torch

from instamap.data import noise
from instamap.data.checks import half_sets, image_values, views
from instamap.data.checks.finding import Finding, named, settle
from instamap.data.checks.image_values import Inspector
from instamap.data.particles import Particles
from instamap.errors import DataError
from instamap.geometry import rotations
from instamap.progress import Progress
from instamap.simulate import particle_set
from instamap.workflows import shards
from instamap.workflows.choose import resolve
from instamap.workflows.prepare import open_dataset, prepare
from instamap.workflows.settings import Settings

COUNT = 120
BOX = 24


class Notes(Progress):
    """Keeps the notes that are told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """The folder of a small sound set."""
    folder = tmp_path_factory.mktemp("checks")
    particle_set.demo(folder, count=COUNT, box=BOX, snr=0.3)
    return folder


@pytest.fixture
def changed(sound, tmp_path):
    """changed(images=..., table=..., optics=...) writes the set with some of it changed."""

    def write(images=None, table=None, optics=None, dtype=np.float32):
        tables = starfile.read(sound / "particles.star", always_dict=True)
        pixels = mrcfile.read(sound / "particles.mrcs").astype(np.float64)
        if images is not None:
            pixels = images(pixels)
        if table is not None:
            tables["particles"] = table(tables["particles"])
        if optics is not None:
            tables["optics"] = optics(tables["optics"])
        with (
            np.errstate(over="ignore"),  # in the statistics of mrcfile's header
            mrcfile.new(tmp_path / "particles.mrcs", overwrite=True) as file,
        ):
            file.set_data(pixels.astype(dtype))
            file.set_image_stack()
        path = tmp_path / "particles.star"
        starfile.write(tables, path, overwrite=True)
        return path

    return write


def notes(path, **settings) -> str:
    """All notes that are told when a set is opened."""
    told = Notes()
    open_dataset(Settings(particles=path, **settings), told)
    return "\n".join(line for line in told.lines if line.startswith("note: "))


def refused(path, *words, **settings) -> None:
    with pytest.raises(DataError) as error:
        open_dataset(Settings(particles=path, **settings))
    for word in words:
        assert word in str(error.value)


def put(**columns):
    return lambda table: table.assign(**columns)


def test_a_sound_set_has_no_notes(sound):
    assert notes(sound / "particles.star") == ""


def test_a_set_of_normal_offsets_and_scales_has_no_notes(sound, changed):
    random = np.random.default_rng(0)
    contrast = random.normal(1, 0.2, (COUNT, 1, 1))
    level = random.normal(0, 0.3, (COUNT, 1, 1))
    assert notes(changed(images=lambda images: images * contrast + level)) == ""


@pytest.mark.parametrize("folder", ["ribosome-tilts", "empiar-10076-7"])
def test_real_sets_have_no_false_notes(shared_data, folder):
    assert notes(shared_data / folder / "particles.star") == ""


@pytest.mark.parametrize(
    ("table", "values", "name"),
    [
        ("optics", {"rlnVoltage": 300000}, "rlnVoltage"),
        ("optics", {"rlnVoltage": 0.3}, "rlnVoltage"),
        ("optics", {"rlnSphericalAberration": 2700}, "rlnSphericalAberration"),
        ("optics", {"rlnAmplitudeContrast": 7}, "rlnAmplitudeContrast"),
        ("optics", {"rlnImagePixelSize": 1.3e-10}, "rlnImagePixelSize"),
        ("table", {"rlnDefocusU": 1.2, "rlnDefocusV": 1.1}, "rlnDefocus"),
        ("table", {"rlnDefocusU": 1e8, "rlnDefocusV": 1e8}, "rlnDefocusU"),
        ("table", {"rlnCtfBfactor": 1e9}, "rlnCtfBfactor"),
        ("table", {"rlnAngleTilt": -999.0}, "rlnAngleTilt"),
        ("table", {"rlnAnglePsi": 1e30}, "rlnAnglePsi"),
        ("table", {"rlnOriginYAngst": 1e6}, "rlnOriginYAngst"),
    ],
)
def test_values_that_cannot_be_are_refused(changed, table, values, name):
    refused(changed(**{table: put(**values)}), name)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"rlnDefocusU": 120.0, "rlnDefocusV": 110.0}, "nm"),
        ({"rlnDefocusU": -9000.0, "rlnDefocusV": -9000.0}, "underfocus"),
        ({"rlnCtfBfactor": -9000.0}, "rlnCtfBfactor"),
        ({"rlnCtfScalefactor": -1.0}, "rlnCtfScalefactor"),
        ({"rlnOriginXAngst": 100.0}, "rlnOriginXAngst"),
    ],
)
def test_values_that_are_rare_are_noted(changed, values, name):
    assert name in notes(changed(table=put(**values)))


def test_all_placeholders_are_named_at_once(changed):
    path = changed(table=put(rlnAngleRot=[-999.0 if row % 3 == 0 else 1.0 for row in range(COUNT)]))
    refused(path, "rows 1, 4, 7, 10, 13, 16, 19, 22, 25, 28 and 30 more", "40 of 120")


def test_one_pose_for_all_is_noted(changed):
    path = changed(table=put(rlnAngleRot=0.0, rlnAngleTilt=0.0, rlnAnglePsi=0.0))
    assert "one pose" in notes(path)


def test_one_pose_for_some_is_noted(changed):
    angles = {
        name: [0.0 if row < 40 else 3.0 * row for row in range(COUNT)]
        for name in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
    }
    assert "40 of 120 images" in notes(changed(table=put(**angles)))


def test_views_along_one_direction_are_told_from_others():
    psi = torch.linspace(0, 6, 50, dtype=torch.float64)
    zero = torch.zeros_like(psi)
    flat = rotations.from_euler(zero, zero, psi)
    [finding] = views.check(flat, "a.star")
    assert finding.code == "one-direction"
    assert views.check(rotations.from_euler(psi, zero + 1.0, zero), "a.star") == []
    assert views.spread(flat) < 1e-9


def test_half_sets_that_are_uneven():
    half = torch.zeros(285, dtype=torch.long)
    half[0] = 1
    [finding] = half_sets.check(half, "a.star", "rlnRandomSubset")
    assert finding.is_wrong
    assert "284 and 1" in finding.value
    half[:50] = 1
    assert not half_sets.check(half, "a.star", "rlnRandomSubset")[0].is_wrong
    half[:143] = 1
    assert half_sets.check(half, "a.star", "rlnRandomSubset") == []


def test_uneven_half_sets_do_not_matter_without_halves(changed):
    path = changed(table=put(rlnRandomSubset=[1] * (COUNT - 1) + [2]))
    refused(path, "119 and 1", "--no-halves")
    assert notes(path, halves=False) == ""


@pytest.mark.parametrize("level", [3.0, -10.0])
def test_a_background_that_is_not_levelled_is_noted(changed, level):
    path = changed(images=lambda images: images + level * images[:, 0].std())
    assert "--normalise" in notes(path)
    assert notes(path, normalise=True) == ""


def test_counts_are_noted(changed):
    path = changed(images=lambda images: (1000 + 40 * images).round(), dtype=np.uint16)
    assert "--normalise" in notes(path)


def test_dark_protein_is_noted_and_inverted(changed):
    path = changed(images=np.negative)
    assert "--invert" in notes(path)
    assert notes(path, invert=True) == ""


def test_white_protein_that_is_inverted_is_noted(sound):
    assert "leave out --invert" in notes(sound / "particles.star", invert=True)


def test_inverted_images_are_the_negative(sound):
    rows = torch.arange(5)
    plain = Particles.open(sound / "particles.star").images(rows)
    settings = Settings(particles=sound / "particles.star", invert=True)
    inverted = Particles.open(sound / "particles.star", preprocess=settings.preprocess)
    assert torch.equal(inverted.images(rows), -plain)


def hot(images):
    images[40, 3, 3] = 1e5
    images[70] *= 1000
    return images


def test_wild_images_are_refused_by_row(changed):
    refused(changed(images=hot), "rows 41, 71", "--exclude-outliers")


def test_wild_images_are_left_out_where_that_is_asked_for(changed, sound):
    path = changed(images=hot)
    told = Notes()
    dataset = open_dataset(Settings(particles=path, exclude_outliers=True), told)
    assert "2 of 120" in told.lines[0] and "rows 41, 71" in told.lines[0]
    used = torch.cat(list(dataset.sets.values()))
    assert sorted(used.tolist()) == [row for row in range(COUNT) if row not in (40, 70)]
    spectra = open_dataset(Settings(particles=sound / "particles.star")).scene.noise_variance
    torch.testing.assert_close(dataset.scene.noise_variance, spectra, rtol=0.1, atol=0)


def test_a_pixel_that_is_high_but_does_not_outweigh_the_others_is_noted(changed):
    def high(images):
        images[9, 3, 3] = 40
        return images

    path = changed(images=high)
    assert "row 10" in notes(path)


def test_wild_images_beyond_the_survey_are_found_while_reading(changed):
    particles = Particles.open(changed(images=hot))
    inspector = Inspector(particles)
    particles.inspector = inspector
    particles.images(torch.arange(30))
    assert inspector.findings_so_far() == []
    with pytest.raises(DataError, match="rows 41, 71"):
        particles.images(torch.arange(30, 50))


def test_wild_images_that_the_survey_missed_are_noted_when_all_are_read(
    changed, tmp_path, monkeypatch
):
    """One line for all of them, with rows and remedy, after statistics were gathered."""

    def few(particles, rows=None, *, limit=30, seed=0):
        return estimate(particles, rows, limit=limit, seed=seed)

    estimate = noise.estimate
    monkeypatch.setattr(noise, "estimate", few)
    particles = Particles.open(changed())
    inspector = Inspector(particles)
    particles.inspector = inspector
    few(particles)
    sampled = inspector.values.measured.tolist()
    assert len(sampled) == 30
    high = [row for row in range(COUNT) if row not in sampled][:3]

    def shining(images):
        images[high, 3, 3] = 40
        return images

    told = Notes()
    settings = resolve(Settings(particles=changed(images=shining)))
    shards.accumulate(settings, tmp_path / "stats", progress=told)
    lines = [line for line in told.lines if "wild" in line]
    assert len(lines) == 1, told.lines
    assert f"rows {', '.join(str(row + 1) for row in high)}:" in lines[0]
    assert "--exclude-outliers" in lines[0]
    assert lines[0] == told.lines[-1]


def test_norms_are_those_of_double_precision():
    pixels = torch.randn(40, 9)
    pixels *= torch.logspace(-25, 25, 40)[:, None]
    pixels[7] = 0
    exact = torch.linalg.vector_norm(pixels, dim=1, dtype=torch.float64)
    torch.testing.assert_close(image_values._norm(pixels), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("factor", [1e-30, 1e-20, 1e20, 1e30])
def test_scales_beyond_single_precision_are_refused(changed, factor):
    path = changed(images=lambda images: images * factor)
    refused(path, "scale", "--normalise")
    assert notes(path, normalise=True) == ""


@pytest.mark.parametrize("factor", [2.0**-16, 2.0**16])
def test_other_scales_change_nothing_but_the_scale(changed, sound, factor):
    one, other = (
        prepare(Settings(particles=path, objective="normal")).fits["half1"].fitted
        for path in (sound / "particles.star", changed(images=lambda images: images * factor))
    )
    torch.testing.assert_close(
        other.b * factor, one.b, rtol=1e-4, atol=1e-4 * float(one.b.abs().max())
    )


def test_pixel_sizes_in_headers_are_compared(changed, tmp_path):
    path = changed()
    with mrcfile.open(tmp_path / "particles.mrcs", "r+") as file:
        file.voxel_size = 5.5
    assert "5.5 Å" in notes(path)


def test_pixel_size_is_held_against_the_magnification(changed):
    path = changed(table=put(rlnDetectorPixelSize=5.0, rlnMagnification=8000.0))
    assert "6.25 Å" in notes(path)
    path = changed(table=put(rlnDetectorPixelSize=5.0, rlnMagnification=25000.0))  # 3 x 3 binned
    assert notes(path) == ""


def copied(images):
    return np.concatenate([images[:60], images[:60]])


def test_copies_stay_in_one_half_and_are_noted(changed):
    path = changed(images=copied, table=lambda table: table.drop(columns="rlnRandomSubset"))
    assert "60 images" in notes(path)
    dataset = open_dataset(Settings(particles=path))
    rows = {name: set((chosen % 60).tolist()) for name, chosen in dataset.sets.items()}
    assert not rows["half1"] & rows["half2"]
    assert not rows["half1"] & rows["held_out"]


def test_copies_in_both_halves_are_refused(changed):
    path = changed(images=copied, table=put(rlnRandomSubset=[1] * 60 + [2] * 60))
    refused(path, "same pixels", "rows 1 and 61", "50 more pairs")


def test_copies_in_another_file_of_another_type_are_found(sound, tmp_path, changed):
    path = changed(images=lambda images: images[:60].astype(np.float16))
    with mrcfile.new(tmp_path / "other.mrcs") as file:
        file.set_data(mrcfile.read(tmp_path / "particles.mrcs").astype(np.float16))
        file.set_image_stack()
    names = [f"{row + 1}@particles.mrcs" for row in range(60)]
    names += [f"{row + 1}@other.mrcs" for row in range(60)]
    tables = starfile.read(path, always_dict=True)
    tables["particles"]["rlnImageName"] = names
    starfile.write(tables, path, overwrite=True)
    group = Particles.open(path).exclusive_groups()
    assert torch.equal(group[:60], group[60:])


def test_images_whose_middle_line_agrees_are_no_copies(changed):
    def alike(images):
        images[5, BOX // 2] = images[4, BOX // 2]
        return images

    assert notes(changed(images=alike)) == ""


def test_ten_rows_are_named_and_the_rest_counted():
    assert named(range(3)) == "rows 1, 2, 3"
    assert named([4]) == "row 5"
    assert named(range(12)).endswith("10 and 2 more")


def test_what_is_wrong_is_raised_and_what_is_doubtful_is_told():
    told = Notes()
    settle([Finding("a", "b is 3", "mend it")], told)
    assert told.lines == ["note: b is 3; mend it"]
    with pytest.raises(DataError, match="c is 4; remove it"):
        settle([Finding("a", "b is 3", "x"), Finding("c", "c is 4", "remove it", True)], told)
