"""What `instamap reconstruct` does with input that it can't use: one line that says what, which
value and what to do; nothing is left.
"""

import re
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
import torch
from support.command import QUICK, instamap, maps, plugin

from instamap.errors import DataError
from instamap.maps import mask, mrc
from instamap.plugin.hooks import hookimpl
from instamap.simulate import particle_set

BOX = 16
PIXEL = 6.0
COUNT = 60
KEPT = ".instamap-kept"  # in the output folder, of a run that was stopped


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """The STAR file of a set that can be used."""
    return particle_set.demo(
        tmp_path_factory.mktemp("data"),
        count=COUNT,
        box=BOX,
        pixel_size=PIXEL,
        snr=1.0,
    )


@pytest.fixture
def changed(good, tmp_path):
    """changed(fn) is the STAR file of a copy of `good` whose particle table went through fn."""

    def make(change) -> Path:
        tables = starfile.read(good)
        tables["particles"] = change(tables["particles"])
        (tmp_path / "particles.mrcs").write_bytes((good.parent / "particles.mrcs").read_bytes())
        starfile.write(tables, tmp_path / "changed.star")
        return tmp_path / "changed.star"

    return make


@pytest.fixture
def refused(tmp_path):
    """refused(*words) is the one line with which `instamap reconstruct` refuses, once it is known
    to have left nothing behind.
    """

    def call(*words) -> str:
        before = sorted(tmp_path.rglob("*"))
        outcome = instamap("reconstruct", *words, "-o", tmp_path / "out")
        assert sorted(tmp_path.rglob("*")) == before, "something was left behind"
        return outcome.refusal

    return call


def other_box(table, folder: Path):
    """The last image is in a stack of its own, with a larger box."""
    with mrcfile.new(folder / "larger.mrcs") as file:
        file.set_data(np.zeros((1, BOX + 4, BOX + 4), np.float32))
        file.set_image_stack()
    return renamed(table, "1@larger.mrcs")


def renamed(table, name: str):
    table.loc[table.index[-1], "rlnImageName"] = name
    return table


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.drop(columns="rlnAngleTilt"), "rlnAngleTilt"),
        (lambda t: t.drop(columns="rlnDefocusU"), "rlnDefocusU"),
        (
            lambda t: renamed(t, "1@lost.mrcs"),
            "stack 'lost.mrcs' of row 60 of .*changed.star' is missing .*--datadir",
        ),
        (
            lambda t: renamed(t, f"{COUNT + 1:06d}@particles.mrcs"),
            f"asks for image {COUNT + 1} of .*particles.mrcs', which has {COUNT}; use",
        ),
        (lambda t: t.iloc[:0], "changed.star"),
        (
            lambda t: t.iloc[:1],
            (
                "changed.star' has one particle, which can't be split into halves; .*without"
                " halves|no particles are left"
            ),
        ),
    ],
    ids=["column", "defocus", "stack", "index", "empty", "one"],
)
def test_particles_that_cannot_be_used(changed, refused, change, said):
    assert re.search(said, refused(changed(change), *QUICK))


def test_boxes_that_differ(changed, refused, tmp_path):
    line = refused(changed(lambda table: other_box(table, tmp_path)), *QUICK)
    assert "16 pixels wide" in line and "larger.mrcs' 20; extract all with one box" in line


def test_one_bad_pixel_is_named(changed, refused, tmp_path):
    star = changed(lambda table: table)
    poison(tmp_path / "particles.mrcs", 41)
    assert re.search(
        r"image '0*42@particles.mrcs' of row 42 of .*has pixels that are not finite; remove",
        refused(star, *QUICK),
    )


def poison(stack: Path, image: int) -> None:
    """Overwrite one pixel of an image (from 0) with NaN."""
    with stack.open("r+b") as file:
        file.seek(1024 + 4 * (image * BOX**2 + 37))
        file.write(np.float32("nan").tobytes())


def test_a_failure_in_the_middle_leaves_nothing_but_what_can_be_gone_on_from(changed, tmp_path):
    """All images turn bad when the second half map is begun: the first one is done, and the folder
    is held.
    """
    star = changed(lambda table: table)
    before = []
    fits = []

    class Plugin:
        @hookimpl
        def instamap_step_finished(self, name):
            before.append(sorted(p.name for p in (tmp_path / "out").iterdir()))
            fits.append(name)
            for image in range(COUNT) if name == "half2" else ():
                poison(tmp_path / "particles.mrcs", image)

    files = sorted(tmp_path.iterdir())
    quick = ("--objective", "images", "-O", "steps=4", "-O", "evaluate_every=2", "-O", "batch=4")
    with plugin(Plugin()):
        outcome = instamap("reconstruct", star, "-o", tmp_path / "out", *quick)
    assert before[-1] == [KEPT, ".instamap.lock"], "the folder was not held: nothing was shown"
    assert fits == ["half1", "half1", "half2"], "one after the other, as tests have one thread"
    assert outcome.code == 2 and "Traceback" not in outcome.err and not outcome.out
    last = outcome.err.splitlines()[-1]
    assert last.startswith("error: stack '") and "changed while it was in use" in last
    assert outcome.err.count("error") == 1
    assert sorted(tmp_path.iterdir()) == sorted([*files, tmp_path / "out"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == [KEPT]
    assert "--resume goes on" in outcome.err


def test_ctrl_c_leaves_nothing_but_what_can_be_gone_on_from(good, tmp_path):
    class Plugin:
        @hookimpl
        def instamap_step_finished(self, name, step):
            if name == "half2":
                raise KeyboardInterrupt

    with plugin(Plugin()):
        outcome = instamap("reconstruct", good, "-o", tmp_path / "out", *QUICK)
    assert (
        outcome.code == 130
        and outcome.err.splitlines()[-1] == "interrupted"
        and "Traceback" not in outcome.err
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == [KEPT]
    assert "--resume goes on" in outcome.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--representation", "hash-gird"],
            "representation 'hash-gird' is unknown; choose .*did you mean hash-grid",
        ),
        (["--objective", "norml"], "objective 'norml' is unknown; choose .*did you mean normal"),
        (
            ["-R", "levles=3"],
            r"option 'levles' of HashGrid is unknown; choose .*did you mean levels\?",
        ),
        (
            ["-R", "levels=99"],
            "option 'levels' of HashGrid is 99; it must be a whole number from 1 to 32",
        ),
        (["-R", "levels=few"], "option 'levels' of HashGrid is 'few'; it must be a whole number"),
        (["-R", "levels=3", "-R", "levels=4"], r"option 'levels' is given twice \(3 and 4\)"),
        (["-D", "angle=2"], "option 'angle' of .* is unknown; it has none"),
        (
            ["-O", "batch=5"],
            (
                "option 'batch' of NormalEquations is unknown; choose steps, evaluate_every, .*,"
                " widen"
            ),
        ),
        (
            ["--workflow", "map", "--objective", "normal", "--deform", "rigid"],
            (
                "workflow 'map' does not fit these settings: objective 'normal': deformation Rigid"
                " gives every particle its own density; choose another objective"
            ),
        ),
        (["--seed", "-1"], "seed is -1; it must be a whole number from 0 to 2147483647"),
        (
            ["--seed", str(2**70)],
            "seed is 1180591620717411303424; it must be a whole number from 0 to 2147483647",
        ),
        (["--group-by", "rlnGroupName"], "rlnGroupName"),
        (["--mask", "nothing.mrc"], "map 'nothing.mrc' does not exist"),
        (["--datadir", "nowhere"], "stack 'particles.mrcs' of row 1 of .* is missing .*nowhere"),
        (
            ["--config", "nothing.toml"],
            "settings file 'nothing.toml' does not exist; give the run.toml of an earlier run",
        ),
    ],
)
def test_choices_that_cannot_be_made(good, refused, words, said):
    assert re.search(said, refused(good, *words))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour = 1", "'colour' in '.*bad.toml' is unknown; choose particles, "),
        ("seed = 'one'", "'seed' in '.*bad.toml' is 'one'; it must be a whole number"),
        ("seed = true", "'seed' in '.*bad.toml' is True; it must be a whole number"),
        (
            "held_out = 1.5",
            "'held_out' in '.*bad.toml' is 1.5; it must be a number from 0.001 to 0.9",
        ),
        ("objective = 'normal'", "'objective' in '.*bad.toml' is 'normal'; it must be a table"),
        ("[objective]\nsteps = 5", "table 'objective' in '.*bad.toml' has no name of a part"),
        ("[objective]\nname = 5", "table 'objective' in '.*bad.toml' has no name of a part"),
        ("[objective]\nname = 'normal'\npace = 5", "option 'pace' of NormalEquations is unknown"),
        (
            "[objective]\nname = 'normal'\nsteps = 0",
            "option 'steps' of NormalEquations is 0; it must be a whole number of at least 1",
        ),
        (
            "[[objective",
            "settings file '.*bad.toml' cannot be read: .*; give the run.toml of an earlier run",
        ),
    ],
)
def test_settings_files_that_cannot_be_used(good, refused, tmp_path, text, said):
    (tmp_path / "bad.toml").write_text(text)
    assert re.search(said, refused(good, "--config", tmp_path / "bad.toml"))


def test_no_particles(refused, tmp_path):
    assert "no particles: give a STAR file, or --config" in refused()
    assert "missing.star' does not exist; give the path of a STAR file" in refused(
        tmp_path / "missing.star"
    )


def test_a_folder_in_place_of_particles(good, refused, tmp_path):
    """The file within it that may be meant is named, where there is one."""
    (tmp_path / "empty").mkdir()
    assert "empty' is a folder; give a STAR file" in refused(tmp_path / "empty")
    said = refused(good.parent)
    assert "is a folder; give a STAR file, such as '" in said and f"{good.name}'" in said


def test_masks_that_do_not_fit(good, refused, tmp_path):
    for name, map, pixel, said in (
        (
            "small",
            torch.ones(BOX - 2, BOX - 2, BOX - 2),
            PIXEL,
            "has a box of 14, the data of 16; crop, pad or rescale",
        ),
        ("fine", torch.ones(BOX, BOX, BOX), 2.0, "has pixels of 2 Å, the data of 6 Å; rescale"),
        (
            "loud",
            3 * torch.ones(BOX, BOX, BOX),
            PIXEL,
            "has values from 3 to 3; they must be from 0 to 1",
        ),
        ("empty", torch.zeros(BOX, BOX, BOX), PIXEL, "is empty"),
    ):
        mrc.write(tmp_path / f"{name}.mrc", map, pixel)
        assert said in refused(good, "--mask", tmp_path / f"{name}.mrc")


def test_a_folder_with_a_run_is_replaced_only_with_force(good, tmp_path):
    out = tmp_path / "out"
    words = ("reconstruct", good, "-o", out, *QUICK)
    assert instamap(*words).code == 0
    (out / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert (
        "already holds a run; choose another or add --force to replace it"
        in instamap(*words, "--seed", 3).refusal
    )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert instamap(*words, "--seed", 3, "--no-halves", "--force").code == 0
    # Half maps of the earlier run would be taken for those of this one; what is no part of a run
    # stays.
    assert {path.name for path in out.iterdir()} == {
        "SHA256SUMS",
        "report.html",
        "map.mrc",
        "mask.mrc",
        "map.png",
        "held_out.png",
        "run.toml",
        "log.jsonl",
        "result.json",
        "notes.txt",
    }
    assert (out / "map.mrc").read_bytes() != before["map.mrc"]
    # A run that fails leaves the earlier one as it is.
    kept = {path.name: path.read_bytes() for path in out.iterdir()}
    mrc.write(tmp_path / "small.mrc", mask.sphere(8, PIXEL, 10.0, 0.0), PIXEL)
    assert instamap(*words, "--force", "--mask", tmp_path / "small.mrc").code == 2
    assert {path.name: path.read_bytes() for path in out.iterdir()} == kept and list(
        maps(out)
    ) != []


def test_a_folder_that_cannot_be_made(good, refused, tmp_path):
    (tmp_path / "out").write_text("a file")
    assert "out' is a file; name a folder" in refused(good, *QUICK)


def test_errors_of_several_lines_become_one(monkeypatch):
    """What a reader of files says may have line breaks in it."""

    def fail(*arguments):
        raise DataError("one\n  two")

    monkeypatch.setattr("instamap.workflows.read_settings.read_settings", fail)
    assert instamap("reconstruct", "a.star").refusal == "error: one two"
