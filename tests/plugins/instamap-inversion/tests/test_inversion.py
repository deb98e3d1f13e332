"""The workflow obeys the laws."""

from instamap import Settings
from instamap.simulate.particle_set import demo
from instamap.testing import WorkflowLaws


class TestInversion(WorkflowLaws):
    name = "inversion"

    def settings(self, folder):
        demo(folder)
        return Settings(folder / "particles.star", workflow="inversion")

    def unsuitable_settings(self, folder):
        return Settings(folder / "absent.star", workflow="inversion", likelihood="bioem")
