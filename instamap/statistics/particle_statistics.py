"""Images as motion is looked for in them: the low Fourier components, against which many maps are
held at once.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from instamap.data.particles import Particles
from instamap.fourier.central_slices import central_slices
from instamap.fourier.ctf import ctf
from instamap.fourier.gridding import Grid
from instamap.statistics import accumulator
from instamap.statistics.statistics import Statistics
from instamap.statistics.streaming import read_ahead
from instamap.workflows.settings import Settings

CHUNK = 2048  # images at once
LEAST = 24  # pixels of a coarse image, if the images have as many
RANK = 10  # maps that stand for more of them: images are held against a basis
CUT = 0.02  # of a particle's largest share: below, it is left out of a state


@dataclass(frozen=True)
class Coarse:
    """What some images say of maps of `box` voxels, Fourier component by component (see
    `fit.statistics`).

    data "n P" (complex): C F / (D² σ²), with the share of each component; power "n P": C² / (D²
    σ²). frames "n 2 3". plane "P 2". unit "n": the number of the particle that an image shows;
    images of one particle share its coordinates.
    """

    box: int
    pixel_size: float
    data: Tensor
    power: Tensor
    frames: Tensor
    plane: Tensor
    unit: Tensor

    @staticmethod
    def read(particles: Particles, rows: Tensor, variance: Tensor, unit: Tensor) -> "Coarse":
        """Of the images `rows` "n" in noise of `variance` "G D//2+1"; unit "n": any numbers that
        images of one particle share.
        """
        box = particles.box
        size = particles.pixel_size
        parts = accumulator.Components(box, torch.float32, torch.device("cpu"))
        data = []
        power = []
        for batch in read_ahead(particles, rows):
            views = batch.views
            transfer = (
                torch.ones(())
                if views.optics is None
                else parts.gather(ctf(views.optics, box, size))
            )
            precision = parts.share / (box**2 * variance[views.group].float())[:, parts.shell]
            seen = parts.of(batch.images, views.origin / size)
            data.append(seen * (precision * size * (1.0 if particles.premultiplied else transfer)))
            power.append(precision * (size * transfer) ** 2)
        frames = particles.views.rotation[rows, :2].float().contiguous()
        return Coarse(
            box,
            size,
            torch.cat(data),
            torch.cat(power),
            frames,
            parts.plane,
            unit.unique(return_inverse=True)[1],
        )

    @property
    def count(self) -> int:
        """Particles."""
        return int(self.unit.max()) + 1

    def ones(self) -> Tensor:
        """Weights "m" of 1."""
        return torch.ones(self.count, dtype=torch.float64)

    def some(self, units: Tensor) -> "Coarse":
        """Of the particles `units` alone."""
        on = torch.isin(self.unit, units)
        unit = self.unit[on].unique(return_inverse=True)[1]
        return replace(
            self, data=self.data[on], power=self.power[on], frames=self.frames[on], unit=unit
        )

    @torch.no_grad()
    def evidence(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """For maps V_c "C N N N" the G "m C C" and h "m C" (float64) of each particle: log p(Σ c_c
        V_c) = h·c - ½ c·G c + const.
        """
        if len(maps) > RANK:
            u, s, v = torch.linalg.svd(maps.flatten(1), full_matrices=False)
            mix = (u[:, :RANK] * s[:RANK]).double()
            gram, h = self.evidence(v[:RANK].view(RANK, *maps.shape[1:]))
            return mix @ gram @ mix.T, h @ mix.T
        gram = torch.zeros(self.count, len(maps), len(maps), dtype=torch.float64)
        h = torch.zeros(self.count, len(maps), dtype=torch.float64)
        for some in torch.arange(len(self.data)).split(CHUNK):
            seen = torch.stack(
                [
                    torch.view_as_real(central_slices(v, self.frames[some], self.plane))
                    for v in maps
                ],
                1,
            )  # "B C P 2"
            weighted = seen * (2 * self.power[some])[:, None, :, None]
            gram.index_add_(0, self.unit[some], (weighted.flatten(2) @ seen.flatten(2).mT).double())
            data = 2 * torch.view_as_real(self.data[some])
            h.index_add_(
                0, self.unit[some], (seen.flatten(2) @ data.flatten(1)[..., None])[..., 0].double()
            )
        return gram, h

    def statistics(self, power: Tensor, data: Tensor | None = None) -> Statistics:
        """Of all images with weights "m" of their particles; those of the data may differ, and both
        may be negative.
        """
        data = power if data is None else data
        grid = Grid(self.box)
        kept = ((power[self.unit] != 0) | (data[self.unit] != 0)).nonzero()[:, 0]
        for some in kept.split(8 * CHUNK):
            one, two = (w[self.unit[some]].float()[:, None] for w in (data, power))
            accumulator.spread(
                grid, self.frames[some], self.plane, self.data[some] * one, self.power[some] * two
            )
        kernel = torch.fft.rfftn(torch.fft.ifftshift(grid.power_lattice())).real
        return Statistics(
            self.box,
            self.pixel_size,
            grid.data_lattice(),
            kernel,
            len(kept),
            float(power[self.unit].sum()),
            float("nan"),
        )


def fewer_pixels(settings: Settings, fine: Particles, pixel_size: float) -> Particles:
    """The particles in pixels of about this size (Å) where theirs are smaller, `LEAST` pixels an
    edge at least.
    """
    box = max(min(LEAST, fine.box), 2 * round(fine.box * fine.pixel_size / pixel_size / 2))
    if box >= fine.box:
        return fine
    return Particles.open(
        settings.particles,
        datadir=settings.datadir,
        preprocess=replace(settings.preprocess, box=box),
    )


def sparse(share: Tensor) -> Tensor:
    """Shares "m K" without those that are small beside the particle's largest; their sum stays."""
    kept = share * (share > CUT * share.amax(1, keepdim=True))
    return kept * (share.sum(1, keepdim=True) / kept.sum(1, keepdim=True))


def rescaled(maps: Tensor, box: int) -> Tensor:
    """Maps "* N N N" on `box` voxels of the same edge: Fourier components beyond the smaller of
    both are dropped, or zero.
    """
    n = maps.shape[-1]
    dims = (-3, -2, -1)
    spectrum = torch.fft.fftshift(
        torch.fft.fftn(torch.fft.ifftshift(maps, dim=dims), dim=dims), dim=dims
    )
    pad = (box // 2 - n // 2, (box - box // 2) - (n - n // 2)) * 3
    spectrum = torch.nn.functional.pad(spectrum, pad)
    return (
        torch.fft.fftshift(
            torch.fft.ifftn(torch.fft.ifftshift(spectrum, dim=dims), dim=dims), dim=dims
        ).real
        * (box / n) ** 3
    )
