"""Announces the representation `gaussians` to instamap, without importing torch."""

from instamap.components import Component
from instamap.hookspecs import hookimpl


@hookimpl
def instamap_components():
    return [
        Component("representation", "gaussians", "instamap_gaussians.gaussians:Gaussians",
                  "sum of Gaussians that find their own places"),
    ]  # fmt: skip
