"""Every workflow obeys the laws of its kind."""

import pytest

from instamap import Settings
from instamap.plugin.registry import default
from instamap.simulate.particle_set import demo
from instamap.testing import WorkflowLaws

pytestmark = pytest.mark.slow
SHORT = {"steps": 20}


class TestMap(WorkflowLaws):
    name = "map"

    def settings(self, folder):
        star = demo(folder, count=200, box=24)
        return Settings(star, workflow="map", objective=("normal", SHORT))

    def unsuitable_settings(self, folder):
        return Settings(folder / "absent.star", workflow="map", deformation="subspace")


class TestMapByMiniBatches(TestMap):
    def settings(self, folder):
        star = demo(folder, count=200, box=24)
        return Settings(
            star,
            workflow="map",
            objective=("images", SHORT),
            deformation=("bending-field", {"points": 6}),
        )


class TestMotion(WorkflowLaws):
    name = "motion"

    def settings(self, folder):
        star = demo(folder, count=200, box=24)
        return Settings(
            star,
            workflow=("motion", {"nodes": 4, "dimensions": 1}),
            objective=("conformations", {"steps": 10}),
            # as a run leaves it: the number of coordinates is found otherwise
            deformation=("bending-field", {"points": 6, "latent": 1, "topology": "line"}),
        )

    def unsuitable_settings(self, folder):
        return Settings(folder / "absent.star", workflow="motion")


class TestPoses(WorkflowLaws):
    name = "poses"

    def settings(self, folder):
        star = demo(folder, count=200, box=24)
        return Settings(
            star,
            workflow=("poses", {"rounds": 1}),
            objective=("normal", SHORT),
            deformation="rigid",
        )

    def unsuitable_settings(self, folder):
        return Settings(folder / "absent.star", workflow="poses", deformation="identity")


def test_no_workflow_is_left_out():
    tested = {TestMap.name, TestMotion.name, TestPoses.name}
    assert {part.name for part in default().parts("workflow")} == tested
