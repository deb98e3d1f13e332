"""instamap: density maps from cryo-EM particle images with known poses, as fitted fields.

    run = instamap.reconstruct("particles.star", representation="hash-grid")
    run.resolution
    run.save("out")

What stands here is public: the functions, and all that a plugin subclasses or calls. Nothing is
imported before it is used, so that `import instamap` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from instamap.version import __version__

if TYPE_CHECKING:
    from instamap.data.formats.base import InputFormat as InputFormat
    from instamap.data.particle_table import ParticleTable as ParticleTable
    from instamap.data.particles import Particles as Particles
    from instamap.errors import CompositionError as CompositionError
    from instamap.errors import DataError as DataError
    from instamap.errors import InstamapError as InstamapError
    from instamap.errors import OptionError as OptionError
    from instamap.errors import OutputError as OutputError
    from instamap.errors import PartError as PartError
    from instamap.fitting.objective import ImageData as ImageData
    from instamap.fitting.objective import Objective as Objective
    from instamap.fitting.objective import ObjectiveOptions as ObjectiveOptions
    from instamap.fitting.objective import StatisticsData as StatisticsData
    from instamap.parts import ContinuousDeformation as ContinuousDeformation
    from instamap.parts import Deformation as Deformation
    from instamap.parts import DensityFn as DensityFn
    from instamap.parts import DiscreteDeformation as DiscreteDeformation
    from instamap.parts import ForwardOperator as ForwardOperator
    from instamap.parts import GaussianLikelihood as GaussianLikelihood
    from instamap.parts import HasBodies as HasBodies
    from instamap.parts import Likelihood as Likelihood
    from instamap.parts import PerParticleTable as PerParticleTable
    from instamap.parts import PremultipliedLikelihood as PremultipliedLikelihood
    from instamap.parts import RefinesNoise as RefinesNoise
    from instamap.parts import Representation as Representation
    from instamap.parts import RigidCorrection as RigidCorrection
    from instamap.parts import SharedDensity as SharedDensity
    from instamap.parts import SharedDensityOperator as SharedDensityOperator
    from instamap.plugin.choice import Choice as Choice
    from instamap.plugin.choice import choose as choose
    from instamap.plugin.component import Component as Component
    from instamap.plugin.hooks import hookimpl as hookimpl
    from instamap.plugin.options import CoordinateOptions as CoordinateOptions
    from instamap.plugin.options import DeformationOptions as DeformationOptions
    from instamap.plugin.options import Options as Options
    from instamap.plugin.options import RepresentationOptions as RepresentationOptions
    from instamap.plugin.options import option as option
    from instamap.plugin.registry import register as register
    from instamap.progress import Evaluation as Evaluation
    from instamap.progress import Progress as Progress
    from instamap.scene import Batch as Batch
    from instamap.scene import Optics as Optics
    from instamap.scene import Scene as Scene
    from instamap.scene import Views as Views
    from instamap.workflows.api import accumulate as accumulate
    from instamap.workflows.api import fit as fit
    from instamap.workflows.api import load as load
    from instamap.workflows.api import reconstruct as reconstruct
    from instamap.workflows.result import Artefact as Artefact
    from instamap.workflows.result import Result as Result
    from instamap.workflows.settings import Settings as Settings
    from instamap.workflows.workflow import Workflow as Workflow

_HOMES = {
    "workflows.api": ("reconstruct", "accumulate", "fit", "load"),
    "workflows.result": ("Result", "Artefact"),
    "workflows.settings": ("Settings",),
    "workflows.workflow": ("Workflow",),
    "data.particles": ("Particles",),
    "data.particle_table": ("ParticleTable",),
    "data.formats.base": ("InputFormat",),
    "errors": (
        "InstamapError",
        "DataError",
        "OptionError",
        "PartError",
        "CompositionError",
        "OutputError",
    ),
    "fitting.objective": ("Objective", "ObjectiveOptions", "ImageData", "StatisticsData"),
    "parts": (
        "Representation",
        "Deformation",
        "ForwardOperator",
        "Likelihood",
        "DensityFn",
        "SharedDensity",
        "ContinuousDeformation",
        "DiscreteDeformation",
        "RigidCorrection",
        "PerParticleTable",
        "HasBodies",
        "SharedDensityOperator",
        "GaussianLikelihood",
        "PremultipliedLikelihood",
        "RefinesNoise",
    ),
    "plugin.choice": ("Choice", "choose"),
    "plugin.component": ("Component",),
    "plugin.hooks": ("hookimpl",),
    "plugin.options": (
        "option",
        "Options",
        "RepresentationOptions",
        "DeformationOptions",
        "CoordinateOptions",
    ),
    "plugin.registry": ("register",),
    "progress": ("Progress", "Evaluation"),
    "scene": ("Scene", "Views", "Optics", "Batch"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    """A public name, from the module that has it, imported when it is first used."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'instamap' has no attribute '{name}'")
    found = getattr(import_module(f"instamap.{_HOME_OF[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
