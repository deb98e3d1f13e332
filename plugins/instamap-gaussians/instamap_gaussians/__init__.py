"""Announces the representation `gaussians` to instamap, without importing torch."""

from instamap import Component, hookimpl


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
