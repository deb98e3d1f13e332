"""Every objective obeys the laws of its kind."""

from instamap.plugin.registry import default
from instamap.testing import ObjectiveLaws


class TestNormal(ObjectiveLaws):
    name = "normal"
    options = {"oversampling": 2}


class TestImages(ObjectiveLaws):
    name = "images"
    options = {"batch": 5, "turn": 2.0, "move": 1.0}


class TestImagesOfParticlesThatDiffer(ObjectiveLaws):
    name = "images"
    options = {"batch": 5}
    deformation = "rigid"


class TestConformations(ObjectiveLaws):
    name = "conformations"
    options = {"batch": 2}
    deformation = "bending-field"


def test_no_objective_is_left_out():
    tested = {TestNormal.name, TestImages.name, TestConformations.name}
    assert {part.name for part in default().parts("objective")} == tested
