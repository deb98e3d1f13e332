"""A new setting is one new field of `Settings`: its flag, the signatures of the Python functions,
run.toml, the record of statistics and its range need no line elsewhere.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import instamap

ROOT = Path(instamap.__file__).parent
FIELD = """    wobble: float = setting(
        1.5,
        "How much the stage wobbles.",
        commands=EVERY_COMMAND,
        role="data",
        unit="Å",
        low=0.5,
        high=4.0,
    )
"""
BEFORE = "    device: str"

CHECK = """
import inspect
import instamap
from instamap.errors import OptionError
from instamap.workflows.settings import Settings, check_record

for function in (instamap.reconstruct, instamap.accumulate, instamap.fit):
    assert inspect.signature(function).parameters["wobble"].default == 1.5, function
record = Settings(particles="x.star", wobble=2.5).record()
assert record["wobble"] == 2.5
check_record(record, "run.toml")
assert Settings.from_record(record).wobble == 2.5
assert Settings(wobble=2.5).data_record()["wobble"] == 2.5
assert Settings(wobble=2.5).special() == {"wobble": 2.5}
for refuse in (lambda: Settings(wobble=9.0), lambda: check_record({"wobble": 9.0}, "run.toml")):
    try:
        refuse()
    except OptionError as error:
        assert "wobble" in str(error) and "4" in str(error), error
    else:
        raise AssertionError("9 is let through")
print(instamap.__file__)
"""


@pytest.fixture(scope="module")
def overlay(tmp_path_factory) -> Path:
    """A folder with the package `instamap`, whose files are links, all but one with a new field."""
    folder = tmp_path_factory.mktemp("overlay")
    for file in ROOT.rglob("*"):
        place = folder / "instamap" / file.relative_to(ROOT)
        if "__pycache__" in place.parts or not file.is_file():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(file)
    settings = folder / "instamap" / "workflows" / "settings.py"
    source = settings.read_text()
    assert source.count(BEFORE) == 1
    settings.unlink()
    settings.write_text(source.replace(BEFORE, FIELD + BEFORE))
    return folder


def python(overlay: Path, *words: str) -> subprocess.CompletedProcess:
    """What Python does with the package in `overlay`."""
    environment = {**os.environ, "PYTHONPATH": str(overlay), "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, *words],
        cwd=overlay,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def command(overlay: Path, *words: str) -> subprocess.CompletedProcess:
    code = "import sys; sys.argv[0] = 'instamap'; from instamap.cli import main; main()"
    return python(overlay, "-c", code, *words)


def test_python_and_records_know_it(overlay):
    outcome = python(overlay, "-c", CHECK)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.startswith(str(overlay))


@pytest.mark.parametrize("name", ["reconstruct", "accumulate", "fit"])
def test_commands_have_its_flag(overlay, name):
    outcome = command(overlay, name, "-h")
    assert "--wobble <float>" in outcome.stdout, outcome
    assert "How much the stage wobbles.  [default: 1.5]" in outcome.stdout


def test_a_value_outside_its_range_is_refused(overlay):
    outcome = command(overlay, "reconstruct", "x.star", "--wobble", "9")
    assert outcome.returncode == 2 and not outcome.stdout
    [line] = outcome.stderr.splitlines()
    assert line.startswith("error: wobble is 9.0; it must be a number from 0.5 to 4"), line
