"""Announces the objective `ridge`."""

from instamap import Component, hookimpl


@hookimpl
def instamap_components():
    return [
        Component(
            "objective",
            "ridge",
            "instamap_ridge.ridge:Ridge",
            "normal equations and a penalty of the density's square",
        ),
    ]
