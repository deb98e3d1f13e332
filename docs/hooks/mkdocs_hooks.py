"""What mkdocs is told while it builds the site: which pages there are, and where links lead.

Pages are the files of docs/; a few pages from elsewhere in the project that they link to, which
stay where they are; and the reference, which is made from the program.
"""

from pathlib import Path
from typing import Any

from layout import indented
from links import PROJECT, relinked
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from navigation import with_every_page
from reference_pages import pages

# Pages of the project outside docs/.
ELSEWHERE = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "changes/README.md",
    "examples/README.md",
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Gives every page of docs/ a place in the navigation."""
    folder = Path(config.docs_dir)
    written = [path.relative_to(folder).as_posix() for path in folder.rglob("*.md")]
    config.nav = with_every_page(config.nav or [], sorted(written))
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in docs/."""
    root = Path(config.docs_dir).parent
    for place in ELSEWHERE:
        path = str(root / place)
        files.append(File.generated(config, f"{PROJECT}/{place}", abs_src_path=path))
    for place, text in pages().items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, files: Files, **_: Any) -> str:
    """Lays a page out for the site, and leads its links to where their targets are there."""
    places = [file.src_uri for file in files]
    return relinked(indented(markdown), page.file.src_uri, set(places))
