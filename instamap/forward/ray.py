"""Line integrals along the beam, sampled at jittered depths: the paper's own forward operator."""

from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.geometry import draws, grids
from instamap.geometry.sampling import dilate
from instamap.parts import DensityFn, ForwardOperator
from instamap.plugin.options import Options as PartOptions
from instamap.plugin.options import option
from instamap.scene import Scene, Views


class Ray(ForwardOperator):
    """P(u) = Δ Σ_k ρ(Aᵀ(u + origin, w_k)) over depths w_k, a Δ apart, inside the sphere or the
    user's mask; where the image is distorted by M, P(u) = Δ/|M| Σ_k ρ(Aᵀ(M⁻ᵀ(u + origin), w_k)).

    In training every sample moves by up to ±½ of its cell (pixel x pixel x Δ) times `jitter`, so
    that the field is never seen twice at the same points. The error of the depth sum falls as Δ²
    for a smooth density. Source: the paper, eq. for P_i, with stratified depth sampling.
    """

    @dataclass(frozen=True)
    class Options(PartOptions):
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

    frame: Tensor
    support: Tensor | None

    def __init__(self, options: Options, scene: Scene) -> None:
        super().__init__(options, scene)
        self.padding = options.padding
        depths = options.samples or scene.box
        self.spacing = scene.box * scene.pixel_size / depths
        frame = _frame(scene, depths, self.spacing)
        # A voxel wider than the mask: jitter may step back in.
        support = None if scene.mask is None else dilate(scene.mask)
        self.register_buffer("frame", frame, persistent=False)
        self.register_buffer("support", support, persistent=False)

    def forward(
        self,
        density: DensityFn,
        views: Views,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Projections "B D D": sums over the samples of each pixel's ray."""
        box = self.scene.box
        shift = torch.nn.functional.pad(views.origin, (0, 1))
        undistorted = views.undistorted
        index, used = self._samples_inside(shift, views.rotation, undistorted)
        frame = self.frame.to(views.rotation.dtype)
        x = frame[index] + shift[:, None]
        x = self._jittered(x, generator)
        if undistorted is not None:
            x = x @ undistorted
        values = density(x @ views.rotation) * used  # row vectors times A: Aᵀ x
        depths = len(self.frame) // box**2
        empty = values.new_zeros(len(views), box**2)
        pixels = empty.scatter_add(1, index // depths, values)
        images = pixels.unflatten(1, (box, box)) * self.spacing
        if undistorted is None:
            return images
        return images * torch.linalg.det(undistorted).abs()[:, None, None]

    @torch.no_grad()
    def _samples_inside(
        self, shift: Tensor, rotation: Tensor, undistorted: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Indices "B P" of the samples in each particle's support, and which are not padding."""
        matrices = [None] * len(shift) if undistorted is None else undistorted
        poses = zip(shift, rotation, matrices, strict=True)
        rows = [self._inside(moved, turn, matrix) for moved, turn, matrix in poses]
        return _columns(torch.stack(rows))

    def _jittered(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Samples "B P 3" (image frame), each moved within its cell in training."""
        jitter = self.options.jitter * self.jitter
        if not self.training or not jitter:
            return x
        pixel_size = self.scene.pixel_size
        edges = x.new_tensor([pixel_size, pixel_size, self.spacing])
        cell = edges * jitter
        uniform = draws.uniform(x.shape, generator, x.device, x.dtype)
        return x + (uniform - 0.5) * cell

    def _inside(self, shift: Tensor, rotation: Tensor, undistorted: Tensor | None) -> Tensor:
        """Points of the frame "P" that fall into the support of one particle, as a mask."""
        scene = self.scene
        x = self.frame.to(rotation.dtype) + shift
        if undistorted is not None:
            x = x @ undistorted
        if self.support is None:
            reach = scene.radius + 0.5 * scene.pixel_size
            return (x**2).sum(-1) <= reach**2
        position = x @ rotation / scene.pixel_size
        voxel = position.round().long() + scene.box // 2
        in_box = (voxel >= 0) & (voxel < scene.box)
        i, j, k = voxel.clamp(0, scene.box - 1).unbind(-1)
        return self.support[k, j, i] & in_box.all(-1)


def _frame(scene: Scene, depths: int, spacing: float) -> Tensor:
    """Samples "D·D·depths 3" (float64; x, y, z in Å, image frame), one ray after the other."""
    plane = grids.pixel_centres(
        scene.box,
        scene.pixel_size,
        dtype=torch.float64,
    )
    index = torch.arange(depths, dtype=torch.float64)
    depth = (index - (depths - 1) / 2) * spacing
    across = plane[:, :, None, :].expand(-1, -1, depths, -1)
    along = depth[None, None, :, None].expand(scene.box, scene.box, -1, -1)
    samples = torch.cat([across, along], -1)
    return samples.reshape(-1, 3)


def _columns(inside: Tensor) -> tuple[Tensor, Tensor]:
    """Indices "B P" of the true entries of each row of "B F", rows padded to equal length, and
    which are not padding.
    """
    counts = inside.sum(1)
    longest = max(counts.tolist(), default=0)
    position = torch.arange(longest, device=inside.device)
    used = position < counts[:, None]
    index = torch.zeros(
        used.shape,
        dtype=torch.long,
        device=inside.device,
    )
    index[used] = inside.nonzero()[:, 1]
    return index, used
