"""The optimiser of fits."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

MEAN_DECAY = 0.9  # per step, of the running mean of gradients
SQUARE_DECAY = 0.999  # and of their squares
LEAST_DEVIATION = 1e-8  # of a gradient, by which its mean is divided


class Adam:
    """Adam (Kingma & Ba 2015) on groups of parameters, as `torch.optim.Adam` steps.

    By torch's function: the class would load torch's compiler, which takes longer than a small fit.
    groups: dictionaries with "params" and "lr", the length of their steps, which may be changed.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        self.param_groups = list(groups)
        self._of: dict[Tensor, tuple[Tensor, Tensor, Tensor]] = {
            parameter: (
                torch.zeros((), device=parameter.device),
                torch.zeros_like(parameter, requires_grad=False),
                torch.zeros_like(parameter, requires_grad=False),
            )
            for parameter in self._parameters()
        }

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for parameter in self._parameters():
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Moves the parameters that have a gradient."""
        for group in self.param_groups:
            moving = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not moving:
                continue
            steps, means, squares = zip(*(self._of[one] for one in moving), strict=True)
            adam(
                moving,
                [parameter.grad for parameter in moving],
                list(means),
                list(squares),
                [],
                list(steps),
                fused=True,
                amsgrad=False,
                beta1=MEAN_DECAY,
                beta2=SQUARE_DECAY,
                lr=group["lr"],
                weight_decay=0.0,
                eps=LEAST_DEVIATION,
                maximize=False,
            )

    def state_dict(self) -> dict[str, Any]:
        """What it knows of each parameter, in their order: the number of steps, and the running
        means of gradients and of their squares. Not a copy.
        """
        return {"parameters": [self._of[parameter] for parameter in self._parameters()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what another one of the same parameters knew."""
        pairs = zip(self._parameters(), state["parameters"], strict=True)
        for parameter, known in pairs:
            for own, other in zip(self._of[parameter], known, strict=True):
                own.copy_(other)
