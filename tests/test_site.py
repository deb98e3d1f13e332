"""The site: it builds without a warning, knows pages that were written since, leads links to where
their targets are, and its reference holds every option of every part and command.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import navigation
import pytest
import reference_pages
from layout import indented
from links import relinked
from prose import escaped, signature, table

import instamap
from instamap.cli import application
from instamap.plugin.component import KINDS
from instamap.plugin.options import describe
from instamap.plugin.registry import installed
from instamap.workflows.settings import Settings

ROOT = Path(__file__).parents[1]
NOT_DESCRIBED = {"__version__", "DensityFn", "hookimpl"}  # neither classes nor functions


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    return reference_pages.pages()


@pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="mkdocs is not installed")
def test_the_site_builds_without_a_warning(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stderr
    for page in ("index", "tutorial", "reference/settings", "project/CONTRIBUTING"):
        assert "instamap" in (tmp_path / f"{page}.html").read_text(encoding="utf-8")
    # what the pages show comes with them: nothing is fetched from elsewhere
    index = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'src="http' not in index and 'rel="stylesheet" href="http' not in index


def test_every_option_of_every_part_is_in_the_reference(reference):
    registry = installed(points=[])
    for kind in KINDS:
        page = reference[f"reference/{reference_pages.PART_PAGES[kind][0]}.md"]
        for part in registry.parts(kind):
            section = page.split(f"## {part.name}\n")[1].split("\n## ")[0]
            for spec in describe(part.load().Options):
                assert f"| `{spec.name}` |" in section, (part.name, spec.name)


def test_every_setting_and_command_is_in_the_reference(reference):
    settings = reference["reference/settings.md"]
    assert all(f"\n| `{name}`" in settings for name in Settings.__dataclass_fields__)
    commands = reference["reference/command-line.md"]
    for name, command in application(installed(points=[])).commands.items():
        section = commands.split(f"## {name}\n")[1].split("\n## ")[0]
        flags = [parameter.opts[-1] for parameter in command.params if not is_hidden(parameter)]
        missing = [flag for flag in flags if flag.lower() not in section.lower()]
        assert not missing, (name, missing)


def is_hidden(parameter) -> bool:
    """Whether `--help` keeps it back, or it is an argument, which is shown by its metavar."""
    return parameter.param_type_name == "argument" or parameter.hidden


def test_every_public_name_is_in_the_reference(reference):
    page = reference["reference/api.md"]
    headings = {line[4:] for line in page.splitlines() if line.startswith("### ")}
    assert not set(instamap.__all__) - NOT_DESCRIBED - headings
    assert "0x" not in page


def test_pages_that_nobody_listed_are_found():
    nav = [{"Home": "index.md"}, {"How-to guides": [{"Mask": "mask.md"}]}]
    nav.append({"Understand it": [{"Decisions": ["decisions/index.md"]}]})
    written = ["decisions/0001-a.md", "decisions/index.md", "index.md", "mask.md", "scale.md"]
    found = navigation.with_every_page(nav, written)
    assert sorted(navigation.places(found)) == written
    assert navigation.section(found, "How-to guides")[-1] == "scale.md"
    assert navigation.section(found, "Decisions")[-1] == "decisions/0001-a.md"
    with pytest.raises(KeyError, match="no section 'How-to guides'"):
        navigation.with_every_page([{"Home": "index.md"}], ["scale.md"])


PLACES = {"index.md", "mask.md", "decisions/0001.md", "project/README.md", "figures/map.png"}


@pytest.mark.parametrize(
    ("place", "before", "after"),
    [
        ("index.md", "[a](mask.md#x)", "[a](mask.md#x)"),
        ("index.md", "[a\nb](../README.md)", "[a\nb](project/README.md)"),
        ("decisions/0001.md", "[a](../../README.md)", "[a](../project/README.md)"),
        ("project/README.md", "[a](docs/decisions/0001.md)", "[a](../decisions/0001.md)"),
        ("project/README.md", "![a](docs/figures/map.png)", "![a](../figures/map.png)"),
        ("project/README.md", "[paper](https://x.org/y.md)", "[paper](https://x.org/y.md)"),
        ("index.md", "[below](#below)", "[below](#below)"),
        ("index.md", "see [the law](../tests/laws/test_laws.py)", "see the law"),
        ("index.md", "[a](missing.md)", "[a](missing.md)"),  # mkdocs ends the build with it
        ("index.md", "```md\n[a](../README.md)\n```", "```md\n[a](../README.md)\n```"),
    ],
)
def test_links_lead_to_pages_of_the_site(place, before, after):
    assert relinked(before, place, PLACES) == after


def test_what_is_below_a_list_item_is_indented_as_markdown_wants_it():
    written = "1. a\n   - b\n     more of b\n2. c\n\n  | d |\n\n```sh\n  - e\n```\n"
    assert indented(written) == written.replace("   - b", "    - b").replace("  | d", "    | d")


def test_text_of_the_program_is_shown_to_the_letter():
    assert escaped("x* of `x*` <b> a|b [c]") == r"x\* of `x*` &lt;b> a\|b \[c\]"
    assert table([["a", "b"], ["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_signatures_are_short():
    def call(path: Path, *, scale: float = 1.0, fit: Settings | None = None) -> Path: ...

    assert signature("call", call) == (
        "call(path: Path, *, scale: float = 1.0, fit: Settings | None = None) -> Path"
    )

    def long(
        path: Path, *, one_number: float, another_number: float, number_of_things: int
    ) -> Path: ...

    lines = signature("long", long).splitlines()
    assert lines[:3] == ["long(", "    path: Path,", "    *,"]
    assert lines[-2:] == ["    number_of_things: int,", ") -> Path"]
