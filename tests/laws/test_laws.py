"""Every registered part obeys the laws of its kind; a newly registered one is tested without being
named here.
"""

import math

import pytest
import torch

from instamap.forward.ray import Ray
from instamap.geometry import rotations
from instamap.plugin.component import Component
from instamap.plugin.registry import default
from instamap.scene import Scene, Views
from instamap.testing import (
    DeformationLaws,
    ForwardLaws,
    IsometryLaws,
    LikelihoodLaws,
    RepresentationLaws,
)
from instamap.testing.scenes import in_ball

LAWS = {
    "representation": RepresentationLaws,
    "deformation": DeformationLaws,
    "forward": ForwardLaws,
    "likelihood": LikelihoodLaws,
}


# What is known of a part beyond the laws of its kind. A part that is not named here is held to
# those.
MORE = {
    # Collisions of the hash are part of it, so its table must be smaller than its finest level.
    ("representation", "hash-grid"): {"options": {"table_size": 8, "levels": 4, "base": 4}},
    ("deformation", "rigid"): {"laws": IsometryLaws},
    ("likelihood", "correlation"): {
        "invariances": ("offset",)
    },  # and the scale, but for the tiny contrast that counts as none
    ("likelihood", "half-correlation"): {"invariances": ("offset",)},
    ("likelihood", "bioem"): {"invariances": ("offset",)},
    # It sums the density at exact points, in steps of σ/1.4: only the Gaussians' tails outside the
    # sphere are lost.
    ("forward", "ray"): {"tolerance": 1e-6},
}


def laws_of(part: Component) -> type:
    """The test class of one part."""
    more = dict(MORE.get((part.kind, part.name), {}))
    base = more.pop("laws", LAWS[part.kind])
    return type(
        f"Test_{part.kind}_{part.name}",
        (base,),
        {"name": part.name, "__module__": __name__, **more},
    )


globals().update(
    {
        cls.__name__: cls
        for cls in (laws_of(part) for part in default().parts() if part.kind in LAWS)
    }
)


def test_nothing_is_named_that_is_not_registered():
    assert {(part.kind, part.name) for part in default().parts()} >= MORE.keys()


def test_error_of_ray_falls_with_the_square_of_the_spacing():
    """A cone has kinks, so the sum over depths errs by O(Δ²); the mean over pixels and poses does
    not depend on where they fall.
    """
    scene = Scene(16, 1.0)
    g = torch.Generator().manual_seed(0)
    views = Views.of(rotations.random(8, generator=g))
    centre = in_ball(scene, (), g, 2.0)

    def cone(x):
        return (5.0 - (x - centre).norm(dim=-1)).clamp(min=0)

    counts = (16, 32, 64, 128)
    images = [Ray(Ray.Options(samples=n, jitter=0.0), scene)(cone, views) for n in (*counts, 1024)]
    errors = [(image - images[-1]).square().mean().sqrt() for image in images[:-1]]
    orders = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert sum(orders) / len(orders) == pytest.approx(2.0, abs=0.3), orders
