"""Render a run on many machines as one script or manifest, which the user reads and submits.

    run YAML + overrides -> RunConfig (checked) -+
    flags -> section of the target (checked) ----+-> templates/<target>.j2 -> text

Nothing is submitted. Every template ends in the same line (templates/train.sh.j2): torchrun with `mmalign
train RUN_YAML --out OUT OVERRIDES`.
"""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mmalign.core.config import load_config, validate
from mmalign.core.errors import UserError
from mmalign.core.resources import find_yaml
from mmalign.data.storage.remote import is_remote
from mmalign.launch.options import (
    Job,
    KubernetesJob,
    SkyPilotJob,
    SlurmJob,
    TorchrunJob,
    one_line,
)
from mmalign.training.run_config import RunConfig

# Options and template of each target.
TARGETS: dict[str, tuple[type[Job], str]] = {
    "torchrun": (TorchrunJob, "torchrun.sh.j2"),
    "slurm": (SlurmJob, "slurm.sh.j2"),
    "kubernetes": (KubernetesJob, "kubernetes.yaml.j2"),
    "skypilot": (SkyPilotJob, "skypilot.yaml.j2"),
}


def render(
    target: str,
    run: Path,
    overrides: Sequence[str],
    out: str | Path | None,
    options: dict[str, Any],
) -> str:
    """The script (torchrun, slurm) or manifest (kubernetes, skypilot) that trains `run` on the machines.

    Args:
        run: run YAML, found from the working folder here and on the machines alike, or its name.
        out: run folder on the machines, or URL; runs/<name> if not given.
        options: fields of the target's section that were given.

    Raises:
        UserError: the run is not valid, its batch does not divide among the ranks, or an option is missing,
            malformed or not of the target.
    """
    if target not in TARGETS:
        raise UserError(f"--on {target}: known are {', '.join(TARGETS)}")
    config = load_config(RunConfig, find_yaml(run, "train"), overrides)
    section, template = TARGETS[target]
    job = validate(section, options, f"--on {target}")
    ranks = job.nodes * job.ranks
    if config.batch_size % ranks:
        all_ranks = f"{job.nodes} x {job.ranks} = {ranks} ranks"
        raise UserError(
            f"{run}: `batch_size` {config.batch_size} does not divide among {all_ranks}; change one"
        )
    name = _job_name(config.name, run)
    out = out or Path("runs") / config.name
    in_store = is_remote(str(out))
    if in_store and target == "slurm":
        raise UserError(
            f"--out {out}: the script for slurm reads `stopped.json` there; name a folder on the shared disk"
        )
    if (kept := job.kept_folders) and not in_store:
        # A run folder elsewhere would be lost with the container.
        path = PurePosixPath(kept[0]) / out
        if ".." in path.parts or not any(map(path.is_relative_to, kept)):
            where = f"{', '.join(kept)}, which outlives the container"
            raise UserError(f"--out {out}: lies outside {where}; name one in it")
    words = ["mmalign", "train", _line(str(run), "RUN_YAML"), "--out", _line(str(out), "--out")]
    words += [_line(text, "override") for text in overrides]
    words += ["--preflight"] if job.preflight else []
    values = {"job": job, "name": name, "out": str(out), "train": shlex.join(words)}
    return _environment().get_template(template).render(values)


def _line(text: str, what: str) -> str:
    try:
        return one_line(text)
    except ValueError as error:
        raise UserError(f"{what} {text!r}: {error}") from None


def _job_name(name: str, run: Path) -> str:
    # In the characters that every scheduler accepts (a DNS label).
    label = re.sub(r"[_.]", "-", name.lower())
    # A DNS label has at most 63 characters, and Kubernetes appends to the name of a job for its pods.
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,43}[a-z0-9])?", label):
        rule = "give at most 45 letters a-z, digits, - and _, a letter first"
        raise UserError(f"{run}: `name` {name!r} cannot name a job; {rule}")
    return label


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mmalign.launch"),
        undefined=StrictUndefined,  # a misspelled name in a template fails instead of rendering nothing
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # shell and YAML, not HTML: quoted by the two filters
    )
    # Every value from the user is quoted: in shell parts, and as JSON, which is valid YAML, in YAML parts.
    # Shell parts are block scalars in YAML, which need no further quoting of one-line values.
    environment.filters["sh"] = shlex.quote
    environment.filters["yaml"] = lambda value: json.dumps(value, ensure_ascii=False)
    # Kubernetes puts variables into commands itself, `$(NAME)`; a doubled dollar stays a dollar.
    environment.filters["dollars"] = lambda text: text.replace("$", "$$")
    return environment
