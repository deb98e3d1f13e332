"""A device that there need not be: what is computed on it has a type, a shape and a place, and no
values.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from instamap.geometry import draws

# Of all devices but the CPU the only one that every build of torch can index tensors on.
PRETENDED = torch.device("meta")


@contextmanager
def pretended_device() -> Iterator[torch.device]:
    """A device onto which modules and tensors that were made outside can be moved.

    Operations that mix it with the CPU raise torch's FakeTensorDeviceMismatchError, and those whose
    course depends on values raise DataDependentOutputException. Random orders are drawn in earnest.
    """
    permutation = draws.permutation

    def drawn_in_earnest(count: int, generator: torch.Generator | None) -> list[int]:
        with unset_fake_temporarily():
            return permutation(count, generator)

    with (
        mock.patch.object(draws, "permutation", drawn_in_earnest),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        yield PRETENDED
