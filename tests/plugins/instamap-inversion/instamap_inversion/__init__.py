"""Announces the workflow `inversion`."""

from instamap import Component, hookimpl


@hookimpl
def instamap_components():
    return [
        Component(
            "workflow",
            "inversion",
            "instamap_inversion.inversion:Inversion",
            "half maps by a few steps of conjugate gradients, without a field",
        ),
    ]
