"""Whether a command may write to a folder."""

from pathlib import Path

from instamap.errors import OutputError


def check_folder(out: Path, files: tuple[str, ...], what: str, force: bool) -> None:
    """Raise OutputError if `out` is a file, holds a run, or has one of `files` of an earlier call
    (`what`) and is not `force`d.
    """
    from instamap.workflows import output

    output.check(out, force=True)
    if (out / output.MARK).exists():
        raise OutputError(f"output folder '{out}' holds a run; choose another")
    if not force and any((out / name).exists() for name in files):
        raise OutputError(
            f"output folder '{out}' already holds {what}; choose another or add --force to replace"
            f" {_it(what)}"
        )


def _it(what: str) -> str:
    return "it" if what.startswith(("a ", "an ")) else "them"
