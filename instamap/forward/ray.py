"""Line integrals along the beam, sampled at jittered depths: the paper's own forward operator."""

from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.geometry import grids
from instamap.parts import DensityFn, ForwardOperator
from instamap.plugin.options import Options, option
from instamap.scene import Scene, Views


class Ray(ForwardOperator):
    """P(u) = Δ Σ_k ρ(Aᵀ(u + origin, w_k)) over depths w_k, a Δ apart, inside the sphere or the
    user's mask.

    In training every sample moves by up to ±½ of its cell (pixel x pixel x Δ) times `jitter`, so
    that the field is never seen twice at the same points. The error of the depth sum falls as Δ²
    for a smooth density. Source: the paper, eq. for P_i, with stratified depth sampling.
    """

    @dataclass(frozen=True)
    class Options(Options):
        samples: int | None = option(None, "depths across the box; none means one per pixel", low=2)
        jitter: float = option(
            1.0,
            "scale of the random displacement of samples, 0 turns it off",
            unit="cells",
            low=0.0,
        )
        padding: float = option(
            2.0, "frame in which the CTF is applied, relative to the box", low=1.0, high=4.0
        )

    def __init__(self, options: Options, scene: Scene):
        super().__init__(options, scene)
        self.padding = options.padding
        depth = options.samples or scene.box
        self.spacing = scene.box * scene.pixel_size / depth
        plane = grids.pixel_centres(scene.box, scene.pixel_size, dtype=torch.float64)
        along = (torch.arange(depth, dtype=torch.float64) - (depth - 1) / 2) * self.spacing
        u = plane[:, :, None, :].expand(-1, -1, depth, -1)
        w = along[None, None, :, None].expand(scene.box, scene.box, -1, -1)
        self.register_buffer(
            "frame", torch.cat([u, w], -1).reshape(-1, 3), persistent=False
        )  # "D·D·depth 3"
        support = (
            None
            if scene.mask is None
            else torch.nn.functional.max_pool3d((scene.mask > 0).float()[None], 3, 1, 1)[0] > 0
        )
        self.register_buffer(
            "support", support, persistent=False
        )  # a voxel wider than the mask: jitter may step back in

    def forward(
        self, density: DensityFn, views: Views, *, generator: torch.Generator | None = None
    ) -> Tensor:
        shift = torch.nn.functional.pad(views.origin, (0, 1))
        with torch.no_grad():
            inside = torch.stack(
                [self._inside(s, a) for s, a in zip(shift, views.rotation, strict=True)]
            )
            at, used = _columns(inside)
        x = self.frame.to(views.rotation.dtype)[at] + shift[:, None]
        jitter = self.options.jitter * self.jitter
        if self.training and jitter:
            cell = (
                x.new_tensor([self.scene.pixel_size, self.scene.pixel_size, self.spacing]) * jitter
            )
            x = (
                x
                + (torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device) - 0.5)
                * cell
            )
        values = density(x @ views.rotation) * used  # row vectors times A: Aᵀ x
        pixels = values.new_zeros(len(views), self.scene.box**2)
        pixels = pixels.scatter_add(1, at // (len(self.frame) // self.scene.box**2), values)
        return pixels.unflatten(1, (self.scene.box, self.scene.box)) * self.spacing

    def _inside(self, shift: Tensor, rotation: Tensor) -> Tensor:
        """Which points of the frame, "P", fall into the support of one particle."""
        x = self.frame.to(rotation.dtype) + shift
        if self.support is None:
            return (x**2).sum(-1) <= (self.scene.radius + 0.5 * self.scene.pixel_size) ** 2
        voxel = (x @ rotation / self.scene.pixel_size).round().long() + self.scene.box // 2
        valid = ((voxel >= 0) & (voxel < self.scene.box)).all(-1)
        i, j, k = voxel.clamp(0, self.scene.box - 1).unbind(-1)
        return self.support[k, j, i] & valid


def _columns(inside: Tensor) -> tuple[Tensor, Tensor]:
    """Indices "B P" of the true entries of each row of "B F", rows padded to equal length, and
    which are not padding.
    """
    counts = inside.sum(1)
    used = torch.arange(max(counts.tolist(), default=0), device=inside.device) < counts[:, None]
    at = torch.zeros(used.shape, dtype=torch.long, device=inside.device)
    at[used] = inside.nonzero()[:, 1]
    return at, used
