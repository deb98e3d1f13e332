"""instamap's hash grid with tinycudann's kernels."""

import importlib
from types import ModuleType
from typing import Any

import torch
from instamap import PartError, Scene
from instamap.representations.decoder import in_chunks
from instamap.representations.hash_grid import HashGrid
from torch import Tensor, nn
from torch.func import functional_call

from instamap_tinycudann import layout

INSTALL = "pip install git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch"


class TinyCudaHashGrid(HashGrid):
    """The field of `hash-grid`, whose levels tinycudann encodes; it has the same parameters.

    Raises PartError where there is no tinycudann or no card, and for levels that tinycudann cannot
    hold. Source: Müller et al. 2022.
    """

    def __init__(self, options: Any, scene: Scene) -> None:
        super().__init__(options, scene)
        configurations = layout.configurations(self.levels)
        package = _tinycudann()
        # In a tuple, where torch does not take them for parts of this one: the parameters are ours.
        self._encodings = tuple(_encoding(package, each) for each in configurations)
        self._home = self._encodings[0].params.device

    def forward(self, x: Tensor) -> Tensor:
        """The field "*n" at points "*n 3"."""
        if x.device != self._home:
            raise PartError(
                f"points are on {x.device}, tinycudann is on {self._home}; choose --device"
                f" {self._home}, or representation 'hash-grid', which has the same parameters"
            )
        points = x.reshape(-1, 3)
        edge = self.scene.box * self.scene.pixel_size
        unit = points / edge + 0.5
        features = self._encode(unit)
        values = in_chunks(self.decoder, features)
        return values.reshape(x.shape[:-1])

    def _encode(self, unit: Tensor) -> Tensor:
        """Features "n L*F" (level-major) of points "n 3" in [0, 1]."""
        parameters = layout.to_tinycudann(self.table, self.levels)
        features = []
        for level, encoding in enumerate(self._encodings):
            points = layout.shifted(unit, self.levels.resolutions[level])
            encoded = functional_call(encoding, {"params": parameters[level]}, (points,))
            features.append(encoded.to(unit.dtype))
        return torch.cat(features, 1)


def _tinycudann() -> ModuleType:
    """The package. Raises PartError that says how to get it."""
    try:
        return importlib.import_module("tinycudann")
    except ImportError as error:
        raise PartError(
            "representation 'hash-grid-tcnn' needs NVIDIA's tinycudann, which cannot be imported"
            f" ({error}); on a machine with an NVIDIA card: {INSTALL}"
        ) from error
    except OSError as error:  # what it raises where torch sees no card
        raise PartError(
            "representation 'hash-grid-tcnn' needs an NVIDIA card that torch can use, and"
            f" tinycudann finds none ({error}); choose representation 'hash-grid', which has the"
            " same parameters"
        ) from error


def _encoding(package: ModuleType, configuration: dict[str, Any]) -> nn.Module:
    """One level in tinycudann, rid of the parameters that it was born with."""
    encoding = package.Encoding(3, configuration, dtype=torch.float32)
    encoding.params = nn.Parameter(encoding.params.new_empty(0))
    return encoding
