"""What to cite for the parts of a run: publications by DOI as BibTeX entries."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from instamap.plugin.registry import Registry

DOI = re.compile(r"\bdoi:? ?(10\.\S+?)[;,.]?$")
BETWEEN = re.compile(r";\s+")  # publications of one part


@dataclass(frozen=True)
class Publication:
    """A publication as BibTeX has it: the kind of its entry, its key and its fields."""

    kind: str
    key: str
    fields: dict[str, str]


@dataclass(frozen=True)
class Citation:
    """What to cite for some parts.

    words: as the parts have it, one line. parts: names of those that ask for it, with their kinds.
    """

    words: str
    parts: tuple[str, ...]

    @property
    def doi(self) -> str | None:
        """Its DOI, where the words end in one."""
        found = DOI.search(self.words)
        return found.group(1) if found else None


INSTAMAP = Publication(
    "article",
    "woollard2025instamap",
    {
        "author": "Woollard, Geoffrey and Zhou, Wenda and Thiede, Erik H. and Lin, Chen and"
        " Grigorieff, Nikolaus and Cossio, Pilar and {Dao Duc}, Khanh and Hanson, Sonya M.",
        "title": "{InstaMap}: instant-{NGP} for cryo-{EM} density maps",
        "journal": "Acta Crystallographica Section D",
        "volume": "81",
        "pages": "147--169",
        "year": "2025",
    },
)
HASH_GRID = Publication(
    "article",
    "muller2022instant",
    {
        "author": 'M{\\"u}ller, Thomas and Evans, Alex and Schied, Christoph and Keller, Alexander',
        "title": "Instant neural graphics primitives with a multiresolution hash encoding",
        "journal": "ACM Transactions on Graphics",
        "volume": "41",
        "number": "4",
        "pages": "102:1--102:15",
        "year": "2022",
    },
)
ONE_BLOB = Publication(
    "article",
    "muller2019neural",
    {
        "author": 'M{\\"u}ller, Thomas and McWilliams, Brian and Rousselle, Fabrice and Gross,'
        " Markus and Nov{\\'a}k, Jan",
        "title": "Neural importance sampling",
        "journal": "ACM Transactions on Graphics",
        "volume": "38",
        "number": "5",
        "pages": "145:1--145:19",
        "year": "2019",
    },
)
NERF = Publication(
    "inproceedings",
    "mildenhall2020nerf",
    {
        "author": "Mildenhall, Ben and Srinivasan, Pratul P. and Tancik, Matthew and Barron,"
        " Jonathan T. and Ramamoorthi, Ravi and Ng, Ren",
        "title": "{NeRF}: representing scenes as neural radiance fields for view synthesis",
        "booktitle": "Computer Vision -- ECCV 2020",
        "pages": "405--421",
        "year": "2020",
    },
)
BIOEM = Publication(
    "article",
    "cossio2013bayesian",
    {
        "author": "Cossio, Pilar and Hummer, Gerhard",
        "title": "Bayesian analysis of individual electron microscopy images: towards structures"
        " of dynamic and heterogeneous biomolecular assemblies",
        "journal": "Journal of Structural Biology",
        "volume": "184",
        "pages": "427--437",
        "year": "2013",
    },
)
VIEWER = Publication(
    "article",
    "rego2015dmol",
    {
        "author": "Rego, Nicholas and Koes, David",
        "title": "{3Dmol.js}: molecular visualization with {WebGL}",
        "journal": "Bioinformatics",
        "volume": "31",
        "pages": "1322--1324",
        "year": "2015",
    },
)
PUBLICATIONS = {
    "10.1107/S2059798325002025": INSTAMAP,
    "10.1145/3528223.3530127": HASH_GRID,
    "10.1145/3341156": ONE_BLOB,
    "10.1007/978-3-030-58452-8_24": NERF,
    "10.1016/j.jsb.2013.10.006": BIOEM,
    "10.1093/bioinformatics/btu829": VIEWER,
}
PROGRAM = (
    "Woollard et al., Acta Cryst. D81, 147-169 (2025), doi 10.1107/S2059798325002025",
    "instamap",
)
PAGE = (
    "Rego & Koes, Bioinformatics 31, 1322-1324 (2015), doi 10.1093/bioinformatics/btu829",
    "viewer of the report",
)


def of_parts(names: Mapping[str, str], registry: Registry) -> list[Citation]:
    """What to cite for parts, whose names come by kind: the method's paper, then that of each part.

    A part that is not installed any more asks for nothing.
    """
    asked: dict[str, list[str]] = {PROGRAM[0]: [PROGRAM[1]]}
    known = {(part.kind, part.name): part for part in registry.parts()}
    for kind, name in names.items():
        part = known.get((kind, name))
        if part is None or not part.cite:
            continue
        for words in BETWEEN.split(part.cite):
            asked.setdefault(words, []).append(f"{kind} {name}")
    return [Citation(words, tuple(parts)) for words, parts in asked.items()]


def bibtex(citations: Iterable[Citation]) -> str:
    """BibTeX entries; a publication that is not known by its DOI is an entry with its words."""
    return "\n\n".join(_entry(citation) for citation in citations)


def _entry(citation: Citation) -> str:
    doi = citation.doi
    known = PUBLICATIONS.get(doi or "")
    publication = known or _unknown(citation)
    fields = dict(publication.fields)
    if doi is not None:
        fields["doi"] = doi
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    head = f"% {', '.join(citation.parts)}\n@{publication.kind}{{{publication.key},"
    return "\n".join([head, *lines, "}"])


def _unknown(citation: Citation) -> Publication:
    """An entry from a part's own words: its first name and year are the key."""
    first = re.search(r"[^\W\d_]+", citation.words)
    year = re.search(r"\((\d{4})\)", citation.words)
    name = first.group().lower() if first else "part"
    key = name + (year.group(1) if year else "")
    fields = {"note": _escaped(citation.words)}
    if year:
        fields["year"] = year.group(1)
    return Publication("misc", key, fields)


def _escaped(words: str) -> str:
    """Words with what BibTeX and TeX read as commands made plain."""
    return re.sub(r"([&%$#_{}])", r"\\\1", words)
