"""The parts that come with instamap, announced through the same hook as everybody's."""

from instamap.plugin.component import Component
from instamap.plugin.hooks import hookimpl

INSTAMAP = "Woollard et al., Acta Cryst. D81, 147-169 (2025), doi 10.1107/S2059798325002025"
NGP = "Müller et al., ACM Trans. Graph. 41, 102 (2022), doi 10.1145/3528223.3530127"
BIOEM = "Cossio & Hummer, J. Struct. Biol. 184, 427-437 (2013), doi 10.1016/j.jsb.2013.10.006"
ONE_BLOB = "Müller et al., ACM Trans. Graph. 38, 145 (2019), doi 10.1145/3341156"
NERF = "Mildenhall et al., ECCV (2020), doi 10.1007/978-3-030-58452-8_24"


@hookimpl
def instamap_components() -> list[Component]:
    """The parts, objectives and workflows that come with instamap."""
    return [
        Component(
            "representation",
            "hash-grid",
            "instamap.representations.hash_grid:HashGrid",
            "multiresolution hash grid with a small decoder (instant-NGP)",
            f"{NGP}; {INSTAMAP}",
        ),
        Component(
            "representation",
            "voxel",
            "instamap.representations.voxel:Voxel",
            "values on a cubic lattice, trilinear in between",
            INSTAMAP,
        ),
        Component(
            "representation",
            "frequency",
            "instamap.representations.networks:Frequency",
            "coordinate network with a frequency encoding",
            NERF,
        ),
        Component(
            "representation",
            "one-blob",
            "instamap.representations.networks:OneBlob",
            "coordinate network with a one-blob encoding",
            ONE_BLOB,
        ),
        Component(
            "representation",
            "spherical-harmonics",
            "instamap.representations.networks:SphericalHarmonics",
            "coordinate network with an encoding by spherical harmonics",
            INSTAMAP,
        ),
        Component(
            "representation",
            "triangle-wave",
            "instamap.representations.networks:TriangleWave",
            "coordinate network with an encoding by triangle waves",
            INSTAMAP,
        ),
        Component(
            "forward",
            "ray",
            "instamap.forward.ray:Ray",
            "line integrals through the field, sampled at jittered depths",
            INSTAMAP,
        ),
        Component(
            "forward",
            "slice",
            "instamap.forward.central_slice:Slice",
            "central slices of the Fourier transform of one raster, for all images at once",
            "",
        ),
        Component(
            "forward",
            "ewald",
            "instamap.forward.ewald:Ewald",
            "slices on the Ewald sphere, for large particles at high resolution",
            "",
        ),
        Component(
            "deformation",
            "identity",
            "instamap.deform.identity:Identity",
            "every particle has the same density",
            "",
        ),
        Component(
            "deformation",
            "rigid",
            "instamap.deform.rigid:Rigid",
            "a small rotation and translation of its own for each particle",
            INSTAMAP,
        ),
        Component(
            "deformation",
            "bending-field",
            "instamap.deform.bending_field:BendingField",
            "a smooth displacement field steered by a few coordinates per particle",
            INSTAMAP,
        ),
        Component(
            "deformation",
            "subspace",
            "instamap.deform.subspace:Subspace",
            "states with maps of their own, for what comes and goes rather than bends",
            "",
        ),
        Component(
            "likelihood",
            "gaussian",
            "instamap.likelihoods.gaussian:Gaussian",
            "independent Gaussian noise of one variance in every pixel",
            "",
        ),
        Component(
            "likelihood",
            "coloured",
            "instamap.likelihoods.coloured:Coloured",
            "Gaussian noise with a power spectrum for each optics group",
            "",
        ),
        Component(
            "likelihood",
            "correlation",
            "instamap.likelihoods.correlation:Correlation",
            "correlation of both images, whitened: no scale, no offset",
            INSTAMAP,
        ),
        Component(
            "likelihood",
            "half-correlation",
            "instamap.likelihoods.correlation:HalfCorrelation",
            "correlation with the whitened image, and the norm of the prediction",
            INSTAMAP,
        ),
        Component(
            "likelihood",
            "bioem",
            "instamap.likelihoods.bioem:Bioem",
            "Gaussian noise, with an image's scale and offset integrated out",
            BIOEM,
        ),
        Component(
            "objective",
            "normal",
            "instamap.fitting.normal:NormalEquations",
            "normal equations: all images at once, one density for all particles",
            "",
        ),
        Component(
            "objective",
            "images",
            "instamap.fitting.images:MiniBatches",
            "mini-batches of images; fits any composition",
            INSTAMAP,
        ),
        Component(
            "objective",
            "conformations",
            "instamap.fitting.conformations:Conformations",
            "normal equations of conformations along a motion, into which one density is bent",
            "",
        ),
        Component(
            "workflow",
            "map",
            "instamap.workflows.map:MapWorkflow",
            "half maps, a map and its resolution, by any objective",
            "",
        ),
        Component(
            "workflow",
            "motion",
            "instamap.workflows.motion:MotionWorkflow",
            "how particles differ, from scratch: coordinates, maps of conformations, a verdict",
            "",
        ),
        Component(
            "workflow",
            "poses",
            "instamap.workflows.poses:PosesWorkflow",
            "the map and a correction of each particle's pose in closed form, turn by turn",
            "",
        ),
        Component(
            "format",
            "relion-star",
            "instamap.data.formats.star:StarFormat",
            "STAR file of particles (RELION 3.0 or later)",
            "Scheres, J. Struct. Biol. 180, 519-530 (2012), doi 10.1016/j.jsb.2012.09.006",
        ),
        Component(
            "format",
            "relion-tilt-series",
            "instamap.data.formats.tilt_series:TiltSeriesFormat",
            "particles of tilt series as stacks of 2-D images (RELION 5, WarpTools)",
            "Burt et al., FEBS Open Bio 14, 1788-1804 (2024), doi 10.1002/2211-5463.13873",
        ),
        Component(
            "format",
            "cryosparc",
            "instamap.data.formats.cryosparc:CryosparcFormat",
            ".cs file or .csg group of particles (cryoSPARC)",
            "Punjani et al., Nat. Methods 14, 290-296 (2017), doi 10.1038/nmeth.4169",
        ),
        Component(
            "format",
            "cryodrgn",
            "instamap.data.formats.cryodrgn:CryodrgnFormat",
            "pickles of poses and CTF (cryoDRGN)",
            "Zhong et al., Nat. Methods 18, 176-185 (2021), doi 10.1038/s41592-020-01049-4",
        ),
    ]
