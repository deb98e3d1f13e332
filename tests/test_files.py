"""Files are whole or absent, under names that nobody foresees; a refusal is one line."""

import errno
import os
import re
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from instamap import files
from instamap.errors import OutputError
from instamap.files import escaped, refusal, replacing, reported


def test_writing_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    for error in (ZeroDivisionError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), replacing(path) as sibling:
            sibling.write_text("half of the n")
            raise error
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as sibling:
        sibling.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_nobody_can_foresee_the_name_or_read_what_is_not_complete(tmp_path):
    names = set()
    umask = os.umask(0o027)
    try:
        for _ in range(2):
            with replacing(tmp_path / "file") as sibling:
                names.add(sibling.name)
                assert stat.S_IMODE(sibling.stat().st_mode) == 0o600
                assert sibling.parent == tmp_path
            assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    finally:
        os.umask(umask)
    assert len(names) == 2


def test_a_link_is_replaced_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = tmp_path / "file"
    path.symlink_to(victim)
    with replacing(path) as sibling:
        sibling.write_text("new")
    assert victim.read_text() == "precious"
    assert path.read_text() == "new"
    assert not path.is_symlink()


def test_a_link_at_the_name_of_the_sibling_is_not_followed(tmp_path, monkeypatch):
    """Even if its name were known, which it is not."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "0" * 2 * size)
    with replacing(tmp_path / "file") as sibling:
        planted = sibling
    planted.symlink_to(victim)
    with (
        pytest.raises(OutputError, match="file' cannot be written: something of that name"),
        replacing(tmp_path / "file") as sibling,
    ):
        sibling.write_text("new")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (Path.mkdir, "a folder"),
        (os.mkfifo, "a named pipe"),
        (lambda path: path.symlink_to("/dev/null"), "a device"),
        (lambda path: path.symlink_to("/"), "a folder"),
    ],
)
def test_what_is_no_file_is_not_replaced(tmp_path, make, what):
    path = tmp_path / "out"
    make(path)
    before = path.lstat()
    said = f"out' cannot be written: {what} .*choose another name"
    with pytest.raises(OutputError, match=said), replacing(path):
        raise AssertionError("nothing is computed in vain")
    assert path.lstat().st_ino == before.st_ino
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no-such-folder/file", "its folder does not exist; make the folder"),
        ("file/file", "a part of its path is a file, not a folder"),
        ("x" * 300, "its name is too long; give a shorter one"),
        ("circle/file", "circle of links"),
    ],
)
def test_a_place_that_cannot_be_is_said_before_anything_is_written(tmp_path, path, words):
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    said = f"cannot be written: .*{words}"
    with pytest.raises(OutputError, match=said) as caught, replacing(tmp_path / path):
        raise AssertionError("nothing is computed in vain")
    assert str(tmp_path / path) in str(caught.value)


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    for name in ("x" * 255, "Å" * 127):
        with replacing(tmp_path / name) as sibling:
            sibling.write_text("new")
        assert (tmp_path / name).read_text() == "new"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space is left on its disk; make room"),
        (errno.EDQUOT, "no space is left in your quota .*; make room"),
        (errno.EFBIG, r"limit of file sizes; raise the limit \(ulimit -f\)"),
        (errno.EROFS, "read-only; choose another place"),
        (errno.EACCES, "permission is denied; "),
        (errno.EIO, "input/output error; check the disk"),
        (errno.EXDEV, "[a-z -]+; choose another place"),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync", "replace", "open"])
def test_what_the_system_refuses_is_said_in_our_words(tmp_path, monkeypatch, number, words, call):
    def refuse(*arguments, **options):
        raise OSError(number, "Said By The Library")

    path = tmp_path / "file"
    path.write_text("old")
    if call != "write":
        monkeypatch.setattr(os, call, refuse)
    said = f"'{path}' cannot be written: .*{words}"
    with pytest.raises(OutputError, match=said) as caught, replacing(path) as sibling:
        if call == "write":
            refuse()
        sibling.touch()
    monkeypatch.undo()
    assert "Library" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_sibling_that_cannot_be_removed_hides_no_error(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, "said by the library")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OutputError, match="read-only"), replacing(tmp_path / "file"):
        refuse()


def test_the_systems_limit_of_file_sizes(tmp_path):
    """SIGXFSZ does not end the program."""
    program = f"""
from instamap.errors import OutputError
from instamap.files import replacing
from instamap.data.stacks import new_stack
try:
    with replacing({str(tmp_path / "file")!r}) as sibling:
        sibling.write_bytes(bytes(200_000))
except OutputError as error:
    print(error)
try:
    with new_stack({str(tmp_path / "stack")!r}, 100, 64, 1.0) as stack:
        raise AssertionError
except OutputError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 2, done.stderr
    assert all("cannot be written: it is larger than" in line for line in lines)
    assert not list(tmp_path.iterdir())


def leave(folder: Path, name: str, age: float) -> Path:
    """A file of that age."""
    left = folder / name
    left.write_text("left over")
    changed = left.stat().st_mtime - age
    os.utime(left, (changed, changed))
    return left


def test_what_a_killed_process_left_is_swept_by_the_next(tmp_path):
    token = "0123456789abcdef"
    old = leave(tmp_path, f".file.{token}.part", 7200)
    kept = [
        leave(tmp_path, f".file.{token[::-1]}.part", 60),  # perhaps not yet locked
        leave(tmp_path, f".other.{token}.part", 7200),
        leave(tmp_path, ".file.mine.part", 7200),
        leave(tmp_path, f".file.{token}.part.bak", 7200),
    ]
    with replacing(tmp_path / "file") as busy:
        os.utime(busy, (0, 0))
        with replacing(tmp_path / "file") as sibling:  # the first is locked
            sibling.write_text("second")
        assert busy.exists()
        busy.write_text("first")
    assert not old.exists()
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "file", *kept])
    assert (tmp_path / "file").read_text() == "first"


def test_any_error_of_the_system_is_reported(tmp_path):
    said = "'out' cannot be written: .*folder does not exist"
    with pytest.raises(OutputError, match=said), reported("out"):
        (tmp_path / "no" / "such").mkdir()
    with pytest.raises(ZeroDivisionError), reported("out"):
        raise ZeroDivisionError
    assert refusal(OSError("no number"))[0] == "the system refuses"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain 'Å' ≥ 3.2 日本", "plain 'Å' ≥ 3.2 日本"),
        ("\x1b]0;title\x07red\x1b[31m", r"\x1b]0;title\x07red\x1b[31m"),
        ("a\rb\x08\x7f\x9b1m", r"a\rb\x08\x7f\x9b1m"),
        ("txt\u202egpj.exe", r"txt\u202egpj.exe"),
        (os.fsdecode(b"caf\xe9"), r"caf\udce9"),
    ],
)
def test_what_does_not_print_is_escaped(text, shown):
    assert escaped(text) == shown
    assert re.fullmatch(r"[^\x00-\x1f\x7f-\x9f]*", escaped(text))
    escaped(text).encode()
