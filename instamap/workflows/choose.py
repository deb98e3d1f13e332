"""The one rule for `auto`: which workflow carries out given settings, and which objective its fits
lower.

A workflow that is named is taken. Otherwise the first of `ORDER` is taken that has nothing against
the settings. Its objective, where none is named, is the first of the workflow's own that can
describe the composition.
"""

from collections.abc import Sequence
from dataclasses import replace

from instamap.errors import CompositionError
from instamap.plugin.choice import choose, load_class
from instamap.workflows.settings import Settings

AUTO = "auto"
ORDER = ("motion", "poses", "map")

RULE = (
    (
        "motion",
        "particles differ: --deform bending-field (from=table, Gaussian noise, no stages)"
        " or subspace",
    ),
    ("poses", "--deform rigid corrects whole particles from a table, with no regulariser or stage"),
    (
        "map",
        "anything else: objective normal where all particles share one density, noise is Gaussian"
        " and images are of planes (not --forward ewald), else objective images",
    ),
)
"""What `instamap describe workflow auto` says: each workflow, and where it is taken."""


def workflow_name(settings: Settings) -> str:
    """The workflow that carries out these settings. Raises CompositionError where none can."""
    if settings.workflow is not None:
        return settings.workflow.name
    reasons = {}
    for name in ORDER:
        reason = load_class("workflow", name).unsuitable(settings)
        if reason is None:
            return name
        reasons[name] = reason
    raise CompositionError(_why_none(settings, reasons))


def objective_name(settings: Settings, workflow: str) -> str:
    """The objective that the workflow's fits lower. Raises CompositionError where none can."""
    if settings.objective is not None:
        return settings.objective.name
    from instamap.model import part_classes  # here, since it needs torch

    chosen = load_class("workflow", workflow)
    classes = part_classes(chosen.composition(settings))
    reasons = []
    for name in chosen.objectives:
        reason = load_class("objective", name).reason_against(classes)
        if reason is None:
            return name
        reasons.append(f"objective '{name}': {reason}")
    raise CompositionError(
        f"workflow '{workflow}' has no objective for these parts ({'; '.join(reasons)}); choose"
        " other parts"
    )


def resolve(
    settings: Settings,
    workflow_options: Sequence[str] = (),
    objective_options: Sequence[str] = (),
) -> Settings:
    """The settings with workflow and objective chosen, and options ("key=value") of those chosen
    here.

    Raises CompositionError where the named workflow or objective cannot carry them out.
    """
    name = workflow_name(settings)
    reason = load_class("workflow", name).unsuitable(settings)
    if reason is not None:
        raise CompositionError(f"workflow '{name}' does not fit these settings: {reason}")
    if settings.focus is not None and not load_class("workflow", name).takes_focus:
        raise CompositionError(
            f"focus '{settings.focus}' says where particles may differ, and workflow '{name}' looks"
            " for no differences; choose --deform bending-field or subspace, or leave it out"
        )
    settings = replace(settings, device=_device(settings, name))
    workflow = settings.workflow or choose("workflow", name, workflow_options)
    if not load_class("workflow", name).objectives:
        return replace(settings, workflow=workflow)
    objective = settings.objective
    if objective is None:
        objective = choose("objective", objective_name(settings, name), objective_options)
    return replace(settings, workflow=workflow, objective=objective)


def _device(settings: Settings, workflow: str) -> str:
    """The device on which the workflow computes. Raises CompositionError for a card that it cannot
    use, OptionError for one that is not there.
    """
    from instamap.workflows.devices import AUTO, CPU, choose_device  # here, since it needs torch

    takes_device = load_class("workflow", workflow).takes_device
    if settings.device == AUTO and not takes_device:
        return CPU
    device = str(choose_device(settings.device))
    if device != CPU and not takes_device:
        raise CompositionError(
            f"workflow '{workflow}' computes on the CPU alone, and device is '{settings.device}';"
            " leave --device out"
        )
    return device


def _why_none(settings: Settings, reasons: dict[str, str]) -> str:
    """One line for settings that no workflow can carry out."""
    each = "; ".join(f"workflow '{name}': {reason}" for name, reason in reasons.items())
    return f"no workflow fits deformation '{settings.deformation.name}' with these settings. {each}"
