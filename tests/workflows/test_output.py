"""The output folder: filled in one go, also across file systems; what is finished is never thrown
away.
"""

import errno
import os
import shutil
from pathlib import Path

import pytest

from instamap.errors import OutputError
from instamap.workflows import output


def write(stage: Path, **texts: str) -> None:
    for name, text in {"map_mrc": "new", "run_toml": "new", **texts}.items():
        (stage / name.replace("_", ".")).write_text(text)


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def other_system(monkeypatch):
    """other_system(folder): nothing can be renamed into it or out of it, as if it were another file
    system.
    """

    def make(folder: Path) -> None:
        def refuse(move):
            def moved(source, target, **options):
                inside = [
                    Path(path).resolve().is_relative_to(folder.resolve())
                    for path in (source, target)
                ]
                if inside[0] != inside[1]:
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
                return move(source, target, **options)

            return moved

        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, refuse(getattr(os, name)))

    return make


@pytest.mark.parametrize("place", ["new", "below/new", "there"])
def test_everything_arrives_and_the_stage_goes(tmp_path, place):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes").write_text("mine")
    with output.staged(tmp_path / place, force=False) as stage:
        write(stage)
    kept = {"notes": "mine"} if place == "there" else {}
    assert files(tmp_path / place) == {"map.mrc": "new", "run.toml": "new", **kept}
    assert not [path for path in tmp_path.rglob(".*")]


def test_an_earlier_run_goes_whole(tmp_path):
    for name in ("run.toml", "half1.mrc", "notes", "particles_body1.star"):
        (tmp_path / name).write_text("old")
    with output.staged(tmp_path, force=True) as stage:
        write(stage)
        assert (tmp_path / "half1.mrc").exists()  # until all is there
    assert files(tmp_path) == {"map.mrc": "new", "run.toml": "new", "notes": "old"}


def test_a_link_to_another_file_system(tmp_path, other_system):
    disk = tmp_path / "disk"
    link = tmp_path / "out"
    disk.mkdir()
    link.symlink_to(disk)
    other_system(disk)
    with output.staged(link, force=False) as stage:
        write(stage)
    assert files(disk) == {"map.mrc": "new", "run.toml": "new"} and link.is_symlink()


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), output.staged(tmp_path / "out", force=False) as stage:
        write(stage)
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", [True, False])
def test_what_is_finished_stays_where_it_cannot_be_moved(tmp_path, monkeypatch, there):
    out = tmp_path / "out"
    if there:
        out.mkdir()

    def move(source, target):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(shutil, "move", move)
    said = "cannot be written: Permission denied; what is finished stays in '(.*)': move it"
    with (
        pytest.raises(OutputError, match=said) as refused,
        output.staged(out, force=False) as stage,
    ):
        write(stage)
    assert str(stage) in str(refused.value) and files(stage) == {
        "map.mrc": "new",
        "run.toml": "new",
    }


def test_a_disk_that_is_full_while_writing_is_said(tmp_path):
    said = "'.*out' cannot be written: No space left on device; make room"
    with pytest.raises(OutputError, match=said), output.staged(tmp_path / "out", force=False):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())


def test_other_errors_of_the_block_are_not_ours(tmp_path):
    with pytest.raises(FileNotFoundError), output.staged(tmp_path / "out", force=False) as stage:
        (stage / "none").read_text()
    assert not list(tmp_path.iterdir())


def test_a_link_to_nowhere_is_refused_in_a_line(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    with pytest.raises(OutputError, match="is a link to '.*gone', which does not exist"):
        output.check(tmp_path / "out", force=False)
