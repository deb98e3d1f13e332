"""`instamap cite`: the publications behind a run, as BibTeX."""

from pathlib import Path
from typing import Annotated

import typer

from instamap.cli.terminal import show
from instamap.plugin import citations
from instamap.plugin.component import KINDS
from instamap.plugin.registry import default

MARK = "run.toml"


def cite(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)
    ],
) -> None:
    """Print BibTeX entries of what a run used: the method, and each part that names a paper."""
    from instamap.errors import DataError
    from instamap.toml_text import read_toml

    file = run / MARK
    if not file.exists():
        raise DataError(f"'{run}' holds no run: no {MARK}; give the folder that a run wrote")
    record = read_toml(file)
    tables = {kind: record.get(kind) for kind in KINDS}
    names = {kind: table["name"] for kind, table in tables.items() if isinstance(table, dict)}
    show(citations.bibtex(citations.of_parts(names, default())))
