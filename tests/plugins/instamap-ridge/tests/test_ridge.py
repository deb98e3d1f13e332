"""The objective obeys the laws, and its penalty is what it says."""

from instamap.testing import ObjectiveLaws


class TestRidge(ObjectiveLaws):
    name = "ridge"
    options = {"weight": 1e-3}
