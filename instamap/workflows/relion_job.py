"""A reconstruction as RELION's External job: its arguments, its exit files and its output nodes.

RELION calls `program --o External/job012/ --in_parts particles.star --label value ... --j 4` in the
folder of its project. It takes the job for running until a file RELION_JOB_EXIT_SUCCESS, _FAILURE
or _ABORTED is in the job's folder, and asks for an end by a file RELION_JOB_ABORT_NOW.
"""

import contextlib
import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from instamap.data.formats import star_file
from instamap.data.formats.star_file import Column, Table
from instamap.errors import InstamapError, OptionError, OutputError
from instamap.files import replacing
from instamap.maps import mrc
from instamap.plugin.options import OptionSpec
from instamap.progress import SILENT, Evaluation, Progress
from instamap.workflows import api, output, resume
from instamap.workflows.read_settings import Typed, automatic_kinds, read_settings
from instamap.workflows.result import LABELS, Artefact, Result, run_folder
from instamap.workflows.settings import (
    RECONSTRUCT,
    SETTING,
    Settings,
    fields_of_command,
    plain_settings,
)

SUCCESS = "RELION_JOB_EXIT_SUCCESS"
FAILURE = "RELION_JOB_EXIT_FAILURE"
ABORTED = "RELION_JOB_EXIT_ABORTED"
ABORT_NOW = "RELION_JOB_ABORT_NOW"
NODES = "RELION_OUTPUT_NODES.star"
EXIT_FILES = (SUCCESS, FAILURE, ABORTED)

# What RELION's windows offer as half maps, and relion_postprocess finds in pairs, by our names.
HALF_MAPS = {
    "half1": "run_half1_class001_unfil.mrc",
    "half2": "run_half2_class001_unfil.mrc",
}
FIRST_OF_RELION_5 = 50001  # the version of STAR files from which particles have another label

LABEL = re.compile(r"--?[A-Za-z]")
INPUTS = {"in_parts": "particles", "in_mask": "mask"}
UNUSED_INPUTS = {"in_3dref": "reference"}
REFUSED_INPUTS = ("in_movies", "in_mics", "in_coords")
YES_OR_NO = {"": "true", "yes": "true", "no": "false"}


class JobAborted(InstamapError):
    """Somebody has asked RELION to abort the job."""


@dataclass(frozen=True)
class Parameter:
    """A label and what was typed after it, which may be nothing or several words."""

    label: str
    values: tuple[str, ...]

    @property
    def text(self) -> str:
        """What was typed after the label, as one line."""
        return " ".join(self.values)

    @property
    def name(self) -> str:
        """The label as names are written here."""
        return self.label.lstrip("-").replace("-", "_")


@dataclass(frozen=True)
class NodeType:
    """What a file is to RELION: number of versions up to 3.1, label of later ones."""

    number: int
    label: str


MAP = NodeType(6, "DensityMap.mrc")
MASK = NodeType(7, "Mask3D.mrc")
HALF_MAP = NodeType(10, "DensityMap.mrc.halfmap")
PARTICLES = NodeType(3, "ParticlesData.star.relion")
PARTICLES_OF_RELION_5 = NodeType(3, "ParticleGroupMetadata.star.relion")


@dataclass(frozen=True)
class ExternalJob:
    """A job as it was typed.

    prefix: of the names of output files, as RELION writes them. threads: None where nothing was
    said. automatic: kinds of parts that nobody has chosen. notes: what is to be known, in lines.
    """

    prefix: str
    settings: Settings
    threads: int | None
    automatic: list[str]
    notes: list[str]

    @property
    def folder(self) -> Path:
        """Where the job's files are written."""
        return Path(self.prefix)


def parameters(words: Sequence[str]) -> list[Parameter]:
    """The labels of a command line with what follows each. Raises OptionError."""
    found: list[Parameter] = []
    for word in words:
        if LABEL.match(word):
            label, equals, value = word.partition("=")
            found.append(Parameter(label, (value,) if equals else ()))
        elif found:
            last = found.pop()
            found.append(replace(last, values=(*last.values, word)))
        else:
            raise OptionError(f"'{word}' follows no parameter; write --parameter value")
    return found


def output_folder(words: Sequence[str]) -> Path:
    """The folder that RELION gives to the job. Raises OptionError where it is not said."""
    return Path(_prefix(parameters(words)))


def _prefix(given: Sequence[Parameter]) -> str:
    folders = [one.text for one in given if one.name == "o"]
    if len(folders) != 1 or not folders[0]:
        raise OptionError(
            f"--o is given {len(folders)} times with '{' '.join(folders)}'; give the job's folder"
            " once, such as --o External/job012/"
        )
    return folders[0] if folders[0].endswith("/") else folders[0] + "/"


def read(words: Sequence[str]) -> ExternalJob:
    """The job that RELION's command line describes. Raises InstamapError."""
    given = parameters(words)
    job_settings = JobSettings()
    threads = None
    for one in given:
        if one.name == "j":
            threads = _threads(one.text)
        elif one.name != "o":
            job_settings.add(one)
    if "particles" not in job_settings.plain:
        raise OptionError("--in_parts is missing; give the job input particles (a STAR file)")
    asked = job_settings.typed()
    settings = read_settings({}, asked)
    automatic = automatic_kinds({}, asked)
    return ExternalJob(_prefix(given), settings, threads, automatic, job_settings.notes)


def _threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise OptionError(f"--j is '{text}'; give the number of threads, from 1")
    return int(text)


class JobSettings:
    """Parameters as settings: those of `instamap reconstruct`, hyphens or underscores alike."""

    def __init__(self) -> None:
        self.plain: dict[str, object] = {}
        self.notes: list[str] = []
        self._names: dict[str, str | None] = {}
        self._options: dict[str, list[str]] = {}
        self._stages: list[str] = []
        self._specs = _plain_specs()
        self._kinds = _parameters_of_parts()

    def typed(self) -> Typed:
        """What was typed, as the command line has it."""
        return Typed(self.plain, self._names, self._options, self._stages)

    def add(self, one: Parameter) -> None:
        """Takes a parameter. Raises OptionError for one that is unknown or cannot be read."""
        name = INPUTS.get(one.name, one.name)
        negated = name.removeprefix("no_")
        if name in UNUSED_INPUTS:
            what = UNUSED_INPUTS[name]
            self.notes.append(f"{one.label} {one.text} plays no part: no {what} is needed")
        elif name in REFUSED_INPUTS:
            raise OptionError(
                f"{one.label} is '{one.text}', which instamap does not read; give particles"
            )
        elif name in self._specs:
            self._set(name, one, _parsed(self._specs[name], one.label, one.text))
        elif negated in self._specs and self._specs[negated].type is bool:
            self._set(negated, one, not _parsed(self._specs[negated], one.label, one.text))
        elif name == "stage":
            self._stages.append(one.text)
        elif name in self._kinds:
            self._add_part(self._kinds[name], one)
        else:
            raise self._unknown(one)

    def _set(self, name: str, one: Parameter, value: object) -> None:
        if name in self.plain:
            raise OptionError(f"{one.label} is given twice; give it once")
        self.plain[name] = value

    def _add_part(self, target: tuple[str, bool], one: Parameter) -> None:
        kind, is_option = target
        if is_option:
            self._options.setdefault(kind, []).extend(one.text.split())
        elif kind in self._names or not one.text:
            raise OptionError(f"{one.label} is given twice or without a name; name one part, once")
        else:
            self._names[kind] = one.text

    def _unknown(self, one: Parameter) -> OptionError:
        known = [*self._specs, *self._kinds, "stage", *INPUTS, "j"]
        close = difflib.get_close_matches(one.name, known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        return OptionError(
            f"parameter {one.label} is unknown{hint}; choose a setting of instamap reconstruct:"
            f" {', '.join(known)}"
        )


def _plain_specs() -> dict[str, OptionSpec]:
    """The plain settings of a reconstruction by name."""
    taken = {field.name for field in fields_of_command(RECONSTRUCT)}
    return {spec.field: spec for spec in plain_settings() if spec.field in taken}


def _parameters_of_parts() -> dict[str, tuple[str, bool]]:
    """The kind of part that each parameter chooses, or whose options (True) it gives."""
    found = {}
    for field in fields_of_command(RECONSTRUCT):
        facts = field.metadata[SETTING]
        if facts.kind in (None, "stage"):
            continue
        for name in (field.name, facts.flag):
            found[_as_name(name)] = (facts.kind, False)
        found[_as_name(facts.options_flag)] = (facts.kind, True)
    return found


def _as_name(flag: str) -> str:
    return Parameter(flag, ()).name


def _parsed(spec: OptionSpec, label: str, text: str) -> object:
    """The value of a plain setting, where RELION's Yes and No, and nothing at all, are booleans."""
    if spec.type is bool:
        text = YES_OR_NO.get(text.lower(), text)
    if not text:
        raise OptionError(f"{label} has no value; give one")
    return spec.parse(text)


@contextlib.contextmanager
def exit_files(folder: Path) -> Iterator[None]:
    """Tells RELION how the block ended: by itself, by an error, or because somebody ended it."""
    for name in EXIT_FILES:
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    try:
        yield
    except JobAborted:
        _leave(folder, ABORTED)
        raise
    except Exception:
        _leave(folder, FAILURE)
        raise
    except BaseException:  # a signal, or Ctrl-C
        _leave(folder, ABORTED)
        raise
    _write_empty(folder, SUCCESS)


def _leave(folder: Path, name: str) -> None:
    """Writes an exit file; where that fails, what went wrong before is what is to be told."""
    with contextlib.suppress(OutputError, OSError):
        folder.mkdir(parents=True, exist_ok=True)
        _write_empty(folder, name)


def _write_empty(folder: Path, name: str) -> None:
    with replacing(folder / name):
        pass


class JobProgress(Progress):
    """A listener that passes all on to another, and ends the job when RELION asks for it."""

    def __init__(self, folder: Path, listener: Progress) -> None:
        self._sign = folder / ABORT_NOW
        self._listener = listener

    def message(self, line: str) -> None:
        self._check()
        self._listener.message(line)

    def images_read(self, done: int, total: int) -> None:
        self._check()
        self._listener.images_read(done, total)

    def evaluated(self, fit: str, evaluation: Evaluation, steps: int) -> None:
        self._check()
        self._listener.evaluated(fit, evaluation, steps)

    def counted(self, what: str, done: int, total: int) -> None:
        self._check()
        self._listener.counted(what, done, total)

    def kept(self, what: str) -> Path | None:
        return self._listener.kept(what)

    def _check(self) -> None:
        if self._sign.exists():
            raise JobAborted(
                f"the job was aborted by '{self._sign}'; run it again to go on from what is kept"
            )


@dataclass(frozen=True)
class RelionFiles(Artefact):
    """Half maps by the names that RELION's windows look for, and the list of output nodes.

    half_maps: by name. nodes: files and their types. prefix: of their names in RELION's project.
    """

    half_maps: dict[str, Tensor]
    pixel_size: float
    nodes: dict[str, NodeType]
    prefix: str

    def files(self) -> list[str]:
        return [*(HALF_MAPS[name] for name in self.half_maps), NODES]

    def write(self, folder: Path) -> None:
        for name, volume in self.half_maps.items():
            label = LABELS.get(name, name)
            mrc.write(folder / HALF_MAPS[name], volume, self.pixel_size, label=label)
        with replacing(folder / NODES) as sibling:
            star_file.write([self._table()], sibling)

    def _table(self) -> Table:
        """The nodes for RELION 3.1, which reads the number, and for later ones: the label."""
        types = self.nodes.values()
        columns = {
            "rlnPipeLineNodeName": Column.of(self.prefix + name for name in self.nodes),
            "rlnPipeLineNodeType": Column.of(str(one.number) for one in types),
            "rlnPipeLineNodeTypeLabel": Column.of(one.label for one in types),
        }
        return Table("output_nodes", columns)


def run(job: ExternalJob, listener: Progress = SILENT) -> Result:
    """Carries out a job and writes all of it to the job's folder, over an earlier outcome there.

    A job that was ended before goes on from what it has kept. Raises InstamapError.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(job.threads or before)
    try:
        return _run(job, listener)
    finally:
        torch.set_num_threads(before)


def _run(job: ExternalJob, listener: Progress) -> Result:
    settings = job.settings
    usual = run_folder(settings)
    kind = replace(usual, may_write=(*usual.may_write, *HALF_MAPS.values(), NODES))
    aborting = JobProgress(job.folder, listener)
    with output.reserve(job.folder, kind, True, settings.input_files()) as place:
        progress = _going_on(job, aborting)
        try:
            for note in job.notes:
                progress.message(note)
            found = api.run(settings, progress)
            result = replace(found, artefacts=[*found.artefacts, relion_files(found, job)])
            result.write(place)
        except BaseException:
            resume.forget_unless_something_is_kept(job.folder)
            raise
        resume.forget(job.folder)
    return result


def _going_on(job: ExternalJob, listener: Progress) -> Progress:
    """A listener that keeps what is done, after what an earlier try with these settings kept."""
    asked = job.settings.record()
    try:
        return resume.keep_in(job.folder, asked, True, listener)
    except OutputError:  # nothing is kept, or it is of other settings
        return resume.keep_in(job.folder, asked, False, listener)


def relion_files(result: Result, job: ExternalJob) -> RelionFiles:
    """What a result comes with in a job's folder."""
    halves = {name: volume for name, volume in result.maps.items() if name in HALF_MAPS}
    nodes = {HALF_MAPS[name]: HALF_MAP for name in halves}
    particles = _type_of_particles(job.folder)
    for name in result.files():
        if name == "map.mrc":
            nodes[name] = MAP
        elif name == "mask.mrc":
            nodes[name] = MASK
        elif name.endswith(".star"):
            nodes[name] = particles
    return RelionFiles(halves, result.scene.pixel_size, nodes, job.prefix)


def _type_of_particles(folder: Path) -> NodeType:
    """The type of particles in the version of RELION that wrote the job's own STAR file."""
    try:
        text = (folder / "job.star").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return PARTICLES_OF_RELION_5
    version = re.search(r"^# version (\d+)", text, re.MULTILINE)
    is_earlier = version is not None and int(version[1]) < FIRST_OF_RELION_5
    return PARTICLES if is_earlier else PARTICLES_OF_RELION_5
