"""`--ray`: the parts on a cluster give what one process gives, also where a node dies in the middle."""

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from data.shards.test_index import RULES, write_tars
from data.test_building import contents, recipe, write_source
from data.test_parts import choice_of
from ray_cases import slow_part
from run_cases import config as run_config
from run_cases import mmalign as train
from shard_sets import make_set
from typer.testing import CliRunner

from mmalign.cli import app
from mmalign.core.config import load_config, write_yaml
from mmalign.core.errors import UserError
from mmalign.core.ray_tasks import map_parts
from mmalign.data import recipe as runner
from mmalign.data.packing import jobs_of
from mmalign.data.recipe import build
from mmalign.data.select.describe import Options, describe
from mmalign.data.select.rules import SelectConfig
from mmalign.data.select.select import select
from mmalign.data.shards.index import index


def test_a_missing_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    write_source(tmp_path / "in")
    with pytest.raises(UserError, match=r"--ray: needs ray; `pip install 'mmalign\[ray\]'`"):
        runner.build_by_ray(recipe(tmp_path / "in"), tmp_path / "out", False, "local")
    assert list(tmp_path.iterdir()) == [tmp_path / "in"]
    command = ["data", "describe", "x", "--out", str(tmp_path / "t.parquet"), "--part", "0/2"]
    done = CliRunner().invoke(app, [*command, "--ray", "local"])
    assert "--part: Ray makes the parts" in str(done.exception)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes with one core each, on this machine."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    store = {"object_store_memory": 100 * 2**20}
    patient = {"health_check_timeout_ms": 120_000}  # a busy machine answers late, and is not dead
    head = {"num_cpus": 1, "_system_config": patient, **store}
    made = Cluster(initialize_head=True, head_node_args=head)
    made.add_node(num_cpus=1, **store)
    made.wait_for_nodes()
    yield made
    made.shutdown()


@pytest.mark.slow
def test_a_part_whose_node_dies_is_made_elsewhere(tmp_path: Path, cluster: Any) -> None:
    write_source(tmp_path / "in", rows=160)
    config, notes, out = recipe(tmp_path / "in"), tmp_path / "notes", tmp_path / "out"
    build(config, tmp_path / "whole", processes=1)
    (dies,) = [node for node in cluster.list_all_nodes() if not node.head]
    shards = [f"{j.split}-{j.number:05d}.json" for j in jobs_of(config, out, Counter())]
    left: list[int] = []

    def starts() -> list[list[str]]:
        lines = notes.read_text().splitlines() if notes.is_file() else []
        return [line.split() for line in lines]

    def kill() -> None:
        # When the part on this node has finished some of its shards.
        part: list[str] = []
        while len(part) - len(left) < 3:
            time.sleep(0.05)
            numbers = [int(number) for number, node, _ in starts() if node == dies.node_id]
            part = shards[numbers[0] :: 2] if numbers else []
            reports = tmp_path / "out.building" / ".build"
            left[:] = [number for number, name in enumerate(part) if not (reports / name).is_file()]
        cluster.remove_node(dies, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    map_parts(partial(slow_part, notes, config, out), cluster.address)
    killer.join(60)
    assert not killer.is_alive() and len(left) > 5  # it had more to do
    (lost,) = [number for number, node, _ in starts() if node == dies.node_id]
    assert sorted(number for number, _, _ in starts()) == sorted(["0", "1", lost])
    runner.merge(out)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.slow
def test_every_verb_on_a_cluster_does_what_one_process_does(tmp_path: Path, cluster: Any) -> None:
    def run(*arguments: object) -> None:
        done = CliRunner().invoke(app, [*map(str, arguments), "--ray", cluster.address])
        assert done.exception is None, done.exception

    write_source(tmp_path / "in")
    config = recipe(tmp_path / "in")
    (tmp_path / "recipe.yaml").write_text(config.model_dump_json())
    build(config, tmp_path / "one" / "built", processes=1)
    run("data", "build", tmp_path / "recipe.yaml", "--out", tmp_path / "ray" / "built")

    tars = write_tars(tmp_path / "tars", 5)
    index(str(tars), RULES, tmp_path / "one" / "indexed")
    options = ["--captions", RULES.captions, "--language", RULES.language]
    run("data", "index", tars, *options, "--out", tmp_path / "ray" / "indexed")

    data, choice = choice_of(tmp_path)
    describe(data, tmp_path / "one" / "table.parquet", Options())
    run("data", "describe", data, "--out", tmp_path / "ray" / "table.parquet")
    for name, repeats in (("chosen", None), ("distinct", {"texts": True})):
        tree = choice.model_dump(mode="json", by_alias=True, exclude_none=True)
        (tmp_path / f"{name}.yaml").write_text(write_yaml({**tree, "duplicates": repeats}))
        rules = load_config(SelectConfig, tmp_path / f"{name}.yaml")
        select(str(data), tmp_path / "one" / name, rules)
        run("data", "select", data, tmp_path / "ray" / name, "--rules", tmp_path / f"{name}.yaml")

    make_set(tmp_path / "data14", 14)
    (tmp_path / "run.yaml").write_text(write_yaml(run_config(tmp_path / "data14", steps=1)))
    train("train", "run.yaml", "--out", "run", folder=tmp_path)
    score = ("data", "score", str(data), "--model", str(tmp_path / "run"), "--out")
    train(*score, "one/scores.parquet", folder=tmp_path)
    run(*score, tmp_path / "ray" / "scores.parquet")

    made = [contents(tmp_path / name).items() for name in ("one", "ray")]
    one, ray = ({name: data for name, data in of if "/." not in name} for of in made)
    assert one.keys() == ray.keys() and len(one) > 30
    assert {name for name in one if one[name] != ray[name]} == set()
    # What a part says arrives without a traceback.
    with pytest.raises(UserError, match=r"^part \[[01], 2\] has nothing$"):
        map_parts(fail, cluster.address)


def fail(part: tuple[int, int]) -> None:
    raise UserError(f"part {list(part)} has nothing")
