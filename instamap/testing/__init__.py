"""The contract kit: the laws of each kind of part as test classes. Subclass one, name the part, and
pytest runs them.

    from instamap.testing import RepresentationLaws

    class TestMine(RepresentationLaws):
        name = "my-part"

docs/laws.md says what each law is for. Needs pytest and hypothesis: `pip install
"instamap[testing]"`.
"""

import pytest

LAW_FILES = (
    "part",
    "representation",
    "deformation",
    "forward",
    "likelihood",
    "objectives",
    "workflows",
    "formats",
)

# Must come before the imports below: without it a failed law would not show the values it compared.
pytest.register_assert_rewrite(*(f"{__name__}.{file}" for file in LAW_FILES))

from instamap.testing.deformation import DeformationLaws, IsometryLaws  # noqa: E402
from instamap.testing.formats import FormatLaws  # noqa: E402
from instamap.testing.forward import ForwardLaws  # noqa: E402
from instamap.testing.likelihood import LikelihoodLaws  # noqa: E402
from instamap.testing.objectives import ObjectiveLaws  # noqa: E402
from instamap.testing.representation import RepresentationLaws  # noqa: E402
from instamap.testing.workflows import WorkflowLaws  # noqa: E402

__all__ = [
    "DeformationLaws",
    "FormatLaws",
    "ForwardLaws",
    "IsometryLaws",
    "LikelihoodLaws",
    "ObjectiveLaws",
    "RepresentationLaws",
    "WorkflowLaws",
]
