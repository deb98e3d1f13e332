"""STAR files of every generation mean the same poses and optics; what can't be used is named in one
line.
"""

import dataclasses
import gzip
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instamap.data.formats import star, star_optics
from instamap.errors import DataError
from instamap.geometry import rotations
from instamap.scene import Optics

DEGREE = math.pi / 180


@pytest.fixture
def old(particle) -> dict:
    """The same particle in a row of RELION 3.0."""
    row = particle | {
        "rlnVoltage": 300.0,
        "rlnSphericalAberration": 2.7,
        "rlnAmplitudeContrast": 0.1,
        "rlnMagnification": 25000.0,
        "rlnDetectorPixelSize": 5.0,
        "rlnOriginX": 1.5,
        "rlnOriginY": -2.0,
    }
    row.pop("rlnOpticsGroup")
    return row


def fails(path, *words, **options) -> None:
    """Reading raises a DataError of one line that names the file and holds all `words`."""
    with pytest.raises(DataError) as caught:
        star.read(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), ";", *words):
        assert word in message, message


def test_new_file_exactly(tmp_path, write_star, optics, particle):
    particle |= {
        "rlnOriginXAngst": 3.0,
        "rlnOriginYAngst": -4.0,
        "rlnPhaseShift": 90.0,
        "rlnCtfBfactor": 50.0,
        "rlnCtfScalefactor": 0.5,
    }
    table = star.read(
        write_star(tmp_path / "a.star", {"optics": [optics], "particles": [particle]})
    )
    assert table.image_names == ["1@stack.mrcs"]
    angles = star.euler_angles(table.columns)
    assert angles.dtype == table.rotation.dtype == torch.float64
    assert angles[0].tolist() == pytest.approx([10 * DEGREE, 20 * DEGREE, 30 * DEGREE], rel=1e-15)
    assert torch.equal(table.rotation, rotations.from_euler(*angles.unbind(-1)))
    assert table.group_names == ("1",)
    assert table.half is None and table.box is None and not table.premultiplied
    assert table.origin.tolist() == [[3.0, -4.0]]
    assert table.pixel_size.tolist() == [2.0]
    assert table.group.tolist() == [0]
    assert table.optics.voltage.tolist() == [300.0]
    assert table.optics.spherical_aberration.tolist() == [2.7]
    assert table.optics.amplitude_contrast.tolist() == [0.1]
    assert table.optics.defocus_u.tolist() == [12000.0]
    assert table.optics.defocus_v.tolist() == [11000.0]
    assert table.optics.defocus_angle.tolist() == pytest.approx([40 * DEGREE], rel=1e-15)
    assert table.optics.phase_shift.tolist() == pytest.approx([math.pi / 2], rel=1e-15)
    assert table.optics.b_factor.tolist() == [50.0]
    assert table.optics.scale.tolist() == [0.5]


@pytest.mark.parametrize("name", ["", "images", "particles", "model_class_1"])
def test_old_file_means_the_same(tmp_path, write_star, optics, particle, old, name):
    one = star.read(write_star(tmp_path / "old.star", {name: [old]}))
    particle |= {"rlnOriginXAngst": 3.0, "rlnOriginYAngst": -4.0}
    two = star.read(
        write_star(tmp_path / "new.star", {"optics": [optics], "particles": [particle]})
    )
    assert one.pixel_size.tolist() == [2.0]  # 5 µm / 25,000
    assert torch.equal(one.rotation, two.rotation)
    assert torch.equal(one.origin, two.origin)
    assert one.group.tolist() == [0]
    for field in dataclasses.fields(Optics):
        old_value = getattr(one.optics, field.name)
        new_value = getattr(two.optics, field.name)
        if old_value is None:
            assert new_value is None, field.name
        else:
            assert torch.equal(old_value, new_value), field.name


@pytest.mark.parametrize("name", ["rlnImagePixelSize", "rlnPixelSize"])
def test_pixel_size_that_is_said_wins_over_magnification(tmp_path, write_star, old, name):
    table = star.read(write_star(tmp_path / "a.star", {"": [old | {name: 3.0}]}))
    assert table.pixel_size.tolist() == [3.0]
    assert table.origin.tolist() == [[4.5, -6.0]]


def test_defaults(tmp_path, write_star, optics, particle):
    table = star.read(
        write_star(tmp_path / "a.star", {"optics": [optics], "particles": [particle]})
    )
    assert table.origin.tolist() == [[0.0, 0.0]]
    assert table.optics.phase_shift.tolist() == [0.0]
    assert table.optics.b_factor.tolist() == [0.0]
    assert table.optics.scale.tolist() == [1.0]


@given(
    numbers=st.lists(st.integers(1, 99), min_size=2, max_size=5, unique=True),
    data=st.data(),
    optics_first=st.booleans(),
)
def test_optics_are_joined_by_number_in_any_order(
    write_star, make_optics, make_particle, numbers, data, optics_first
):
    rows = data.draw(st.lists(st.sampled_from(numbers), min_size=1, max_size=8))
    optics = [
        make_optics(rlnOpticsGroup=n, rlnVoltage=100.0 + n, rlnAmplitudeContrast=n / 100)
        for n in numbers
    ]
    particles = [make_particle(rlnOpticsGroup=n) for n in rows]
    tables = {"optics": optics, "particles": particles}
    with tempfile.TemporaryDirectory() as folder:
        table = star.read(
            write_star(
                Path(folder) / "a.star", tables if optics_first else dict(reversed(tables.items()))
            )
        )
    assert table.group.tolist() == [numbers.index(n) for n in rows]
    assert table.optics.voltage.tolist() == [100.0 + n for n in rows]
    assert table.optics.amplitude_contrast.tolist() == [n / 100 for n in rows]


def test_particle_column_wins_over_optics(tmp_path, write_star, optics, particle):
    table = star.read(
        write_star(
            tmp_path / "a.star",
            {"optics": [optics], "particles": [particle | {"rlnVoltage": 200.0}]},
        )
    )
    assert table.optics.voltage.tolist() == [200.0]


def test_origin_in_angstrom_wins_over_pixels(tmp_path, write_star, optics, particle):
    particle |= {
        "rlnOriginX": 7.0,
        "rlnOriginY": 7.0,
        "rlnOriginXAngst": 3.0,
        "rlnOriginYAngst": -4.0,
    }
    table = star.read(
        write_star(tmp_path / "a.star", {"optics": [optics], "particles": [particle]})
    )
    assert table.origin.tolist() == [[3.0, -4.0]]


def test_groups_without_an_optics_table(tmp_path, write_star, old):
    rows = [old | {"rlnOpticsGroup": n} for n in (7, 3, 7)]
    assert star.read(write_star(tmp_path / "a.star", {"particles": rows})).group.tolist() == [
        1,
        0,
        1,
    ]


def test_tables_without_loop(tmp_path, optics, particle):
    def block(name, row):
        return f"data_{name}\n\n" + "".join(f"_{k} {v}\n" for k, v in row.items()) + "\n"

    path = tmp_path / "a.star"
    path.write_text(
        block("general", {"rlnFoo": 1}) + block("optics", optics) + block("particles", particle)
    )
    table = star.read(path)
    assert len(table) == 1
    assert table.optics.voltage.tolist() == [300.0]


def test_raw_tables_are_kept(tmp_path, write_star, optics, particle):
    particle |= {"rlnGroupName": "007", "rlnOddZernike": "[0.1,0,-2]", "rlnClassNumber": 3}
    columns = star.read(
        write_star(tmp_path / "a.star", {"optics": [optics], "particles": [particle]})
    ).columns
    assert [table.name for table in columns.tables] == ["optics", "particles"]
    assert list(columns.particles.columns) == list(particle)
    assert list(columns.optics.columns) == list(optics)
    assert columns.texts("rlnGroupName") == columns.keys("rlnGroupName") == ["007"]  # no number
    assert columns.texts("rlnOddZernike") == ["[0.1,0,-2]"]
    assert columns.keys("rlnClassNumber") == [3.0]


def test_gzipped(tmp_path, write_star, optics, particle):
    plain = write_star(tmp_path / "a.star", {"optics": [optics], "particles": [particle]})
    packed = tmp_path / "b.star.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert torch.equal(star.read(packed).rotation, star.read(plain).rotation)
    assert star.read(packed).path == packed


def test_a_file_that_was_mended_is_read_afresh(tmp_path, write_star, optics, particle):
    path = tmp_path / "a.star"
    path.write_text("data_particles\nloop_\n_rlnImageName\n1@a.mrcs\n1@a.mrcs 2\n")
    fails(path, "row 2", "2 values")
    assert len(star.read(write_star(path, {"optics": [optics], "particles": [particle]}))) == 1


@pytest.mark.parametrize(
    "text, numbers",
    [
        ("[0.1,0,-2]", [0.1, 0.0, -2.0]),
        ('"[0.1,0,-2]"', [0.1, 0.0, -2.0]),
        ("'[ 1, 2 ]'", [1.0, 2.0]),
        ("[]", []),
        (3, [3.0]),
    ],
)
def test_vector(text, numbers):
    assert star_optics.vector(text) == numbers


NEUTRAL = {
    "rlnMagMat00": 1.0,
    "rlnMagMat01": 0.0,
    "rlnMagMat10": 0.0,
    "rlnMagMat11": 1.0,
    "rlnBeamTiltX": 0.0,
    "rlnBeamTiltY": 0.0,
    "rlnOddZernike": "[0,0,0]",
    "rlnEvenZernike": "[]",
}


@pytest.mark.parametrize(
    "extra, name, values",
    [
        ({"rlnMagMat00": 1.01, "rlnMagMat11": 1.0}, "magnification", [[1.01, 0], [0, 1]]),
        ({"rlnMagMat01": -0.01}, "magnification", [[1, -0.01], [0, 1]]),
        ({"rlnBeamTiltX": 0.1, "rlnBeamTiltY": 0.0}, "beam_tilt", [0.1, 0]),
        ({"rlnBeamTiltY": -0.1}, "beam_tilt", [0, -0.1]),
        ({"rlnEvenZernike": "[0,0,1e-3]"}, "even", [0, 0, 1e-3]),
        ({"rlnOddZernike": '"[0,0.5,0]"'}, "odd", [0, 0.5, 0]),
    ],
)
def test_aberrations_are_read(tmp_path, write_star, optics, particle, extra, name, values):
    """What is there, and nothing else: what says nothing is None."""
    tables = {"optics": [optics | NEUTRAL | extra], "particles": [particle]}
    table = star.read(write_star(tmp_path / "a.star", tables))
    for field in ("beam_tilt", "odd", "even", "magnification"):
        found = getattr(table.optics, field)
        if field == name:
            assert found.tolist() == [values]
        else:
            assert found is None
    assert table.ignored == ()


def test_vectors_of_groups_are_padded(tmp_path, write_star, optics, particle):
    groups = [
        optics | {"rlnOpticsGroup": 1, "rlnOddZernike": "[1,2]"},
        optics | {"rlnOpticsGroup": 2, "rlnOddZernike": "[3]"},
    ]
    rows = [particle | {"rlnOpticsGroup": 2}, particle | {"rlnOpticsGroup": 1}]
    tables = {"optics": groups, "particles": rows}
    table = star.read(write_star(tmp_path / "a.star", tables))
    assert table.optics.odd.tolist() == [[3, 0], [1, 2]]


def test_what_is_no_vector_is_named(tmp_path, write_star, optics, particle):
    tables = {"optics": [optics | {"rlnOddZernike": "None"}], "particles": [particle]}
    table = star.read(write_star(tmp_path / "a.star", tables))
    assert table.ignored == ("rlnOddZernike",)
    assert table.optics.odd is None


def test_a_distortion_is_named_where_no_optics_are_read(tmp_path, write_star, optics, particle):
    tables = {"optics": [optics | {"rlnMagMat01": 0.01}], "particles": [particle]}
    table = star.read(write_star(tmp_path / "a.star", tables), ctf=False)
    assert table.ignored == ("rlnMagMat01",)


def test_a_matrix_that_is_no_distortion_is_refused(tmp_path, write_star, optics, particle):
    tables = {"optics": [optics | {"rlnMagMat00": 0.0}], "particles": [particle]}
    with pytest.raises(DataError, match="rlnMagMat00 to rlnMagMat11 of row 1.*0, 0, 0, 1"):
        star.read(write_star(tmp_path / "a.star", tables))


def test_without_contrast_transfer(tmp_path, write_star, optics, particle):
    bare = {k: v for k, v in particle.items() if "Defocus" not in k}
    path = write_star(
        tmp_path / "a.star",
        {"optics": [{"rlnOpticsGroup": 1, "rlnImagePixelSize": 2.0}], "particles": [bare]},
    )
    assert star.read(path, ctf=False).optics is None
    fails(path, "no column rlnVoltage", "has the CTF of all images")


@pytest.mark.parametrize(
    "column, remedy",
    [
        ("rlnImageName", "STAR file of particles"),
        ("rlnAngleRot", "3-D refinement"),
        ("rlnAngleTilt", "3-D refinement"),
        ("rlnAnglePsi", "3-D refinement"),
        ("rlnDefocusU", "has the CTF of all images"),
        ("rlnDefocusV", "has the CTF of all images"),
        ("rlnDefocusAngle", "has the CTF of all images"),
        ("rlnVoltage", "has the CTF of all images"),
        ("rlnSphericalAberration", "has the CTF of all images"),
        ("rlnAmplitudeContrast", "has the CTF of all images"),
    ],
)
def test_missing_column(tmp_path, write_star, optics, particle, column, remedy):
    optics.pop(column, None), particle.pop(column, None)
    fails(
        write_star(tmp_path / "a.star", {"optics": [optics], "particles": [particle]}),
        f"no column {column}",
        remedy,
    )


def test_missing_pixel_size(tmp_path, write_star, old):
    old.pop("rlnMagnification")
    fails(
        write_star(tmp_path / "a.star", {"": [old]}),
        "does not say the pixel size",
        "rlnImagePixelSize",
    )


@pytest.mark.parametrize(
    "column, value, words",
    [
        ("rlnAngleRot", "nan", "a number"),
        ("rlnAngleTilt", "inf", "a number"),
        ("rlnAnglePsi", "None", "a number"),
        ("rlnOriginXAngst", "nan", "a number"),
        ("rlnDefocusU", "nan", "a number"),
        ("rlnPhaseShift", "nan", "a number"),
        ("rlnVoltage", "0", "a voltage in kV above 0"),
        ("rlnAmplitudeContrast", "1.5", "from 0 to 1"),
        ("rlnImagePixelSize", "-2.0", "a length in Å above 0"),
    ],
)
def test_wrong_value_names_row_and_value(
    tmp_path, write_star, optics, particle, column, value, words
):
    shifts = {"rlnOriginXAngst": 0.0, "rlnOriginYAngst": 0.0, "rlnPhaseShift": 0.0}
    good = particle | optics | shifts
    path = write_star(
        tmp_path / "a.star", {"optics": [optics], "particles": [good, good, good | {column: value}]}
    )
    fails(path, f"{column} of row 3", f"is {value}", words, "mend or remove that row", "1 of 3")


@pytest.mark.parametrize(
    "content, words",
    [
        ("", ["no data_ table", "give a STAR file"]),
        ("hello\nworld\n", ["no data_ table"]),
        ("data_\n", ["without a table", "mend it"]),
        ("data_particles\n\nloop_\n_rlnImageName\n_rlnAngleRot\n", ["data_particles", "no rows"]),
        (
            "data_particles\nloop_\n_rlnA\n_rlnB\n1 2\n3 4 5\n",
            ["row 2 (line 6)", "3 values", "2 columns", "mend or remove that row"],
        ),
        (
            "data_particles\nloop_\n_rlnA\n_rlnB\n1 2 3\n3 4 5\n",
            ["row 1 (line 5)", "(2 of 2 rows are wrong: 1, 2)"],
        ),
        ("data_particles\nloop_\n_rlnA\n_rlnA\n1 2\n", ["column rlnA twice", "remove one"]),
        (
            "data_particles\nloop_\n_rlnA\n_rlnB\n1 2\ndata_x/1.mrc 3 4\n",
            ["row 2 (line 6)", "3 values"],
        ),
        ("data_optics\nloop_\n_rlnOpticsGroup\n1\n", ["no particle table", "data_optics"]),
        (
            "data_a\nloop_\n_rlnA\n1\ndata_b\nloop_\n_rlnA\n1\n",
            ["no particle table", "data_a, data_b"],
        ),
        ("".join(f"data_{i}\nloop_\n_rlnA\n1\n" for i in range(7)), ["data_4, ...;"]),
        ("data_micrographs\nloop_\n_rlnMicrographName\na.mrc\n", ["no column rlnImageName"]),
    ],
)
def test_broken_files(tmp_path, content, words):
    path = tmp_path / "a.star"
    path.write_text(content)
    fails(path, *words)


def test_what_is_no_text(tmp_path, write_stack):
    path = tmp_path / "a.star"
    path.write_bytes(b"\x7fELF\xff\xfe")
    fails(path, "not a STAR file", "not the images")
    fails(tmp_path, "is a folder", "a.star")
    fails(tmp_path / "none.star", "does not exist")


def test_what_is_no_whole_gzip_file(tmp_path):
    path = tmp_path / "a.star.gz"
    whole = gzip.compress(b"".join(b"data_%d\n" % number for number in range(1000)))
    middle = len(whole) // 2
    path.write_bytes(whole[:-20])
    fails(path, "can't be read", "compressed data are cut off", "copy it again")
    for damaged in (
        b"data_particles\n",  # not packed
        whole[:10] + b"\xff" * 10 + whole[20:],  # no block that the format knows
        whole[:-8] + bytes(4) + whole[-4:],  # another checksum
        whole[:middle] + bytes(40) + whole[middle + 40 :],
    ):
        path.write_bytes(damaged)
        fails(path, "can't be read: its compressed data are damaged", "copy it again")


def test_broken_joins(tmp_path, write_star, optics, particle):
    path = tmp_path / "a.star"
    rows = [particle, particle | {"rlnOpticsGroup": 5}]
    fails(
        write_star(path, {"optics": [optics], "particles": rows}), "row 2", "is 5", "add that group"
    )
    fails(
        write_star(path, {"optics": [optics, optics], "particles": [particle]}),
        "optics group 1 twice",
        "one row",
    )
    particle.pop("rlnOpticsGroup")
    fails(
        write_star(path, {"optics": [optics], "particles": [particle]}),
        "the particle table",
        "rlnOpticsGroup",
        "add it",
    )


def test_tilt_series_are_refused(tmp_path, write_star, optics, particle):
    path = write_star(
        tmp_path / "a.star",
        {"optics": [optics], "particles": [particle | {"rlnTomoVisibleFrames": "[1,0,1]"}]},
    )
    fails(path, "rlnTomoVisibleFrames", "one row an image")


CORPUS = {
    "relion31.star": (5, [2.806]),
    "relion31.v2.star": (5, [2.806]),
    "relion31.6opticsgroups.star": (139, [1.24, 1.25]),
    "relion5.star": (17, [0.89]),
    "sample_particles_relion30.star": (17, [5e4 / 37369.207031]),
    "sample_particles_relion31.star": (17, [1.4]),
    "sample_relion_symmetry_group_D4.star": (17, [5e4 / 37369.207031]),
    "betagal_4500.star.gz": (4501, [1.244531]),
    "FinalRefinement-OriginalParticles-PfCRT.star": (5, [1.035]),
}


@pytest.mark.parametrize("name", CORPUS)
def test_corpus(shared_data, name):
    path = shared_data / "star-corpus" / name
    count, sizes = CORPUS[name]
    if "PfCRT" in name:
        fails(path, "no column rlnAmplitudeContrast")
    table = star.read(path, ctf="PfCRT" not in name)
    assert len(table) == count
    assert np.unique(table.pixel_size.numpy()).tolist() == pytest.approx(sizes, rel=1e-12)
    assert all("@" in n for n in table.image_names)
    text = (
        gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    ).decode()
    assert sum("@" in line for line in text.splitlines()) == count  # no row is lost


def test_corpus_is_complete(shared_data):
    assert {p.name for p in (shared_data / "star-corpus").iterdir() if ".star" in p.name} == set(
        CORPUS
    )


def test_corpus_values(shared_data):
    table = star.read(shared_data / "star-corpus" / "relion5.star")
    assert table.image_names[:2] == ["1@toy_images_a.mrcs", "2@toy_images_b.mrcs"]
    assert torch.rad2deg(star.euler_angles(table.columns)[0]).tolist() == pytest.approx(
        [111.508618, 36.742536, 141.158035], abs=1e-9
    )
    assert table.origin[0].tolist() == [-3.12578, -1.41031]
    assert (table.optics.voltage[0], table.optics.spherical_aberration[0]) == (100.0, 1.6)
    assert table.optics.defocus_u[0] == 11949.061330
    table = star.read(shared_data / "star-corpus" / "relion31.6opticsgroups.star")
    assert table.image_names[0] == "3@Polish/job520/Micrographs/0003_shiny.mrcs"
    assert table.group[0] == 5
    assert sorted(set(table.group.tolist())) == [0, 1, 2, 3, 4, 5]
    four = table.group == 3
    assert table.optics.spherical_aberration[four].unique().tolist() == [2.6]
    assert table.ignored == ()
    assert len(star.read(table.path, ctf=False).ignored) == 4


def test_corpus_table_order_does_not_matter(shared_data):
    one, two = (
        star.read(shared_data / "star-corpus" / name)
        for name in ("relion31.star", "relion31.v2.star")
    )
    assert torch.equal(one.rotation, two.rotation)
    assert torch.equal(one.optics.defocus_v, two.optics.defocus_v)
    assert torch.equal(one.optics.amplitude_contrast, two.optics.amplitude_contrast)


def test_other_files_of_real_jobs_are_refused(shared_data):
    folder = shared_data / "ribosome-tilts" / "warptools"
    name = "warptools_test_4-tomos_10-ptcls_box-32_angpix-12"
    fails(folder / f"{name}.star", "rlnTomoVisibleFrames")
    fails(folder / f"{name}_optimisation_set.star", "no column rlnImageName")
    fails(folder / f"{name}_tomograms.star", "no particle table", "data_Unt_088")
    fails(shared_data / "star-corpus" / "test_ctf.pkl", "not a STAR file")
