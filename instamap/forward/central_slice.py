"""Central slices: the density is put on a lattice once, and all images are planes of its Fourier transform."""

from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.geometry import grids
from instamap.geometry.central_slices import central_slices
from instamap.options import Options, option
from instamap.protocols import DensityFn, ForwardOperator
from instamap.scene import Scene, Views

FRAME = 1.25  # of the box: what a shift moves over an edge by up to an eighth of the box leaves, and does not come back opposite


class Slice(ForwardOperator):
    """P(u) = F⁻¹[ Δ · V̂(Aᵀ(k, 0)) e^{2πi k·origin} ], V the density at the voxel centres inside the sphere or the user's mask.

    The projection theorem; for a density without frequencies beyond Nyquist images err by 1e-4 of their largest pixel. The corners of the
    image's Fourier plane, beyond its inscribed circle, are left empty. One raster serves all images, which therefore have one density.
    In training every voxel centre moves by up to ±½ voxel · jitter.
    """

    deforms = False

    @dataclass(frozen=True)
    class Options(Options):
        jitter: float = option(1.0, "scale of the random displacement of voxel centres, 0 turns it off", unit="voxels", low=0.0)
        padding: float = option(2.0, "frame in which the CTF is applied, relative to the box", low=1.0, high=4.0)

    def __init__(self, options: Options, scene: Scene):
        super().__init__(options, scene)
        self.padding = options.padding
        centres = grids.voxel_centres(scene.box, scene.pixel_size, dtype=torch.float64)
        inside = centres.norm(dim=-1) <= scene.radius + 0.5 * scene.pixel_size
        if scene.mask is not None:  # a voxel wider than the mask: jitter may step back in
            inside = torch.nn.functional.max_pool3d((scene.mask > 0).float()[None], 3, 1, 1)[0] > 0
        self.register_buffer("inside", inside, persistent=False)
        self.register_buffer("centres", centres[inside], persistent=False)
        self.frame = 2 * round(scene.box * FRAME / 2) + scene.box % 2
        k = grids.frequencies(self.frame, 1 / self.frame, dtype=torch.float64)
        self.register_buffer("known", k.norm(dim=-1) < self.frame / 2 - 1e-6, persistent=False)
        self.register_buffer("plane", k[self.known], persistent=False)  # "P 2": (kx, ky) in cycles per frame

    def forward(self, density: DensityFn, views: Views, *, generator: torch.Generator | None = None) -> Tensor:
        scene, kind = self.scene, views.rotation.dtype
        x = self.centres.to(kind)
        jitter = self.options.jitter * self.jitter
        if self.training and jitter:
            shift = torch.rand(x.shape, generator=generator, dtype=kind, device=x.device) - 0.5
            x = x + shift * (scene.pixel_size * jitter)
        values = density(x[None])[0]
        volume = values.new_zeros(self.inside.shape).masked_scatter(self.inside, values)
        plane = self.plane.to(kind)
        slices = central_slices(volume, views.rotation[:, :2], plane * (scene.box / self.frame)) * scene.pixel_size
        turns = plane @ (self.frame // 2 - views.origin / scene.pixel_size).T / self.frame  # "P B", of the particle's centre
        slices = slices * torch.polar(torch.ones_like(turns), -2 * torch.pi * turns).T
        spectrum = slices.new_zeros(len(views), *self.known.shape)
        spectrum[:, self.known] = slices
        return grids.crop(torch.fft.irfft2(spectrum, s=(self.frame, self.frame)), scene.box)
