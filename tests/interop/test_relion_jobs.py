"""RELION beside us: its External job, its post-processing of our half maps, and the reconstruction
that relion_refine calls for.
"""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from instamap.data.formats import star_file
from instamap.errors import DataError, OptionError
from instamap.geometry import grids
from instamap.maps import fsc, mrc
from instamap.workflows import relion_job, relion_reconstruct
from instamap.workflows.relion_job import ABORT_NOW, ABORTED, FAILURE, NODES, SUCCESS
from instamap.workflows.relion_reconstruct import FourierSums
from tests.support.command import correlation, instamap

BOX = 32
PIXEL = 4.0
COUNT = 300
STAR = "Select/job010/particles.star"
HALF_MAPS = ("run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc")
QUICK = ("--O", "steps=20 evaluate_every=10")  # two words, as RELION passes them on
PROGRAM = Path(sys.executable).with_name("instamap")


def needs(program):
    """Skips a test where a program of RELION is missing."""
    return pytest.mark.skipif(
        shutil.which(program) is None,
        reason=f"{program} of RELION (Debian package relion) is not installed",
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project of RELION: particles whose images are named from its folder."""
    folder = tmp_path_factory.mktemp("project")
    mrc.write(folder / "blobs.mrc", blobs(), PIXEL)
    done = instamap(
        "simulate", folder / "blobs.mrc", "-n", COUNT, "--snr", 0.3, "-o", folder / "Extract"
    )
    assert done.code == 0, done
    star = folder / STAR
    star.parent.mkdir(parents=True)
    text = (folder / "Extract" / "particles.star").read_text()
    star.write_text(text.replace("@particles.mrcs", "@Extract/particles.mrcs"))
    return folder


@pytest.fixture
def inside(project, monkeypatch):
    """The project as working folder."""
    monkeypatch.chdir(project)
    return project


def blobs():
    """A map of some Gaussians."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(14, 3, generator=generator) * 14
    heights = torch.rand(14, generator=generator) + 0.5
    voxels = grids.voxel_centres(BOX, PIXEL)
    square = (voxels[..., None, :] - centres).square().sum(-1)
    return torch.exp(-square / (2 * 5.0**2)) @ heights


def job(folder, *words):
    """The outcome of a job in External/`folder` with more words."""
    return instamap(
        "relion-external", "--o", f"External/{folder}/", "--in_parts", STAR, *words, "--j", 1
    )


def exit_file(folder):
    """The one exit file that a job has left."""
    [found] = folder.glob("RELION_JOB_EXIT_*")
    return found.name


def nodes(folder):
    """Output nodes of a job: number and label of the type by name."""
    [table] = star_file.read(folder / NODES)
    assert table.name == "output_nodes"
    names, numbers, labels = (column.texts() for column in table.columns.values())
    return dict(zip(names, zip(map(int, numbers), labels, strict=True), strict=True))


def test_a_job_leaves_maps_nodes_and_success(inside):
    folder = inside / "External" / "job001"
    folder.mkdir(parents=True)
    (folder / "note.txt").write_text("RELION's own")
    (folder / FAILURE).touch()  # of an earlier try
    threads = torch.get_num_threads()
    done = job("job001", *QUICK, "--held_out", 0.1, "--in_3dref", "ref.mrc", "--no_normalise")
    assert done.code == 0, done
    assert exit_file(folder) == SUCCESS
    assert "--in_3dref ref.mrc plays no part" in done.err
    assert torch.get_num_threads() == threads
    assert nodes(folder) == {
        f"External/job001/{HALF_MAPS[0]}": (10, "DensityMap.mrc.halfmap"),
        f"External/job001/{HALF_MAPS[1]}": (10, "DensityMap.mrc.halfmap"),
        "External/job001/map.mrc": (6, "DensityMap.mrc"),
        "External/job001/mask.mrc": (7, "Mask3D.mrc"),
    }
    for half, name in zip(("half1", "half2"), HALF_MAPS, strict=True):
        assert (folder / name).read_bytes() == (folder / f"{half}.mrc").read_bytes()
    everywhere = torch.ones(BOX, BOX, BOX, dtype=torch.bool)
    assert correlation(mrc.read(folder / "map.mrc")[0], blobs(), everywhere) > 0.8
    # Again, with other settings: what the first try wrote goes, what RELION wrote stays.
    done = job("job001", *QUICK, "--no_halves", "")
    assert done.code == 0, done
    assert not list(folder.glob("*half*"))
    assert list(nodes(folder)) == ["External/job001/map.mrc", "External/job001/mask.mrc"]
    assert (folder / "note.txt").read_text() == "RELION's own"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--heldout", "0.1"), "did you mean held_out"),
        (("--held_out", "lots"), "'lots'"),
        (("--in_movies", "m.star"), "does not read"),
        (("--symmetry",), "no value"),
        (("--representation", "hash-gird"), "hash-gird"),
    ],
)
def test_a_wrong_parameter_is_refused_and_the_job_has_failed(inside, words, told):
    done = job("wrong", *words)
    assert told in done.refusal
    assert exit_file(inside / "External" / "wrong") == FAILURE


def test_a_job_needs_its_folder_and_particles(inside):
    assert "--o" in instamap("relion-external", "--in_parts", STAR).refusal
    assert "--in_parts" in instamap("relion-external", "--o", "External/none/").refusal
    assert exit_file(inside / "External" / "none") == FAILURE


def test_a_job_ends_when_relion_asks_for_it(inside):
    folder = inside / "External" / "abort"
    folder.mkdir(parents=True)
    (folder / ABORT_NOW).touch()
    assert "aborted" in job("abort", *QUICK).refusal
    assert exit_file(folder) == ABORTED


@pytest.mark.slow
def test_a_job_that_a_queue_ends_is_aborted_and_keeps_what_it_has(inside):
    folder = inside / "External" / "queue"
    endless = ["--O", "steps=1000000", "patience=1000000"]
    call = [PROGRAM, "relion-external", "--o", "External/queue/", "--in_parts", STAR, *endless]
    process = subprocess.Popen(call, env=single_thread(), stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 100
        while not list(folder.glob(".instamap-kept/*.npz")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert exit_file(folder) == ABORTED
    assert list(folder.glob(".instamap-kept/*.npz"))


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (DataError("no images"), FAILURE),
        (MemoryError(), FAILURE),
        (KeyboardInterrupt(), ABORTED),
        (SystemExit(143), ABORTED),
        (relion_job.JobAborted("enough"), ABORTED),
    ],
)
def test_exit_files_say_how_a_job_ended(tmp_path, error, name):
    folder = tmp_path / "job"
    with pytest.raises(type(error)), relion_job.exit_files(folder):
        raise error
    assert exit_file(folder) == name


def test_parameters_are_settings_with_hyphens_or_underscores(inside):
    said = "--in_mask m.mrc --group-by rlnGroupName --normalise Yes --no_halves --seed 5 --j 3"
    parts = "--R levels=4 floor=none --likelihood coloured --stage steps=5 deformation=0"
    words = ["--o", "External/job009", "--in_parts", STAR, *said.split(), *parts.split()]
    found = relion_job.read(words)
    settings = found.settings
    assert (found.prefix, found.threads) == ("External/job009/", 3)
    assert settings.particles == Path(STAR)
    assert settings.mask == Path("m.mrc")
    assert (settings.group_by, settings.seed) == ("rlnGroupName", 5)
    assert settings.normalise
    assert not settings.halves
    assert settings.representation.options.levels == 4
    assert settings.likelihood.name == "coloured"
    assert settings.stages[0].steps == 5
    with pytest.raises(OptionError, match="follows no parameter"):
        relion_job.read(["stray", *words])


@pytest.mark.parametrize(
    ("head", "label"),
    [
        ("# version 30001", "ParticlesData.star.relion"),
        ("# version 50001", "ParticleGroupMetadata.star.relion"),
    ],
)
def test_particles_have_the_label_of_relions_version(tmp_path, head, label):
    (tmp_path / "job.star").write_text(f"\n{head}\n\ndata_job\n")
    assert relion_job._type_of_particles(tmp_path).label == label


@needs("relion_postprocess")
def test_relion_postprocess_takes_our_half_maps(inside):
    done = job("post", *QUICK)
    assert done.code == 0, done
    folder = inside / "External" / "post"
    call = ["relion_postprocess", "--i", HALF_MAPS[0], "--o", "post", "--mask", "mask.mrc"]
    # It may fail afterwards, in plotting, where it finds no Ghostscript.
    said = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)
    assert HALF_MAPS[1] in said.stdout
    tables = {table.name: table for table in star_file.read(folder / "post.star")}
    [resolution] = tables["general"].columns["rlnFinalResolution"].numbers()
    assert 2 * PIXEL <= resolution < 30
    sharpened, pixel = mrc.read(folder / "post.mrc")
    assert (len(sharpened), pixel) == (BOX, PIXEL)


JOB = """
# version 30001

data_job

_rlnJobType                             99
_rlnJobIsContinue                       0


# version 30001

data_joboptions_values

loop_
_rlnJobOptionVariable #1
_rlnJobOptionValue #2
fn_exe "{program} relion-external"
in_part {star}
param1_label O
param1_value "steps=20 evaluate_every=10"
nr_threads 1
do_queue No

"""
PIPELINE = "\n# version 30001\n\ndata_pipeline_general\n\n_rlnPipeLineJobCounter 1\n\n"
EXTERNAL = 99  # RELION's number of the kind of job
FINISHED = 2  # its number of a status


@pytest.mark.slow
@needs("relion_pipeliner")
def test_relions_pipeline_runs_the_job_and_takes_its_outputs(project, tmp_path):
    folder = tmp_path / "pipeline"
    shutil.copytree(project, folder, ignore=shutil.ignore_patterns("External"))
    (folder / "default_pipeline.star").write_text(PIPELINE)
    (folder / "mine_job.star").write_text(JOB.format(program=PROGRAM, star=STAR))
    for words in (
        ["--addJobFromStar", "mine_job.star"],
        ["--schedule", "one", "--RunJobs", "External/job001/", "--sec_wait_after", "1"],
    ):
        call = ["relion_pipeliner", *words]
        subprocess.run(call, cwd=folder, env=single_thread(), check=True, timeout=120)
    tables = {table.name: table for table in star_file.read(folder / "default_pipeline.star")}
    process = {k: v.texts() for k, v in tables["pipeline_processes"].columns.items()}
    assert process["rlnPipeLineProcessType"] == [str(EXTERNAL)]
    assert process["rlnPipeLineProcessStatus"] == [str(FINISHED)]
    made = tables["pipeline_output_edges"].columns["rlnPipeLineEdgeToNode"].texts()
    names = (*HALF_MAPS, "map.mrc", "mask.mrc")
    assert made == [f"External/job001/{name}" for name in names]


def single_thread():
    """The environment of a program that is to take one thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


# Beyond 14 of 32 components is exp(-2 pi² 1.4² (14/32)²) = 6e-4 of such blobs.
TRUNCATION = 2e-3


def fourier_sums(weight, tau2, radius=14):
    """Sums that a map of blobs would give with these weights "P P P//2+1" of its components, and
    the map.
    """
    box = 16
    padding = 2
    edge = padding * box
    voxels = grids.voxel_centres(box, 1.0, dtype=torch.float64)
    density = torch.zeros(box, box, box, dtype=torch.float64)
    for centre in ((0.0, 0.0, 0.0), (1.5, -1.0, 0.5)):
        square = (voxels - torch.tensor(centre, dtype=torch.float64)).square().sum(-1)
        density += torch.exp(-square / (2 * 1.4**2))
    padded = torch.zeros(edge, edge, edge, dtype=torch.float64)
    middle = slice(edge // 2 - box // 2, edge // 2 + box // 2)
    # Linear interpolation of components has multiplied the map by its transform.
    position = voxels.norm(dim=-1) / edge
    padded[middle, middle, middle] = density * torch.sinc(position).square()
    transform = torch.fft.rfftn(torch.fft.ifftshift(padded))
    scale = padding**3 * box / edge**3  # images' transforms are those of RELION
    sums = FourierSums(
        data=transform * scale * weight,
        weight=weight,
        tau2=tau2,
        tau2_factor=2.0,
        padding=padding,
        box=box,
        current_box=radius,
        pixel_size=3.0,
        result=Path("result.mrc"),
    )
    return sums, density


def uneven_weight():
    """Weights that differ from component to component."""
    return 1 + torch.rand(32, 32, 17, dtype=torch.float64, generator=torch.Generator())


def test_without_a_prior_the_map_is_what_the_images_show():
    sums, density = fourier_sums(uneven_weight(), torch.full((9,), 1e12, dtype=torch.float64))
    found = relion_reconstruct.reconstruct(sums)
    assert float((found - density).norm() / density.norm()) < TRUNCATION


def test_where_prior_and_data_weigh_the_same_the_map_is_halved():
    tau2 = torch.full((9,), 0.5, dtype=torch.float64)
    weight = torch.full((32, 32, 17), 1 / (2**3 * 2.0 * 0.5), dtype=torch.float64)
    sums, density = fourier_sums(weight, tau2)
    found = relion_reconstruct.reconstruct(sums)
    assert float((2 * found - density).norm() / density.norm()) < TRUNCATION


def test_what_lies_beyond_the_current_size_plays_no_part():
    tau2 = torch.ones(9, dtype=torch.float64)
    sums, _ = fourier_sums(uneven_weight(), tau2, radius=6)
    radius = relion_reconstruct._radii(32)
    disturbed = torch.where(radius < sums.radius, sums.data, 1e6 * sums.data)
    found = relion_reconstruct.reconstruct(replace(sums, data=disturbed))
    assert torch.equal(found, relion_reconstruct.reconstruct(sums))


def write_request(folder, write_star, sums, **changes):
    """The files of relion_refine for such sums; names are relative to the folder."""
    files = {
        "rlnExtReconsDataReal": sums.data.real,
        "rlnExtReconsDataImag": sums.data.imag,
        "rlnExtReconsWeight": sums.weight,
    }
    general = {}
    for label, values in files.items():
        general[label] = f"{label}_{'imag' if label.endswith('Imag') else 'real'}.mrc"
        with mrcfile.new(folder / general[label], overwrite=True) as file:
            file.set_data(values.numpy().astype(np.float32))
    general |= {
        "rlnExtReconsResult": str(sums.result),
        "rlnTau2FudgeFactor": sums.tau2_factor,
        "rlnPaddingFactor": float(sums.padding),
        "rlnReferenceDimensionality": 3,
        "rlnOriginalImageSize": sums.box,
        "rlnCurrentImageSize": sums.current_box,
    }
    spectrum = [
        {"rlnSpectralIndex": shell, "rlnReferenceTau2": float(power)}
        for shell, power in enumerate(sums.tau2)
    ]
    tables = {
        "external_reconstruct_general": [general | changes],
        "external_reconstruct_tau2": spectrum,
    }
    return write_star(folder / "request.star", tables)


def test_the_command_writes_the_map_where_it_is_expected(tmp_path, monkeypatch, write_star):
    monkeypatch.chdir(tmp_path)
    sums, density = fourier_sums(uneven_weight(), torch.full((9,), 1e9, dtype=torch.float64))
    request = write_request(tmp_path, write_star, sums, rlnPixelSize=3.0)
    done = instamap("relion-reconstruct", request)
    assert done.code == 0, done
    found, pixel = mrc.read(tmp_path / "result.mrc")
    assert pixel == 3.0
    assert float((found - density).norm() / density.norm()) < TRUNCATION


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rlnReferenceDimensionality": 2}, "dimensions"),
        ({"rlnOriginalImageSize": 18}, "has shape"),
        ({"rlnOriginalImageSize": -1}, "above 0"),
        ({"rlnPaddingFactor": "nan"}, "above 0"),
        ({"rlnCurrentImageSize": 1}, "2 to 16"),
        ({"rlnCurrentImageSize": 18}, "2 to 16"),
        ({"rlnExtReconsWeight": "gone.mrc"}, "gone.mrc"),
        ({"rlnExtReconsWeight": "request.star"}, "MRC"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(tmp_path, monkeypatch, write_star, changes, told):
    monkeypatch.chdir(tmp_path)
    sums, _ = fourier_sums(uneven_weight(), torch.ones(9, dtype=torch.float64))
    request = write_request(tmp_path, write_star, sums, **changes)
    assert told in instamap("relion-reconstruct", request).refusal
    assert not (tmp_path / "result.mrc").exists()


@needs("relion_external_reconstruct")
@pytest.mark.parametrize("strength", [1.0, 1e6])
def test_the_map_is_that_of_relion_external_reconstruct(
    tmp_path, monkeypatch, write_star, strength
):
    """With gridding skipped, as relion_refine has it unless it is told otherwise."""
    monkeypatch.chdir(tmp_path)
    falling = strength * torch.exp(-torch.arange(9, dtype=torch.float64))
    sums, _ = fourier_sums(uneven_weight(), falling)
    request = write_request(tmp_path, write_star, sums)
    call = ["relion_external_reconstruct", request, "--skip_gridding", "--o", "theirs.mrc"]
    # Their names of data end in _real and _imag; ours must find the same files.
    (tmp_path / "rlnExtReconsDataReal_imag.mrc").symlink_to("rlnExtReconsDataImag_imag.mrc")
    subprocess.run(call, cwd=tmp_path, check=True, capture_output=True)
    assert instamap("relion-reconstruct", request).code == 0
    ours = mrc.read(tmp_path / "result.mrc")[0]
    theirs = torch.tensor(mrcfile.read(tmp_path / "theirs.mrc"))
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-6


REFINE = (
    "relion_refine --i Select/job010/particles.star --ref blobs.mrc --ini_high 25 --iter 2 --K 1"
    " --tau2_fudge 4 --particle_diameter 110 --ctf --healpix_order 1 --offset_range 3"
    " --offset_step 2 --pad 2 --norm --scale --zero_mask --flatten_solvent --j 1"
    " --dont_combine_weights_via_disc --random_seed 1"
)


@pytest.mark.slow
@needs("relion_refine")
def test_relion_refine_reconstructs_by_us(inside, tmp_path):
    """Its maps are those that it makes itself, where its prior holds from the first shell on."""
    theirs = tmp_path / "theirs"
    ours = tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    own = ["--skip_gridding", "--minres_map", "0"]
    environment = single_thread()
    environment["RELION_EXTERNAL_RECONSTRUCT_EXECUTABLE"] = f"{PROGRAM} relion-reconstruct"
    for folder, words in ((theirs, own), (ours, ["--external_reconstruct"])):
        call = [*REFINE.split(), *words, "--o", str(folder / "run")]
        done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("External reconstruction finished successfully") == 2
    for iteration in ("it001", "it002"):
        name = f"run_{iteration}_class001.mrc"
        curve = fsc.fsc(mrc.read(ours / name)[0], mrc.read(theirs / name)[0])
        limit = current_shell(theirs / f"run_{iteration}_model.star")
        assert limit >= 4
        assert float(curve[: limit + 1].min()) > 0.999


def current_shell(path):
    """The Fourier shell of the resolution that relion_refine states in a model file."""
    tables = {table.name: table for table in star_file.read(path)}
    [resolution] = tables["model_general"].columns["rlnCurrentResolution"].numbers()
    return math.ceil(BOX * PIXEL / resolution)
