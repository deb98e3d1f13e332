"""The format of a file: the first that recognises it, of the built-in ones and of plugins."""

from pathlib import Path

from instamap.data.formats.base import InputFormat
from instamap.data.particle_table import ParticleTable
from instamap.plugin.component import Component
from instamap.plugin.registry import OWN, default

# what a file is taken for that nothing recognises, since its reader says best what is wrong
FALLBACK = "relion-star"


def read(path: str | Path, *, ctf: bool = True, datadir: Path | None = None) -> ParticleTable:
    """The particles of a file, by the first format that recognises it.

    ctf: False leaves what the file says of contrast transfer alone. datadir: the folder of the
    stacks where they are not below the file's folder or one of its parents. Raises DataError.
    """
    path = Path(path)
    return format_of(path).read_beside(path, datadir, ctf=ctf)


def format_of(path: Path) -> InputFormat:
    """The format that reads a file; that of STAR files if none recognises it."""
    components = default().parts("format")
    for component in sorted(components, key=_built_in_first):
        found = _recognised(component, path)
        if found is not None:
            return found()
    fallback: type[InputFormat] = default().get("format", FALLBACK).load()
    return fallback()


def _built_in_first(component: Component) -> tuple[bool, bool, str]:
    """By origin and name; of the built-in ones that which takes every STAR file is the last."""
    return component.provider != OWN, component.name == FALLBACK, component.name


def _recognised(component: Component, path: Path) -> type[InputFormat] | None:
    """The class if it recognises the file."""
    try:
        found: type[InputFormat] = component.load()
        return found if found.recognises(path) else None
    except Exception:
        if component.provider == OWN:
            raise
        return None  # a broken plugin must not keep the files of others from being read
