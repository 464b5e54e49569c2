"""Rendered scripts run under stand-ins for torchrun and Slurm: what arrives is what the user wrote."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from launch.cases import DEMO, OPTIONS, demo
from launch.machines import Machine
from ruamel.yaml import YAML

from mmalign.core.errors import UserError
from mmalign.launch.render import TARGETS, render

HOSTILE = """a b'c"d;$(touch x)`touch y`&|<>*?$HOME $$ \\ {{ 1 }} #%é"""
OVERRIDES = ["optimizer.lr=1e-3", f"init_from='{HOSTILE.replace(chr(39), chr(39) * 2)}'"]
SIGNALS = ["--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1", "--shutdown-timeout", "150"]


def hostile(target: str, folder: Path) -> tuple[str, list[str]]:
    """A rendered run with hostile names, and the words in which torchrun must end."""
    run = folder / f"{HOSTILE}.yaml".replace("/", "_")
    run.write_text(DEMO.read_text())
    text = render(target, run, OVERRIDES, Path("runs") / HOSTILE, OPTIONS[target])
    words = ["mmalign", "train", str(run), "--out", f"runs/{HOSTILE}", *OVERRIDES]
    return text, [*SIGNALS, "--no-python", *words]


def tree_of(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def script_of(target: str, text: str) -> str:
    """The shell script of a target, as the scheduler hands it to bash."""
    if target == "skypilot":
        return str(tree_of(text)["run"])
    if target == "kubernetes":
        shell, flag, script = tree_of(text)["spec"]["trainer"]["command"]
        assert (shell, flag) == ("bash", "-c")
        return as_kubernetes_expands(script)
    return text


def as_kubernetes_expands(text: str) -> str:
    """What Kubernetes makes of a command: `$$` is a dollar, `$(NAME)` a variable (here always one)."""
    return re.sub(r"\$\$|\$\(([^)]*)\)", lambda m: "$" if m[0] == "$$" else "EXPANDED", text)


def rendezvous_of(call: list[Any]) -> list[str]:
    """The meeting point, its settings and the host's own address in a call of torchrun."""
    return [
        call[call.index(f"--{name}") + 1] for name in ("rdzv-endpoint", "rdzv-conf", "local-addr")
    ]


@pytest.mark.parametrize("target", TARGETS)
def test_hostile_names_arrive_as_they_are_and_run_nothing(target: str, tmp_path: Path) -> None:
    text, last_words = hostile(target, tmp_path)
    machine = Machine(tmp_path / "machine")
    script = script_of(target, text).replace("cd /storage\n", "")
    before = sorted(p.name for p in machine.folder.iterdir())
    (machine.folder / ".venv" / "bin").mkdir(parents=True)
    (machine.folder / ".venv" / "bin" / "activate").touch()
    environment = {
        "SLURM_JOB_ID": "12345",
        "PET_MASTER_ADDR": "x-node-0-0.x",
        "PET_MASTER_PORT": "29500",
        "PET_NODE_RANK": "0",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NODE_RANK": "1",
        "HOME": "nowhere",
    }
    assert machine.run(script, **environment) == 0
    assert all(call[-len(last_words) :] == last_words for call in machine.calls)
    assert len(machine.calls) == (2 if target == "slurm" else 1)
    after = {p.name for p in machine.folder.iterdir()} - {"calls.jsonl", ".venv"}
    assert sorted(after) == before


@pytest.mark.parametrize("target", TARGETS)
def test_a_line_break_is_refused(target: str, tmp_path: Path) -> None:
    for text in ("runs/a\nb", "runs/a\u2028b", "runs/a\x85b", "runs/a\x00b"):
        with pytest.raises(UserError, match=r"^--out '.*': must be one line"):
            demo(target, out=text)
    with pytest.raises(UserError, match=r"^override .*must be one line"):
        render(target, DEMO, ["init_from='a\n\n  b'"], None, OPTIONS[target])


def test_torchrun_on_one_host_needs_no_meeting_point(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "m")
    text = demo("torchrun", nodes=1, gpus_per_node=0, ranks_per_node=2, host=None, interface="lo")
    assert machine.run(text) == 0
    _, interface, *words = machine.calls[0]
    assert interface == "lo"
    assert words[:5] == ["--nproc-per-node", "2", "--standalone", "--max-restarts", "3"]
    assert words[-4:] == ["train", str(DEMO), "--out", "runs/emoji_scenes"]


@pytest.mark.parametrize(
    ("host", "is_host", "address"),
    [("first", "true", "first"), ("loop", "true", "loop"), ("other", "false", "10.0.0.9")],
)
def test_the_named_host_serves_the_meeting_point(
    host: str, is_host: str, address: str, tmp_path: Path
) -> None:
    machine = Machine(tmp_path / "m")
    assert machine.run(demo("torchrun", host=host, port=1234, folder=".")) == 0
    assert machine.calls[0][2:6] == ["--nproc-per-node", "8", "--nnodes", "2"]
    assert rendezvous_of(machine.calls[0]) == [
        f"{host}:1234",
        f"is_host={is_host},join_timeout=1800",
        address,
    ]


def test_slurm_directives() -> None:
    text = demo("slurm", partition="gpu", account="proj_1", memory_gib=900, venv="env")
    directives = re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", text, re.MULTILINE)
    assert dict(directives) == {
        "job-name": "emoji-scenes",
        "nodes": "2",
        "ntasks-per-node": "1",
        "cpus-per-task": "64",
        "gpus-per-node": "8",
        "mem": "900G",
        "time": "1-00:00:00",
        "partition": "gpu",
        "account": "proj_1",
        "signal": "USR1@180",  # without B: the ranks get it, not this shell
        "requeue": "",
        "open-mode": "append",
    }
    # sbatch stops reading directives at the first command.
    assert text.rindex("#SBATCH") < text.index("\nset -u")


def test_slurm_without_gpus_asks_for_none() -> None:
    text = demo("slurm", gpus_per_node=0, ranks_per_node=1)
    assert "gpus" not in text and "--nproc-per-node 1 " in text


def test_slurm_starts_one_launcher_a_node_and_the_first_serves(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "m")
    assert machine.run(demo("slurm"), SLURM_JOB_ID="1012345") == 0
    assert [rendezvous_of(call) for call in machine.calls] == [
        ["node1:22345", "is_host=true,join_timeout=1800", "node1"],
        ["node1:22345", "is_host=false,join_timeout=1800", "10.0.0.9"],
    ]


@pytest.mark.parametrize(
    ("signal", "code", "requeued", "ends_with"),
    [
        ("SIGUSR1", "1", True, 75),  # the time limit is near
        ("SIGTERM", "1", False, 75),  # scancel
        ("", "1", False, 1),  # an error
        ("", "0", False, 0),  # done
    ],
)
def test_slurm_requeues_only_what_was_stopped_by_the_limit(
    signal: str, code: str, requeued: bool, ends_with: int, tmp_path: Path
) -> None:
    machine = Machine(tmp_path / "m")
    left = machine.folder / "runs" / "emoji_scenes" / "stopped.json"
    left.parent.mkdir(parents=True)
    left.write_text('{"step": 3, "signal": "SIGUSR1"}')  # of an earlier start: must not count
    ended = machine.run(demo("slurm"), SLURM_JOB_ID="7", STOPPED=signal, CODE=code)
    assert ended == ends_with
    assert (["scontrol", "requeue", "7"] in machine.calls) is requeued


@pytest.mark.parametrize("target", TARGETS)
def test_variables_and_the_preflight_reach_the_ranks(target: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "m")
    variables = [f"HOSTILE={HOSTILE}", "NCCL_IB_HCA==mlx5_0:1,mlx5_3:1", "EMPTY="]
    options = OPTIONS[target] | {"env": variables, "preflight": True}
    text = render(target, DEMO, ["steps=7"], None, options)
    script = script_of(target, text).replace("cd /storage\n", "").replace("source", ":")
    environment = {
        "SLURM_JOB_ID": "1",
        "PET_MASTER_ADDR": "a",
        "PET_MASTER_PORT": "1",
        "PET_NODE_RANK": "0",
        "SKYPILOT_NODE_IPS": "a",
        "SKYPILOT_NODE_RANK": "0",
    }
    assert machine.run(script, **environment) == 0
    for variable in variables:
        name, _, value = variable.partition("=")
        assert machine.environment[name] == value
    assert machine.calls[0][-2:] == ["steps=7", "--preflight"]


def test_slurm_starts_the_launchers_in_a_container_only_if_asked(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "m")
    assert machine.run(demo("slurm"), SLURM_JOB_ID="1") == 0
    assert machine.srun_options == ["--cpus-per-task=64"]
    folder, odd = str(machine.folder), "/data/it's $HOME"
    text = demo("slurm", image="registry.example#me/mmalign:gpu", folder=folder, mount=[odd])
    assert machine.run(text, SLURM_JOB_ID="1") == 0
    assert machine.srun_options == [
        "--cpus-per-task=64",
        "--container-image=registry.example#me/mmalign:gpu",
        f"--container-workdir={folder}",
        f"--container-mounts={folder}:{folder},{odd}:{odd}",
    ]


def test_the_shell_of_a_slurm_job_outlives_a_signal(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "m")
    (machine.folder / "tools" / "torchrun").write_text("#!/bin/bash\nkill -USR1 $MAIN\nexit 1\n")
    script = demo("slurm").replace("set -u\n", "set -u\nexport MAIN=$$\n")
    assert machine.run(script, SLURM_JOB_ID="7") == 1


# The fields that are used, as Kubeflow Trainer 2.2 documents them (TrainJobSpec, PodSpecPatch).
TRAINER_FIELDS = {"image", "numNodes", "resourcesPerNode", "command"}
POD_FIELDS = {"terminationGracePeriodSeconds", "securityContext", "volumes", "containers"}


def test_a_train_job_has_the_fields_of_kubeflow_trainer() -> None:
    tree = tree_of(demo("kubernetes", namespace="vision"))
    assert (tree["apiVersion"], tree["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert tree["metadata"] == {"name": "emoji-scenes", "namespace": "vision"}
    spec = tree["spec"]
    assert spec["runtimeRef"] == {"name": "torch-distributed"}
    assert set(spec["trainer"]) == TRAINER_FIELDS
    assert (spec["trainer"]["numNodes"], spec["trainer"]["image"]) == (
        2,
        "registry.example/mmalign:gpu",
    )
    assert spec["trainer"]["resourcesPerNode"]["limits"] == {
        "cpu": 64,
        "memory": "512Gi",
        "nvidia.com/gpu": 8,
    }
    (patch,) = spec["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = pod_of(tree)
    assert job["name"] == "node" and set(pod) == POD_FIELDS
    claim, _ = pod["volumes"]
    assert claim["persistentVolumeClaim"] == {"claimName": "storage"}
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"storage": "/storage", "shared-memory": "/dev/shm"}
    assert pod["terminationGracePeriodSeconds"] > int(SIGNALS[-1])


def pod_of(tree: Any) -> Any:
    (job,) = tree["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"][
        "replicatedJobs"
    ]
    return job["template"]["spec"]["template"]["spec"]


def test_a_train_job_asks_for_rdma_a_queue_and_tolerations_only_if_told() -> None:
    plain = tree_of(demo("kubernetes"))
    assert "labels" not in plain["metadata"]
    assert set(pod_of(plain)["containers"][0]) == {"name", "volumeMounts"}
    tree = tree_of(
        demo(
            "kubernetes",
            queue="team-a",
            rdma="rdma/hca_shared_devices_a=2",
            toleration=["nvidia.com/gpu", "pool=training:NoSchedule", "spot:NoExecute", "a=1"],
        )
    )
    assert tree["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team-a"}
    for kind in ("requests", "limits"):
        resources = tree["spec"]["trainer"]["resourcesPerNode"][kind]
        assert resources["rdma/hca_shared_devices_a"] == 2
    pod = pod_of(tree)
    assert set(pod) == POD_FIELDS | {"tolerations"}
    assert pod["containers"][0]["securityContext"] == {"capabilities": {"add": ["IPC_LOCK"]}}
    assert pod["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists"},
        {"key": "pool", "operator": "Equal", "value": "training", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Exists", "effect": "NoExecute"},
        {"key": "a", "operator": "Equal", "value": "1"},
    ]


def test_a_task_of_skypilot_has_its_fields() -> None:
    tree = tree_of(demo("skypilot", cpus_per_node=32))
    assert set(tree) == {
        *("name", "num_nodes", "workdir", "resources", "volumes", "setup", "run"),
    }
    assert (tree["name"], tree["num_nodes"]) == ("emoji-scenes", 2)
    assert tree["volumes"] == {"/storage": "storage"}
    assert tree["resources"] == {
        "image_id": "docker:python:3.11",
        "accelerators": "H100:8",
        "cpus": "32+",
        "job_recovery": {"max_restarts_on_errors": 3},
    }


def test_yaml_values_are_quoted() -> None:
    odd = "/mnt/a: b # c\"d'e"
    assert tree_of(demo("skypilot", folder=odd))["volumes"] == {odd: "storage"}
    pods = demo("kubernetes", folder=odd, volume="1e3")
    assert f"mountPath: {odd}" not in pods
    text = script_of("kubernetes", pods)
    assert f"cd {shlex.quote(odd)}\n" in text
