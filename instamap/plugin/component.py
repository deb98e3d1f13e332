"""A part by name: the descriptor that plugins return, which says where the class is without
importing it.
"""

import re
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from instamap.errors import PartError

KINDS = (
    "representation",
    "deformation",
    "forward",
    "likelihood",
    "objective",
    "workflow",
    "format",
)


PROCESS = "this process"
"""The provider of parts that a script or a notebook registers itself."""


@dataclass(frozen=True)
class Component:
    """A part that can be chosen by name.

    kind: one of `KINDS`. name: lower-case words joined by hyphens, as typed on the command line.
    target: "package.module:Class"; imported only when the part is used. summary: one line. cite:
    the publication to name when it was used. provider: the distribution it comes from, filled in by
    the registry.
    """

    kind: str
    name: str
    target: str
    summary: str
    cite: str = ""
    provider: str = field(default="instamap", compare=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise PartError(
                f"part '{self.name}' has kind '{self.kind}'; the kinds are {', '.join(KINDS)}"
            )
        if not re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise PartError(
                f"{self.kind} '{self.name}' is not a name: use lower-case words joined by hyphens,"
                " such as 'hash-grid'"
            )
        module, _, attribute = self.target.partition(":")
        if not module or not attribute:
            raise PartError(
                f"{self.kind} '{self.name}' has target '{self.target}'; write it as"
                " 'package.module:Class'"
            )

    def load(self) -> Any:
        """The class behind the name. Raises PartError that names the part and its provider if there
        is none.
        """
        module, _, attribute = self.target.partition(":")
        try:
            found = getattr(import_module(module), attribute)
        except (Exception, SystemExit) as error:  # a third party's module may fail in any way
            raise self._unusable(
                f"cannot be imported from {self.target}: {type(error).__name__}: {error}"
            ) from error
        if not (isinstance(found, type) and hasattr(found, "Options")):
            raise self._unusable(f"is no class with Options: {self.target} is {found!r}")
        return found

    def _unusable(self, why: str) -> PartError:
        remedy = "mend it" if self.provider == PROCESS else f"mend or uninstall {self.provider}"
        return PartError(f"{self.kind} '{self.name}' of {self.provider} {why}; {remedy}")
