"""A missing or unused option of a target is an error of one sentence; nothing is guessed."""

import json
from pathlib import Path
from typing import Any

import pytest
from launch.cases import DEMO, OPTIONS, demo

from mmalign.core.errors import UserError
from mmalign.launch.render import TARGETS, render


@pytest.mark.parametrize(
    ("target", "changes", "sentence"),
    [
        ("torchrun", {"host": None}, "several nodes must know where to meet: `host` is missing"),
        ("torchrun", {"gpus_per_node": 0}, "without GPUs `ranks_per_node` must be given"),
        ("torchrun", {"ranks_per_node": 2}, "`ranks_per_node` is for CPUs"),
        ("torchrun", {"image": "x"}, "unknown key `image`"),
        ("torchrun", {"host": "a;b"}, "`host`: `a;b` is not a name"),
        ("torchrun", {"port": 70000}, "`port` is 70000"),
        ("torchrun", {"folder": "-x"}, "`folder`: begins with a dash"),
        ("slurm", {"time": None}, "`time` is missing; add it"),
        ("slurm", {"cpus_per_node": None}, "`cpus_per_node` is missing; add it"),
        ("slurm", {"time": "90"}, "`time`: write it as [days-]hours:minutes:seconds"),
        ("slurm", {"time": "00:05:00"}, "`time`: is too short"),
        ("slurm", {"partition": "a\n#SBATCH --x"}, "`partition`: "),
        ("slurm", {"venv": "a\nb"}, "`venv`: must be one line"),
        ("kubernetes", {"image": None}, "`image` is missing; add it"),
        ("kubernetes", {"volume": None}, "`volume` is missing; add it"),
        ("kubernetes", {"volume": "Up_per"}, "`volume`: `Up_per` is not a Kubernetes name"),
        ("kubernetes", {"folder": "storage"}, "`folder`: must be an absolute path"),
        ("kubernetes", {"partition": "gpu"}, "unknown key `partition`"),
        ("torchrun", {"env": ["1A=b"]}, "`env.0`: `1A=b` is not a variable, as NAME=VALUE"),
        ("slurm", {"env": ["A=b\n#SBATCH --x"]}, "`env.0`: must be one line"),
        ("slurm", {"mount": ["/data"]}, "`mount` belongs to a container; add `image`"),
        ("slurm", {"image": "a.sqsh"}, "`folder` is missing: `image` needs it, mounted"),
        ("slurm", {"image": "a", "folder": "here"}, "must be an absolute path"),
        ("slurm", {"image": "a", "folder": "/a:b"}, "leave out colons and commas"),
        ("slurm", {"image": "a", "folder": "/a", "venv": "env"}, "remove `venv`"),
        ("slurm", {"rdma": "rdma/hca=1"}, "unknown key `rdma`"),
        ("kubernetes", {"rdma": "hca"}, "`rdma`: `hca` is not a resource and its number"),
        ("kubernetes", {"toleration": ["a=b:Never"]}, "`toleration.0`: `a=b:Never` is not a tol"),
        ("kubernetes", {"queue": "Team A"}, "`queue`: `Team A` is not a Kubernetes name"),
        ("skypilot", {"accelerator": None}, "`accelerator`, such as H100, is needed"),
        ("skypilot", {"accelerator": "H100:8"}, "`accelerator`: `H100:8` is not a name"),
        ("skypilot", {"nodes": 0}, "`nodes` is 0"),
    ],
)
def test_a_mistake_names_the_target_and_the_option(
    target: str, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError) as refused:
        demo(target, **changes)
    assert str(refused.value).startswith(f"--on {target}: ")
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value).replace("a\n#SBATCH", "")


def test_an_unknown_target_names_the_known() -> None:
    with pytest.raises(UserError, match=f"known are {', '.join(TARGETS)}"):
        render("deepspeed", DEMO, (), None, OPTIONS["torchrun"])


def test_the_run_is_checked_first() -> None:
    with pytest.raises(UserError, match=r"unknown key `optimizer\.lrr`"):
        render("slurm", DEMO, ["optimizer.lrr=1"], None, {})


def test_a_batch_must_divide_among_the_ranks() -> None:
    with pytest.raises(UserError, match=r"`batch_size` 256 does not divide among 3 x 8 = 24 ranks"):
        demo("slurm", nodes=3)


@pytest.mark.parametrize("out", ["/elsewhere/x", "../x", "/storage/../x"])
@pytest.mark.parametrize("target", ["kubernetes", "skypilot"])
def test_a_run_folder_outside_the_volume_would_be_lost(target: str, out: str) -> None:
    with pytest.raises(UserError, match="lies outside /storage, which outlives the container"):
        demo(target, out=out)


def test_a_run_folder_outside_the_mounts_of_a_container_would_be_lost() -> None:
    container = {"image": "a.sqsh", "folder": "/home/me", "mount": ["/scratch"]}
    assert "--out /scratch/x" in demo("slurm", out="/scratch/x", **container)
    with pytest.raises(UserError, match="lies outside /home/me, /scratch, which outlives the con"):
        demo("slurm", out="/elsewhere/x", **container)


def test_a_run_in_a_store_needs_no_volume_but_a_folder_under_slurm() -> None:
    for target in ("torchrun", "kubernetes", "skypilot"):
        assert "--out s3://bucket/run" in demo(target, out="s3://bucket/run")
    with pytest.raises(UserError, match=r"reads `stopped\.json` there; name a folder"):
        demo("slurm", out="s3://bucket/run")


def test_a_name_that_cannot_name_a_job(tmp_path: Path) -> None:
    for name in ("9lives", "x" * 46, "a b", "a\n#SBATCH --exclusive"):
        with pytest.raises(UserError, match="cannot name a job"):
            render("slurm", DEMO, [f"name={json.dumps(name)}"], Path("runs/x"), OPTIONS["slurm"])
