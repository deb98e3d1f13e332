"""Where a run computes: on the CPU, or on a card that torch can use."""

import torch

from instamap.errors import OptionError
from instamap.workflows.settings import check_device_name

CPU = "cpu"
AUTO = "auto"


def choose_device(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda`, `cuda:1` or `mps` stands for here; auto takes a CUDA
    card where torch sees one. Raises OptionError with the remedy for what there is not.
    """
    check_device_name(name)
    if name == AUTO:
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device(CPU)
    device = torch.device(name)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise OptionError(f"device '{name}' is not there: torch sees no Apple card; choose cpu")
    if device.type == "cuda":
        _check_card(name, device)
    return device


def _check_card(name: str, device: torch.device) -> None:
    """Raises OptionError for a CUDA card that torch cannot use."""
    if torch.version.cuda is None and torch.version.hip is None:
        raise OptionError(
            f"device '{name}' is not there: this torch ({torch.__version__}) is built for CPUs;"
            " install one for CUDA (https://pytorch.org/get-started), or choose cpu"
        )
    count = torch.cuda.device_count()
    if count == 0:
        raise OptionError(
            f"device '{name}' is not there: torch sees no card; look at nvidia-smi and"
            " CUDA_VISIBLE_DEVICES, or choose cpu"
        )
    if device.index is not None and device.index >= count:
        raise OptionError(
            f"device '{name}' is not there: torch sees {count} cards; choose from cuda:0 to"
            f" cuda:{count - 1}"
        )


def described(device: torch.device) -> str:
    """The device with the name of its card, for people."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)
