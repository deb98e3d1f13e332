"""STAR files are read as RELION 3.1.3 reads them, and every value is kept to the letter."""

import gzip
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instamap.data.formats import star_file
from instamap.data.formats.star_file import Column, Table
from instamap.errors import DataError

HEAD = "data_particles\n\nloop_\n_rlnImageName #1\n_rlnAngleRot #2\n_rlnMicrographName #3\n"
ROWS = ["1@a.mrcs 1.5 m1", "2@a.mrcs 2.5 m2", "3@a.mrcs 3.5 m3"]
PLAIN = [tuple(row.encode().split()) for row in ROWS]


def read(folder: Path, text: str | bytes) -> list[Table]:
    path = folder / "x.star"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return star_file.read(path)


def values(table: Table) -> list[tuple[bytes, ...]]:
    columns = [column.written() for column in table.columns.values()]
    return list(zip(*columns, strict=True))


def fails(folder: Path, text: str | bytes, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        read(folder, text)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(folder / "x.star"), ";", *words):
        assert word in message, message


def joined(rows: list[str]) -> str:
    return "\n".join(rows) + "\n"


WHOLE = HEAD + joined(ROWS)


@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        WHOLE.removesuffix("\n"),
        WHOLE.replace("loop_", "loop_\n\n# columns\n"),
        WHOLE.replace("_rlnAngleRot", "# pose\n\n_rlnAngleRot"),
        HEAD + "\n# rows\n\n" + joined(ROWS),
        HEAD + joined([ROWS[0], "", "# between", *ROWS[1:]]),
        HEAD + joined([ROWS[0] + " # good", *ROWS[1:]]),
        HEAD + joined([ROWS[0], "#" + ROWS[1], *ROWS[1:]]),
        WHOLE.replace(" #1", "").replace(" #2", "").replace(" #3", ""),
        WHOLE.replace("#3", "#3 [of the movie]"),
        WHOLE.replace(" ", " \t "),
        WHOLE.replace("\n", "\n  "),
        WHOLE.replace("\n", "\r\n"),
        WHOLE.replace("\n", "\r"),
        WHOLE.replace("data_particles", "data_particles # mine"),
        "\ufeff" + WHOLE,
        "made by hand\n" + WHOLE,
        "# version 30001\n" + WHOLE,
    ],
)
def test_layouts_that_say_the_same(tmp_path, text):
    [table] = read(tmp_path, text)
    assert table.name == "particles" and table.loop
    assert list(table.columns) == ["rlnImageName", "rlnAngleRot", "rlnMicrographName"]
    assert values(table) == PLAIN
    assert table.columns["rlnAngleRot"].numbers().tolist() == [1.5, 2.5, 3.5]


@pytest.mark.parametrize(
    "written, text",
    [
        ("ann's/m1.mrc", "ann's/m1.mrc"),
        ("grid#1.mrc", "grid#1.mrc"),
        ("'my file.mrc'", "my file.mrc"),
        ('"my file.mrc"', "my file.mrc"),
        ("'ann's file.mrc'", "ann's file.mrc"),
        ('"a # b"', "a # b"),
        ('""', ""),
        ("<NA>", "<NA>"),
        ("'tis.mrc", "'tis.mrc"),
        ('12"', '12"'),
        ("m[1].mrc", "m[1].mrc"),
        ("m@1", "m@1"),
        ("data_1", "data_1"),
        ("loop_1", "loop_1"),
        ("007", "007"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_values_are_kept_to_the_letter(tmp_path, written, text, place):
    row = ["x", "y", "z"]
    row[place] = written
    [table] = read(tmp_path, HEAD + " ".join(row) + "\n" + joined(ROWS))
    column = list(table.columns.values())[place]
    assert column.written()[0] == written.encode()
    assert column.texts()[0] == text
    star_file.write([table], tmp_path / "new.star")
    [again] = star_file.read(tmp_path / "new.star")
    assert values(again) == values(table)


def test_names_that_are_not_utf_8(tmp_path):
    name = "Mikroskopiebilder/Pr\xfcfung.mrc".encode("latin-1")
    [table] = read(tmp_path, HEAD.encode() + b"1@a 1 " + name + b"\n")
    [text] = table.columns["rlnMicrographName"].texts()
    assert text.encode("utf-8", "surrogateescape") == name
    assert Column.of([text]).written() == [name]


@pytest.mark.parametrize(
    "row, words",
    [
        ("1@a.mrcs 1.5", ["row 2 (line 8)", "2 values", "3 columns"]),
        ("1@a.mrcs 1.5 m1 4", ["row 2 (line 8)", "4 values", "3 columns"]),
        ("1@a.mrcs #1.5 m1", ["row 2 (line 8)", "1 values"]),
        ("my file.mrcs 1.5 m1", ["row 2 (line 8)", "4 values"]),
        ("1@a.mrcs\n1.5 m1", ["(2 of 5 rows are wrong: 2, 3)"]),
    ],
)
def test_rows_of_another_length(tmp_path, row, words):
    fails(tmp_path, HEAD + joined([ROWS[0], row, *ROWS[1:]]), "data_particles", *words)


def test_all_wrong_rows_are_counted_and_the_first_ten_named(tmp_path):
    rows = [ROWS[0]] * 50 + ["short row"] * 12
    fails(tmp_path, HEAD + joined(rows), "row 51", "12 of 62", "51, 52, 53", "60, ...)")


@pytest.mark.parametrize(
    "text, words",
    [
        (b"\x00" + WHOLE.encode(), ["byte 0 is no text"]),
        (WHOLE.encode() + b"1@a \x00 1", ["is no text", "not the images"]),
        (WHOLE.encode("utf-16"), ["is no text"]),
        ("data_a\n_rlnA\n", ["line 2", "0 values for rlnA", "mend it"]),
        ("data_a\n_rlnA 1 2\n", ["line 2", "2 values for rlnA"]),
        ("data_a\nhello\n_rlnA 1\n", ["line 2", "belongs to no table"]),
        ("data_a\nloop_\n_rlnA\n1\nloop_\n_rlnB\n2\n", ["line 5", "second table in data_a"]),
        (HEAD.replace("rlnAngleRot", "rlnImageName") + ROWS[0], ["rlnImageName twice"]),
    ],
)
def test_files_that_cannot_be_read(tmp_path, text, words):
    fails(tmp_path, text, *words)


def test_several_tables_with_and_without_a_loop(tmp_path):
    text = (
        "# version 30001\n\ndata_general\n\n_rlnFoo 3 # three\n_rlnBar 'a b'\n\n"
        "# version 30001\n\ndata_optics\n\nloop_\n_rlnOpticsGroup\n1\n\n# mine\n" + WHOLE
    )
    general, optics, particles = read(tmp_path, text)
    assert not general.loop and values(general) == [(b"3", b"'a b'")]
    assert values(optics) == [(b"1",)]
    assert [t.comments for t in (general, optics, particles)] == [
        (b"# version 30001",),
        (b"# version 30001",),
        (b"# mine",),
    ]
    star_file.write([general, optics, particles], tmp_path / "new.star")
    again = star_file.read(tmp_path / "new.star")
    assert [(t.name, t.loop, t.comments, values(t)) for t in again] == [
        (t.name, t.loop, t.comments, values(t)) for t in (general, optics, particles)
    ]


def test_rows_that_begin_like_a_table(tmp_path):
    rows = ["data_1/a.mrcs 1 m", "loop_ 2 m", *ROWS]
    [table] = read(tmp_path, HEAD + joined(rows))
    assert len(table) == 5


def test_blocks_do_not_show(tmp_path, monkeypatch):
    """However the file is cut into blocks, also between a carriage return and a line feed."""
    texts = [WHOLE, WHOLE.replace("\n", "\r\n"), WHOLE + "\n# c\n" + WHOLE.replace("_part", "_x")]
    for text in texts:
        whole = [(t.name, t.line, t.comments, values(t)) for t in read(tmp_path, text)]
        for size in (1, 2, 3, 7, 50):
            monkeypatch.setattr(star_file, "_BLOCK", size)
            found = [(t.name, t.line, t.comments, values(t)) for t in read(tmp_path, text)]
            assert found == whole, size
        monkeypatch.undo()


def test_a_wide_value_does_not_widen_all_others(tmp_path):
    wide = "x" * 100_000
    [table] = read(tmp_path, HEAD + joined([f"1@a 1 {wide}", *ROWS * 3000]))
    column = table.columns["rlnMicrographName"]
    assert column.texts()[0] == wide and len(column) == 9001
    assert all(piece.nbytes < 1 << 20 for piece in column._pieces)


def test_what_packs_too_well_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(star_file, "_MIN_UNPACKED", 1 << 16)
    path = tmp_path / "x.star.gz"
    path.write_bytes(gzip.compress(b"\n" * (1 << 22)))
    with pytest.raises(DataError, match="unpacks to more than"):
        star_file.read(path)
    path.write_bytes(gzip.compress(WHOLE.encode()))
    assert values(star_file.read(path)[0]) == PLAIN


@given(
    st.lists(
        st.one_of(
            st.floats(allow_nan=False, allow_infinity=False).map(repr),
            st.floats(-1e5, 1e5).map(lambda v: f"{v:.6f}"),
            st.integers(-(10**20), 10**20).map(str),
        ),
        min_size=1,
    )
)
def test_numbers_are_those_of_python(texts):
    column = Column.of(texts)
    assert column.numbers().tolist() == [float(text) for text in texts]


@pytest.mark.parametrize("text", ["1_000", "None", "", "1.5x", "0x10", "1,5", "--1", "<NA>"])
def test_what_is_no_number(text):
    numbers = Column.of(["20", text, "'7.5'"]).numbers()
    assert np.isnan(numbers[1])
    assert numbers[[0, 2]].tolist() == [20.0, 7.5] if text else numbers[0] == 20.0


@given(st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"])))
def test_new_values_are_read_as_they_were_meant(text):
    try:
        written = star_file.quoted(text)
    except DataError:
        assert "'" in text and '"' in text
        return
    assert star_file.words(b"a " + written + b" b")[1:2] == [written]
    assert star_file.unquoted(written) == text


@given(st.binary(max_size=400))
def test_any_bytes_end_in_tables_or_in_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "x.star"
    path.write_bytes(content)
    try:
        star_file.read(path)
    except DataError as error:
        assert "\n" not in str(error)


@given(st.lists(st.sampled_from(["data_", "loop_", "_a", "_b 1", "1", "'", '"', "#", "\n", " "])))
def test_any_words_end_in_tables_or_in_one_line(tmp_path_factory, pieces):
    path = tmp_path_factory.mktemp("any") / "x.star"
    path.write_text("".join(pieces))
    try:
        tables = star_file.read(path)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        star_file.write(tables, path)
        again = star_file.read(path) if any(t.columns for t in tables[-1:]) else tables
        assert [(t.name, values(t)) for t in again] == [(t.name, values(t)) for t in tables]


@pytest.mark.skipif(shutil.which("relion_star_handler") is None, reason="RELION is not installed")
def test_relion_reads_what_is_written(tmp_path):
    """Quotes, hashes and blanks included."""
    optics = {
        "rlnOpticsGroup": "1",
        "rlnOpticsGroupName": "my optics",
        "rlnVoltage": "300",
        "rlnSphericalAberration": "2.7",
        "rlnAmplitudeContrast": "0.1",
        "rlnImagePixelSize": "2",
        "rlnImageSize": "24",
        "rlnImageDimensionality": "2",
    }
    names = ["ann's/m#1.mrc", "my file.mrc", "m.mrc", "it's # here"]
    particles = {
        "rlnImageName": [f"{i}@a.mrcs" for i in range(1, 5)],
        "rlnOpticsGroup": ["1"] * 4,
        "rlnAngleRot": ["1.5"] * 4,
        "rlnMicrographName": names,
    }
    first = Table("optics", {label: Column.of([text]) for label, text in optics.items()})
    second = Table("particles", {label: Column.of(texts) for label, texts in particles.items()})
    star_file.write([first, second], tmp_path / "x.star")
    command = "relion_star_handler --i x.star --o y.star --select rlnAngleRot --minval 0 --maxval 9"
    done = subprocess.run(command.split(), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    read_back = star_file.read(tmp_path / "y.star")
    [table] = [table for table in read_back if table.name == "particles"]
    assert table.columns["rlnMicrographName"].texts() == names
