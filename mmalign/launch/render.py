"""A run on many machines as one script or manifest, for a person to look at and to submit.

    run YAML + overrides -> RunConfig (checked) -+
    flags -> section of the target (checked) ----+-> templates/<target>.j2 -> text

Nothing is submitted and nothing is guessed. Every template ends in the same line (templates/train.sh.j2):
torchrun with `mmalign train RUN_YAML --out OUT OVERRIDES`. What a user wrote goes through `shlex.quote` in
shell parts and through JSON's quoting, which YAML understands, in YAML parts; shell parts stand in YAML as
block scalars, which take one-line values as they are.
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
from mmalign.launch.options import Job, KubernetesJob, SkyPilotJob, SlurmJob, TorchrunJob, one_line
from mmalign.training.run_config import RunConfig

TARGETS: dict[str, type[Job]] = {
    "torchrun": TorchrunJob,
    "slurm": SlurmJob,
    "kubernetes": KubernetesJob,
    "skypilot": SkyPilotJob,
}
_TEMPLATES = {
    "torchrun": "torchrun.sh.j2",
    "slurm": "slurm.sh.j2",
    "kubernetes": "kubernetes.yaml.j2",
    "skypilot": "skypilot.yaml.j2",
}


def render(
    target: str, run: Path, overrides: Sequence[str], out: Path | None, options: dict[str, Any]
) -> str:
    """The script (torchrun, slurm) or manifest (kubernetes, skypilot) that trains `run` on the machines.

    Args:
        target: a key of `TARGETS`.
        run: run YAML, found from the working folder here and on the machines alike, or its name.
        out: run folder on the machines; runs/<name> if not given.
        options: fields of the target's section that were given.

    Raises:
        UserError: the run is not valid, its batch does not divide among the ranks, or an option is missing,
            malformed or foreign to the target.
    """
    if target not in TARGETS:
        raise UserError(f"--on {target}: known are {', '.join(TARGETS)}")
    config = load_config(RunConfig, find_yaml(run, "train"), overrides)
    job = validate(TARGETS[target], options, f"--on {target}")
    _check_batch(config, job, run)
    name = _job_name(config.name, run)
    out = out or Path("runs") / config.name
    if isinstance(job, KubernetesJob | SkyPilotJob):
        _check_on_volume(out, job.folder)
    words = ["mmalign", "train", _line(str(run), "RUN_YAML"), "--out", _line(str(out), "--out")]
    words += [_line(text, "override") for text in overrides]
    template = _environment().get_template(_TEMPLATES[target])
    return template.render(job=job, name=name, out=str(out), train=shlex.join(words))


def _check_batch(config: RunConfig, job: Job, run: Path) -> None:
    ranks = job.nodes * job.ranks
    if config.batch_size % ranks:
        raise UserError(
            f"{run}: `batch_size` {config.batch_size} does not divide among {job.nodes} x {job.ranks} = "
            f"{ranks} ranks; give another batch_size or number of nodes"
        )


def _check_on_volume(out: Path, folder: str) -> None:
    """Refuse a run folder that would vanish with its node."""
    path = PurePosixPath(folder) / out
    if ".." in path.parts or not path.is_relative_to(folder):
        raise UserError(f"--out {out}: lies outside the volume at {folder}; name a folder in it")


def _line(text: str, what: str) -> str:
    try:
        return one_line(text)
    except ValueError as error:
        raise UserError(f"{what} {text!r}: {error}") from None


def _job_name(name: str, run: Path) -> str:
    """The run's name in the letters that every scheduler takes (a DNS label, as Kubernetes names pods)."""
    label = re.sub(r"[_.]", "-", name.lower())
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,43}[a-z0-9])?", label):
        raise UserError(
            f"{run}: `name` {name!r} cannot name a job; give at most 45 letters a-z, digits, - and _, "
            "a letter first"
        )
    return label


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mmalign.launch"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # shell and YAML, not HTML: quoted by the two filters
    )
    environment.filters["sh"] = shlex.quote
    environment.filters["yaml"] = lambda value: json.dumps(value, ensure_ascii=False)
    # Kubernetes puts variables into commands itself, `$(NAME)`; a doubled dollar is a dollar to it.
    environment.filters["dollars"] = lambda text: text.replace("$", "$$")
    return environment
