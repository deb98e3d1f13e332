"""Announces the representation `gaussians` to instamap, without importing torch."""

from instamap.plugin.component import Component
from instamap.plugin.hooks import hookimpl


@hookimpl
def instamap_components():
    return [
        Component(
            "representation",
            "gaussians",
            "instamap_gaussians.gaussians:Gaussians",
            "sum of Gaussians that find their own places",
        ),
    ]
