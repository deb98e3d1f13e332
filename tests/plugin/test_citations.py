"""What to cite is said once for each publication, as BibTeX that is whole."""

from instamap.plugin import citations
from instamap.plugin.component import Component
from instamap.plugin.registry import Registry

NAMES = {"representation": "hash-grid", "likelihood": "bioem", "workflow": "map"}


def registry(*added: Component) -> Registry:
    known = Registry({}, [])
    known.register(*added)
    return known


def test_each_publication_comes_once_with_the_parts_that_ask_for_it():
    found = citations.of_parts(NAMES, registry())
    assert [one.parts for one in found] == [
        ("instamap", "representation hash-grid"),
        ("representation hash-grid",),
        ("likelihood bioem",),
    ]
    assert found[2].doi == "10.1016/j.jsb.2013.10.006"


def test_every_built_in_publication_has_an_entry_of_its_own():
    names = [(part.kind, part.name) for part in registry().parts() if part.kind != "format"]
    for kind, name in names:
        for one in citations.of_parts({kind: name}, registry()):
            entry = citations.bibtex([one])
            assert "author = {" in entry and "title = {" in entry and one.doi in entry, one
            assert entry.count("{") == entry.count("}")


def test_a_plugins_words_become_an_entry():
    words = "Müller & Other, J. Of_Things 3 (2031)"
    mine = Component("likelihood", "mine", "package.module:Mine", "one line", words)
    *_, last = citations.of_parts({"likelihood": "mine"}, registry(mine))
    assert citations.bibtex([last]) == (
        "% likelihood mine\n@misc{müller2031,\n"
        "  note = {Müller \\& Other, J. Of\\_Things 3 (2031)},\n  year = {2031},\n}"
    )


def test_a_part_that_is_not_there_any_more_asks_for_nothing():
    assert len(citations.of_parts({"likelihood": "gone"}, registry())) == 1
