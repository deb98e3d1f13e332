"""The output folder: held by one run, filled in one go, also across file systems; what is finished
is never thrown away, and what is foreign never touched.
"""

import contextlib
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from instamap.errors import OutputError
from instamap.workflows import output
from instamap.workflows.output import FolderKind

KIND = FolderKind("a run", "run.toml", may_write=("run.toml", "map.mrc", "half?.mrc"))
STATES = FolderKind("states", "states.json", may_write=("states.json", "state_*.mrc"))
STARTUP = 60  # seconds, at most, in which another process imports the package


def write(folder: Path, *names: str, text: str = "new") -> None:
    """Files and the record that lists them."""
    names = names or ("map.mrc",)
    for name in names:
        (folder / name).write_text(text)
    (folder / "run.toml").write_text(record(*names))


def record(*names: str) -> str:
    return f"files = {json.dumps([*names, 'run.toml'])}\n"


def fill(out: Path, *names: str, force: bool = False, text: str = "new") -> None:
    """A whole run that writes some files."""
    with output.reserve(out, KIND, force) as place, place.filled() as folder:
        write(folder, *names, text=text)


def files(folder: Path) -> dict[str, str]:
    """The texts of the files in a folder but for the record, by name; the lock is no output."""
    texts = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
    return {name: text for name, text in texts.items() if name not in ("run.toml", output.LOCK)}


def hidden(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


# Filled in one go


@pytest.mark.parametrize("place", ["new", "below/new", "there"])
def test_everything_arrives_and_the_temporary_folder_goes(tmp_path: Path, place: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes").write_text("mine")
    fill(tmp_path / place)
    kept = {"notes": "mine"} if place == "there" else {}
    assert files(tmp_path / place) == {"map.mrc": "new", **kept}
    assert (tmp_path / place / "run.toml").exists()
    assert not hidden(tmp_path)


def test_nothing_is_in_place_before_all_is_there(tmp_path: Path) -> None:
    fill(tmp_path / "out", "map.mrc", "half1.mrc", text="old")
    with output.reserve(tmp_path / "out", KIND, force=True) as place:
        with place.filled() as folder:
            write(folder)
            assert files(tmp_path / "out") == {"map.mrc": "old", "half1.mrc": "old"}
        assert files(tmp_path / "out") == {"map.mrc": "new"}


def test_the_record_is_moved_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sees the record sees the rest."""
    moved = []
    replace = os.replace

    def watch(source: Path, target: Path) -> None:
        moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    fill(tmp_path / "out", "zzz", "map.mrc")
    assert moved[-1] == "run.toml"
    assert moved[0] == output.READY
    assert sorted(moved[1:-1]) == ["map.mrc", "zzz"]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        output.reserve(tmp_path / "out", KIND) as place,
        place.filled() as folder,
    ):
        write(folder)
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_what_fails_leaves_an_earlier_run_as_it_was(tmp_path: Path) -> None:
    fill(tmp_path, "map.mrc", "half1.mrc", text="old")
    with (
        pytest.raises(ZeroDivisionError),
        output.reserve(tmp_path, KIND, force=True) as place,
        place.filled() as folder,
    ):
        write(folder)
        raise ZeroDivisionError
    assert files(tmp_path) == {"map.mrc": "old", "half1.mrc": "old"}
    assert output.recorded_files(tmp_path, KIND) == ["run.toml", "map.mrc", "half1.mrc", "run.toml"]
    assert not hidden(tmp_path)


# What is replaced


def test_an_earlier_run_goes_whole_and_foreign_files_stay(tmp_path: Path) -> None:
    fill(tmp_path, "map.mrc", "half1.mrc", "particles_body1.star", text="old")
    foreign = {"notes": "mine", "particles_body2.star": "mine"}
    for name, text in foreign.items():
        (tmp_path / name).write_text(text)
    fill(tmp_path, force=True)
    assert files(tmp_path) == {"map.mrc": "new", **foreign}


def test_a_run_is_replaced_only_by_force(tmp_path: Path) -> None:
    fill(tmp_path, text="old")
    said = f"'{tmp_path}' already holds a run; choose another or add --force to replace it"
    with pytest.raises(OutputError, match=said):
        fill(tmp_path)
    assert files(tmp_path) == {"map.mrc": "old"}


def test_a_foreign_file_that_would_be_replaced_is_refused(tmp_path: Path) -> None:
    (tmp_path / "half1.mrc").write_text("of another program")
    said = "has a file 'half1.mrc' that a run would replace and that no earlier one lists"
    for force in (False, True):
        with pytest.raises(OutputError, match=said):
            fill(tmp_path, force=force)
    assert files(tmp_path) == {"half1.mrc": "of another program"}


def test_foreign_files_beside_a_run_are_not_taken_for_its_own(tmp_path: Path) -> None:
    """A run without halves, beside which somebody has put a half map."""
    fill(tmp_path, "map.mrc")
    (tmp_path / "half2.mrc").write_text("mine")
    with pytest.raises(OutputError, match="has a file 'half2.mrc'"):
        fill(tmp_path, force=True)
    assert files(tmp_path) == {"map.mrc": "new", "half2.mrc": "mine"}


@pytest.mark.parametrize(
    "text", ["", "files = [", "files = 3\n", 'files = ["../precious", "/etc/x", 5]\n']
)
def test_a_damaged_record_lists_nothing_beyond_itself(tmp_path: Path, text: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "precious").write_text("mine")
    (out / "run.toml").write_text(text)
    (out / "notes").write_text("mine")
    assert output.recorded_files(out, KIND) in ([], ["run.toml"])
    fill(out, force=True)
    assert files(out) == {"map.mrc": "new", "notes": "mine"}
    assert (tmp_path / "precious").exists()


def test_other_outputs_do_not_go_into_the_folder_of_a_run(tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(OutputError, match="holds a run; choose another"):
        output.check(tmp_path, STATES, force=True)
    (tmp_path / "run.toml").unlink()
    output.check(tmp_path, STATES)
    (tmp_path / "states.json").write_text('{"files": ["state_1.mrc"]}')
    with pytest.raises(OutputError, match="already holds states; .* --force to replace them"):
        output.check(tmp_path, STATES)
    (tmp_path / "state_1.mrc").write_text("old")
    output.check(tmp_path, STATES, force=True)


# What is read


def test_inputs_are_not_replaced(tmp_path: Path) -> None:
    fill(tmp_path, "map.mrc", "mask.mrc")
    link = tmp_path / "link.mrc"
    link.symlink_to(tmp_path / "mask.mrc")
    for mask in (tmp_path / "mask.mrc", link, tmp_path / ".." / tmp_path.name / "mask.mrc"):
        said = "is read and belongs to what .* holds, which would be replaced; choose another"
        with pytest.raises(OutputError, match=said):
            output.check(tmp_path, KIND, force=True, inputs=[mask])
    output.check(tmp_path, KIND, force=True, inputs=[tmp_path / "other.mrc"])


def test_a_single_file_is_replaced_by_force_and_never_where_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "selected.star"
    output.check_file(file)
    file.write_text("old")
    with pytest.raises(OutputError, match="is already there; .*--force"):
        output.check_file(file)
    output.check_file(file, force=True)
    other = tmp_path / "same.star"
    other.hardlink_to(file)
    with pytest.raises(OutputError, match="is one of the files that are read"):
        output.check_file(file, force=True, inputs=[other])


# File systems


@pytest.fixture
def other_system(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """other_system(folder): nothing can be renamed into it or out of it, as if it were another file
    system.
    """

    def make(folder: Path) -> None:
        def inside(path: Path) -> bool:
            return Path(path).resolve().is_relative_to(folder.resolve())

        def refusing(move: Callable[..., None]) -> Callable[..., None]:
            def moved(source: Path, target: Path, **options: int) -> None:
                if inside(source) != inside(target):
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
                return move(source, target, **options)

            return moved

        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, refusing(getattr(os, name)))

    return make


def test_a_link_to_another_file_system(
    tmp_path: Path, other_system: Callable[[Path], None]
) -> None:
    disk = tmp_path / "disk"
    link = tmp_path / "out"
    disk.mkdir()
    link.symlink_to(disk)
    other_system(disk)
    fill(link)
    assert files(disk) == {"map.mrc": "new"}
    assert link.is_symlink()


def refuse_to_move(source: Path, target: Path) -> None:
    raise OSError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize("there", [True, False])
def test_what_is_finished_stays_where_it_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    out = tmp_path / "out"
    if there:
        out.mkdir()
    monkeypatch.setattr(os, "replace", refuse_to_move)
    said = "cannot be written: Permission denied; what is finished stays in '(.*)': move it"
    with (
        pytest.raises(OutputError, match=said) as refused,
        output.reserve(out, KIND) as place,
        place.filled() as folder,
    ):
        write(folder)
    assert str(folder) in str(refused.value)
    assert files(folder) == {"map.mrc": "new"}
    assert not (out / output.LOCK).exists()


def test_a_disk_that_is_full_while_writing_is_said(tmp_path: Path) -> None:
    said = "'.*out' cannot be written: No space left on device; make room"
    with (
        pytest.raises(OutputError, match=said),
        output.reserve(tmp_path / "out", KIND) as place,
        place.filled(),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())


def test_other_errors_of_the_block_are_not_ours(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError),
        output.reserve(tmp_path / "out", KIND) as place,
        place.filled() as folder,
    ):
        (folder / "none").read_text()
    assert not list(tmp_path.iterdir())


def test_errors_name_the_place_of_a_file_not_the_temporary_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        pytest.raises(OutputError, match=re.escape(f"'{out / 'map.mrc'}' cannot be written")),
        output.reserve(out, KIND) as place,
        place.filled() as folder,
    ):
        raise OutputError(f"'{folder / 'map.mrc'}' cannot be written: permission is denied")
    with (
        pytest.raises(FileNotFoundError, match=re.escape(f"'{out / 'none'}'")),
        output.reserve(out, KIND) as place,
        place.filled() as folder,
    ):
        (folder / "none").read_text()


def test_a_link_to_nowhere_is_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    with pytest.raises(OutputError, match="is a link to '.*gone', which does not exist"):
        output.check(tmp_path / "out", KIND)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="out' is a file; name a folder"):
        fill(tmp_path / "out")
    with pytest.raises(OutputError, match="cannot be made: Not a directory; choose another"):
        fill(tmp_path / "out" / "below")


def test_an_empty_folder_of_the_user_is_not_removed(tmp_path: Path) -> None:
    link = tmp_path / "link"
    folder = tmp_path / "disk"
    folder.mkdir()
    link.symlink_to(folder)
    for out in (folder, link):
        with pytest.raises(ZeroDivisionError), output.reserve(out, KIND):
            raise ZeroDivisionError
    assert link.is_symlink()
    assert folder.is_dir()
    assert not list(folder.iterdir())


# Two runs


def test_a_second_run_is_refused_at_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    owner = f"process {os.getpid()} on {socket.gethostname()}"
    with output.reserve(out, KIND) as place:
        with (
            pytest.raises(OutputError, match=f"is being written by {owner}; wait for it"),
            output.reserve(out, KIND),
        ):
            pass
        with place.filled() as folder:
            write(folder)
    assert files(out) == {"map.mrc": "new"}
    assert not hidden(out)


def test_a_run_that_has_been_refused_takes_no_lock_away(tmp_path: Path) -> None:
    """The holder's lock is still there: a third run is refused like the second."""
    with output.reserve(tmp_path / "out", KIND):
        for _ in range(2):
            with (
                pytest.raises(OutputError, match="is being written"),
                output.reserve(tmp_path / "out", KIND),
            ):
                pass
            assert (tmp_path / "out" / output.LOCK).exists()


def run_python(script: str, *words: Path) -> subprocess.Popen[str]:
    """Another process, whose standard input and output are pipes."""
    command = [sys.executable, "-c", script, *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


HOLDER = """
import sys
from pathlib import Path
from instamap.workflows import output
kind = output.FolderKind("a run", "run.toml", ("run.toml", "map.mrc"))
with output.reserve(Path(sys.argv[1]), kind) as place, place.filled() as folder:
    (folder / "map.mrc").write_text("half of it")
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_killed_holder_leaves_nothing_that_matters(tmp_path: Path) -> None:
    """Its lock is taken over, and what it had begun is swept away."""
    out = tmp_path / "out"
    holder = run_python(HOLDER, out)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n", holder.communicate()
        with pytest.raises(OutputError, match=f"is being written by process {holder.pid} on"):
            fill(out)
    finally:
        holder.kill()
        holder.communicate(timeout=STARTUP)
    assert holder.returncode == -signal.SIGKILL
    left = {path.name for path in out.iterdir()}
    assert output.LOCK in left
    assert any(name.startswith(output.TEMPORARY) for name in left - {output.LOCK})
    fill(out)
    assert files(out) == {"map.mrc": "new"}
    assert not hidden(out)


def test_stale_temporary_folders_are_swept_and_links_are_not_followed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    stale = out / f"{output.TEMPORARY}stale"
    stale.mkdir(parents=True)
    (stale / "map.mrc").write_text("of a run that was killed")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "notes").write_text("mine")
    link = out / f"{output.TEMPORARY}link"
    link.symlink_to(precious)
    fill(out)
    assert not stale.exists()
    assert (precious / "notes").read_text() == "mine"


RACER = """
import sys
from pathlib import Path
from instamap.errors import OutputError
from instamap.workflows import output
kind = output.FolderKind("a run", "run.toml", ("run.toml", "*.mrc"))
out, name = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
won = 0
for _ in range(100):
    try:
        with output.reserve(out, kind, force=True) as place, place.filled() as folder:
            for number in range(5):
                (folder / f"{name}{number}.mrc").write_text(name)
            names = output.names_in(folder)
            (folder / "run.toml").write_text(f"files = {[*names, 'run.toml']}")
        won += 1
    except OutputError as error:
        assert "is being written" in str(error), error
print(won, flush=True)
"""


def test_two_processes_that_race_never_mix(tmp_path: Path) -> None:
    """Whichever is last, the folder holds one whole run, and nobody fails but by being refused."""
    out = tmp_path / "out"
    racers = [run_python(RACER, out, Path(name)) for name in ("a", "b")]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n", racer.communicate()
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    outcomes = [racer.communicate(timeout=STARTUP) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], outcomes
    assert sum(int(said) for said, _ in outcomes) > 0
    assert len(set(files(out).values())) == 1
    assert len(files(out)) == 5
    assert not hidden(out)


@pytest.mark.parametrize("moves", range(5))
def test_a_move_that_was_cut_short_is_ended_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    """Whenever the process is killed, the folder ends with all of one run, old or new."""
    out = tmp_path / "out"
    fill(out, "old", "map.mrc")
    left = moves
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with contextlib.suppress(KeyboardInterrupt):
        fill(out, "new", "map.mrc", force=True)
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OutputError, match="already holds"), output.reserve(out, KIND):
        pass
    names = sorted(path.name for path in out.iterdir())
    assert names == (["map.mrc", "new", "run.toml"] if moves else ["map.mrc", "old", "run.toml"])
