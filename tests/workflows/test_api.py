"""The Python front door: what it makes is what the command line makes, bit for bit."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.command import instamap as command
from support.command import maps

import instamap
from instamap.errors import DataError, OptionError
from instamap.progress import Evaluation, Progress
from instamap.simulate import particle_set
from instamap.workflows.settings import EVERY_COMMAND, Settings, fields_of_command

SHORT = {"steps": 10}
WORDS = ("--objective", "normal", "-O", "steps=10")
SAME_FILES = ("map.mrc", "half1.mrc", "half2.mrc", "mask.mrc", "fsc.csv", "run.toml")


@pytest.fixture(scope="module")
def star(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return particle_set.demo(folder, count=120, box=16, pixel_size=6.0, snr=1.0)


@pytest.fixture(scope="module")
def result(star) -> instamap.Result:
    return instamap.reconstruct(star, objective=("normal", SHORT))


# The same as the command line


def test_reconstruct_makes_what_the_command_makes(star, result, tmp_path):
    assert command("reconstruct", star, "-o", tmp_path / "typed", *WORDS).code == 0
    for name, volume in maps(tmp_path / "typed").items():
        expected = result.mask if name == "mask" else result.maps[name]
        assert torch.equal(volume, expected), name
    result.save(tmp_path / "called")
    for name in SAME_FILES:
        typed = (tmp_path / "typed" / name).read_bytes()
        assert (tmp_path / "called" / name).read_bytes() == typed, name
    assert set(result.files()) == {path.name for path in (tmp_path / "typed").iterdir()}


def test_a_part_is_chosen_in_the_same_words(star, tmp_path):
    called = instamap.reconstruct(
        str(star),
        representation=("voxel", {"floor": "none"}),
        likelihood="coloured",
        objective=("images", {"steps": 3, "batch": 4}),
        seed=3,
        halves=False,
    )
    words = ("--representation", "voxel", "-R", "floor=none", "--likelihood", "coloured")
    words += ("--objective", "images", "-O", "steps=3", "-O", "batch=4", "--seed", 3, "--no-halves")
    assert command("reconstruct", star, "-o", tmp_path / "out", *words).code == 0
    assert torch.equal(maps(tmp_path / "out")["map"], called.maps["map"])
    assert called.resolution is None


def test_accumulate_and_fit_make_what_the_commands_make(star, result, tmp_path):
    folder = instamap.accumulate(star, tmp_path / "called")
    assert folder.path == tmp_path / "called"
    assert command("accumulate", star, "-o", tmp_path / "typed").code == 0
    typed = (tmp_path / "typed" / "accumulate.toml").read_text()
    assert (tmp_path / "called" / "accumulate.toml").read_text() == typed
    fitted = instamap.fit(tmp_path / "called", objective=("normal", SHORT))
    assert command("fit", tmp_path / "typed", "-o", tmp_path / "out", *WORDS).code == 0
    for name in ("map", "half1", "half2"):
        assert torch.equal(fitted.maps[name], maps(tmp_path / "out")[name]), name
        assert torch.equal(fitted.maps[name], result.maps[name]), name


def test_shards_are_gathered_by_their_names(star, tmp_path):
    folder = instamap.accumulate(star, tmp_path / "stats", shard="2/3")
    assert [str(shard) for shard in folder.shards] == ["2/3"]
    with pytest.raises(OptionError, match="shard '4/3' does not exist"):
        instamap.accumulate(star, tmp_path / "other", shard="4/3")
    assert not (tmp_path / "other").exists()


def test_nothing_is_written_before_it_is_saved(star, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(star.parent.iterdir())
    instamap.reconstruct(star, objective=("normal", {"steps": 2}), halves=False)
    assert not list(tmp_path.iterdir())
    assert sorted(star.parent.iterdir()) == before


def test_load_gives_the_maps_back(result, tmp_path):
    result.save(tmp_path / "out")
    found = instamap.load(tmp_path / "out")
    for name in ("map", "half1", "half2"):
        assert torch.equal(found.maps[name], result.maps[name])
    assert found.settings == result.settings
    with pytest.raises(DataError, match="holds no result"):
        instamap.load(tmp_path)


def test_progress_is_told(star):
    class Heard(Progress):
        def __init__(self) -> None:
            self.lines: list[str] = []
            self.fits: list[str] = []
            self.read: list[tuple[int, int]] = []

        def message(self, line: str) -> None:
            self.lines.append(line)

        def images_read(self, done: int, total: int) -> None:
            self.read.append((done, total))

        def evaluated(self, fit: str, evaluation: Evaluation, steps: int) -> None:
            self.fits.append(fit)

    heard = Heard()
    instamap.reconstruct(star, objective=("normal", SHORT), progress=heard)
    assert any(line.startswith("particles") for line in heard.lines)
    assert heard.read[-1] == (120, 120)
    assert set(heard.fits) == {"half1", "half2"}


# What is refused


@pytest.mark.parametrize("name", EVERY_COMMAND)
def test_an_unknown_setting_is_refused_in_a_line(name, tmp_path):
    function = getattr(instamap, name)
    places = [tmp_path / "a"] + [tmp_path / "b"] * (name == "accumulate")
    with pytest.raises(OptionError) as refused:
        function(*places, novel=3)
    said = str(refused.value)
    assert said.startswith(f"setting 'novel' (3) is unknown to {name}; choose ")
    assert "\n" not in said
    assert not list(tmp_path.iterdir())


def test_a_setting_of_another_command_is_refused(tmp_path):
    with pytest.raises(OptionError, match="setting 'mask' .* is unknown to accumulate; choose"):
        instamap.accumulate(tmp_path / "a.star", tmp_path / "out", mask="mask.mrc")
    with pytest.raises(OptionError, match="setting 'symmetry' .* is unknown to fit; choose"):
        instamap.fit(tmp_path, symmetry="C2")


def test_values_are_checked_before_anything_is_read(tmp_path):
    with pytest.raises(OptionError, match="held_out is 2.0; it must be a number from 0.001"):
        instamap.reconstruct(tmp_path / "nowhere.star", held_out=2.0)


# Signatures


@pytest.mark.parametrize("name", EVERY_COMMAND)
def test_the_signature_is_the_schema(name):
    parameters = inspect.signature(getattr(instamap, name)).parameters
    settings = [field for field in fields_of_command(name) if field.name not in parameters]
    assert not settings
    for field in fields_of_command(name):
        if field.name in ("particles", "statistics"):
            continue
        parameter = parameters[field.name]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default == field.default
    known = {field.name for field in fields_of_command(name)}
    own = {"particles", "statistics", "out", "shard", "force", "progress"}
    assert set(parameters) <= known | own


def test_settings_are_made_of_the_same_names():
    names = {parameter for parameter in inspect.signature(Settings).parameters}
    for command_name in EVERY_COMMAND:
        assert {field.name for field in fields_of_command(command_name)} <= names


# Imports


def run_python(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_is_imported_without_torch():
    """The modules are counted, not the time, which depends on the machine."""
    said = run_python("import sys, instamap; print(*sorted(sys.modules))")
    imported = said.split()
    heavy = ("torch", "numpy", "matplotlib", "pandas", "numba", "mrcfile", "starfile", "typer")
    assert not [name for name in imported if name.split(".")[0] in heavy]
    own = [name for name in imported if name.split(".")[0] == "instamap"]
    assert own == ["instamap", "instamap.version"]


def test_every_public_name_can_be_imported():
    assert set(instamap.__all__) <= set(dir(instamap))
    for name in instamap.__all__:
        assert getattr(instamap, name) is not None
    with pytest.raises(AttributeError, match="module 'instamap' has no attribute 'novel'"):
        instamap.novel  # noqa: B018


def test_the_name_of_the_function_is_not_that_of_a_room():
    """`instamap.fit` stays a function whatever has been imported before."""
    said = run_python(
        "import instamap.fitting.loop, instamap.workflows.map, instamap;"
        "print(callable(instamap.fit), callable(instamap.load))"
    )
    assert said == "True True\n"
