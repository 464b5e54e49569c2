"""The options of each launch target: one section per target, validated before anything is rendered.

    flags of `mmalign launch` -> section of the target -> template

Names that are part of a scheduler's own syntax (#SBATCH lines, Kubernetes names) may contain only the
characters that this syntax allows. Paths may be anything on one line; the templates quote them.
"""

import re
import unicodedata
from typing import Annotated

import pydantic
from pydantic import AfterValidator

from mmalign.core.config import Section

# Unicode categories: control characters, and every character that some program takes for the end of a line.
# In an #SBATCH line or a YAML block scalar such a character would start a line of its own.
_BREAKS = {"Cc", "Cs", "Zl", "Zp"}
_SHORTEST = 10 * 60


def one_line(text: str) -> str:
    """The text, which must be one line of printable characters without a dash in front (else ValueError)."""
    if not text or any(unicodedata.category(letter) in _BREAKS for letter in text):
        raise ValueError("must be one line without control characters, and not empty")
    if text.startswith("-"):
        raise ValueError("begins with a dash, which reads as an option; write ./ in front")
    return text


def _absolute(text: str) -> str:
    # `..` could leave the volume, and with it everything that survives a node.
    if not text.startswith("/") or ".." in text.split("/"):
        raise ValueError("must be an absolute path, such as /storage, without `..`")
    return text


def _matching(pattern: str, what: str) -> AfterValidator:
    def check(text: str) -> str:
        # ASCII: `\w` and `\d` match letters and digits of all scripts otherwise.
        if not re.fullmatch(pattern, text, re.ASCII):
            raise ValueError(f"`{text}` is not {what}")
        return text

    return AfterValidator(check)


def _time_limit(text: str) -> str:
    parts = re.fullmatch(r"(?:(\d+)-)?(\d{1,2}):(\d{2}):(\d{2})", text, re.ASCII)
    if parts is None:
        raise ValueError("write it as [days-]hours:minutes:seconds, such as 1-00:00:00")
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    if ((days * 24 + hours) * 60 + minutes) * 60 + seconds < _SHORTEST:
        raise ValueError("is too short: a run is asked to stop 3 minutes before; give 10 or more")
    return text


Line = Annotated[str, AfterValidator(one_line)]
Folder = Annotated[str, AfterValidator(one_line), AfterValidator(_absolute)]
Word = Annotated[str, _matching(r"[A-Za-z0-9_][\w.@-]*", "a name of letters, digits and _.@-")]
Label = Annotated[
    str, _matching(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", "a Kubernetes name (a-z, 0-9, - and .)")
]
Image = Annotated[str, _matching(r"[A-Za-z0-9][\w./:@-]*", "the name of an image")]
# pyxis separates mounts by commas, and the two sides of a mount by a colon.
Mount = Annotated[
    Folder, _matching(r"[^:,]+", "a folder that can be mounted: leave out colons and commas")
]
Variable = Annotated[
    str, AfterValidator(one_line), _matching(r"[A-Za-z_]\w*=.*", "a variable, as NAME=VALUE")
]
# Of Kubernetes: a taint's key and a resource, with an optional domain in front.
_KEY = r"([a-z0-9][a-z0-9.-]*/)?[A-Za-z0-9][\w.-]*"
Toleration = Annotated[
    str,
    _matching(
        rf"{_KEY}(=[\w.-]+)?(:(NoSchedule|PreferNoSchedule|NoExecute))?",
        "a toleration: write it as KEY, KEY=VALUE or KEY=VALUE:EFFECT, such as nvidia.com/gpu",
    ),
]
Resource = Annotated[
    str,
    _matching(
        r"[a-z0-9][a-z0-9.-]*/[A-Za-z0-9][\w.-]*=[1-9]\d{0,3}",
        "a resource and its number, such as rdma/hca_shared_devices_a=1",
    ),
]


class Job(Section):
    """Options of every target."""

    nodes: int = pydantic.Field(ge=1)
    gpus_per_node: int = pydantic.Field(ge=0)
    """One rank per GPU; 0 trains on CPUs."""
    ranks_per_node: int | None = pydantic.Field(default=None, ge=1)
    """Processes of a node, on CPUs only."""
    interface: Word | None = None
    """Network interface between the nodes, such as `ib0`; by default the libraries choose."""
    env: tuple[Variable, ...] = ()
    """Environment variables of all ranks, such as `NCCL_IB_HCA=mlx5`. They are readable in the file."""
    preflight: bool = False
    """Test all nodes before training (`mmalign train --preflight`)."""

    @pydantic.model_validator(mode="after")
    def _ranks_are_known(self) -> "Job":
        if self.gpus_per_node and self.ranks_per_node:
            raise ValueError("`ranks_per_node` is for CPUs: a GPU has one rank; remove it")
        if not self.gpus_per_node and not self.ranks_per_node:
            raise ValueError("without GPUs `ranks_per_node` must be given")
        return self

    @property
    def ranks(self) -> int:
        # Of a node.
        return self.gpus_per_node or self.ranks_per_node or 1

    @property
    def kept_folders(self) -> tuple[str, ...]:
        """Where files outlive the container of a node; empty: there is no container."""
        return ()


class HostJob(Job):
    """A script on hosts that share the environment here."""

    folder: Line | None = None
    """Working folder there; by default the one where the script is started or `sbatch` is called."""
    venv: Line | None = None
    """Virtual environment there; by default what PATH holds."""


class VolumeJob(Job):
    """A container per node, with a volume that every node may write (ReadWriteMany)."""

    image: Image
    volume: Label
    """Persistent volume claim, or volume of SkyPilot: run files, data and runs."""
    folder: Folder
    """Where the volume is mounted; paths are found from here, and the run folder must lie in it."""

    @property
    def kept_folders(self) -> tuple[str, ...]:
        return (self.folder,)


class TorchrunJob(HostJob):
    """Hosts that can reach each other; the script is started on each of them."""

    host: Word | None = None
    """Name or address of the host where the others meet; it must be one of them."""
    port: int = pydantic.Field(default=29500, ge=1, le=65535)

    @pydantic.model_validator(mode="after")
    def _hosts_can_meet(self) -> "TorchrunJob":
        if self.nodes > 1 and self.host is None:
            raise ValueError("several nodes must know where to meet: `host` is missing; add it")
        return self


class SlurmJob(HostJob):
    """A batch job; Slurm's controller requeues it."""

    time: Annotated[str, AfterValidator(_time_limit)]
    """Time limit of one start, as [days-]hours:minutes:seconds; the run goes on in the next."""
    cpus_per_node: int = pydantic.Field(ge=1)
    memory_gib: int | None = pydantic.Field(default=None, ge=1)
    """Memory of a node; by default the partition's."""
    partition: Word | None = None
    account: Word | None = None
    image: Line | None = None
    """Container image by pyxis, as enroot spells it (`REGISTRY#NAME:TAG`) or a squashfs file (`./x.sqsh`)."""
    mount: tuple[Mount, ...] = ()
    """Folders that the container sees under the same path, besides `folder`."""

    @pydantic.model_validator(mode="after")
    def _container_fits(self) -> "SlurmJob":
        if self.image is None and self.mount:
            raise ValueError("`mount` belongs to a container; add `image`")
        if self.image is not None and self.venv is not None:
            raise ValueError("`image` has an environment of its own; remove `venv`")
        if self.image is not None:
            if self.folder is None:
                raise ValueError("`folder` is missing: `image` needs it, mounted; add it")
            pydantic.TypeAdapter(Mount).validate_python(self.folder)
        return self

    @property
    def kept_folders(self) -> tuple[str, ...]:
        return (str(self.folder), *self.mount) if self.image is not None else ()

    @property
    def mounts(self) -> str:
        """As pyxis spells them."""
        return ",".join(f"{folder}:{folder}" for folder in self.kept_folders)


class KubernetesJob(VolumeJob):
    """A TrainJob of Kubeflow Trainer."""

    cpus_per_node: int = pydantic.Field(ge=1)
    memory_gib: int = pydantic.Field(ge=1)
    namespace: Label | None = None
    queue: Label | None = None
    """Local queue of Kueue."""
    toleration: tuple[Toleration, ...] = ()
    """Taints that the pods tolerate, as KEY[=VALUE][:EFFECT]."""
    rdma: Resource | None = None
    """Resource of RDMA devices per node, as RESOURCE=NUMBER; the container gets IPC_LOCK too."""

    @property
    def resources(self) -> dict[str, int | str]:
        """What a node requests, which is also its limit."""
        wanted: dict[str, int | str] = {
            "cpu": self.cpus_per_node,
            "memory": f"{self.memory_gib}Gi",
        }
        if self.gpus_per_node:
            wanted["nvidia.com/gpu"] = self.gpus_per_node
        if self.rdma is not None:
            name, _, number = self.rdma.partition("=")
            wanted[name] = int(number)
        return wanted

    @property
    def tolerations(self) -> list[dict[str, str]]:
        """As Kubernetes spells them."""
        found = []
        for text in self.toleration:
            taint, _, effect = text.partition(":")
            key, has_value, value = taint.partition("=")
            one = {"key": key, "operator": "Equal" if has_value else "Exists"}
            one |= {"value": value} if has_value else {}
            found.append(one | ({"effect": effect} if effect else {}))
        return found


class SkyPilotJob(VolumeJob):
    """A task of SkyPilot on Kubernetes or RunPod, which have volumes.

    mmalign is installed into its image: Debian with Python 3.11 or newer, such as `python:3.11`.
    """

    accelerator: Word | None = None
    """Kind of GPU, such as `H100`."""
    cpus_per_node: int | None = pydantic.Field(default=None, ge=1)
    """Minimum number of cores per node; by default SkyPilot's."""

    @pydantic.model_validator(mode="after")
    def _accelerator_fits(self) -> "SkyPilotJob":
        if bool(self.gpus_per_node) != bool(self.accelerator):
            raise ValueError("`accelerator`, such as H100, is needed with GPUs and only with them")
        return self
