"""From lineage.json back to every shard: each hash on the way is that of the file it names."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_cases import mmalign
from shard_sets import make_set
from tiny import MODEL, tiny_run

from mmalign import __version__
from mmalign.core.commit import committed_folder, sha256_of, write_json
from mmalign.core.config import read_yaml, write_yaml
from mmalign.data.shards.manifest import MANIFEST
from mmalign.export import source as module
from mmalign.export.sentence_transformers import write_sentence_transformers
from mmalign.export.source import read_source, without_folders
from mmalign.models.encoder import load_encoder
from mmalign.models.load import load_text_encoder
from mmalign.results.results import Results

RUN = {
    "name": "tiny",
    "steps": 1,
    "batch_size": 4,
    "tokenizer": {"kind": "trained", "vocabulary": 128},
    "model": MODEL,
    "optimizer": {"lr": 1e-3, "warmup_steps": 0},
    "engine": {"precision": "fp32"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a run on them, and a run from its weights."""
    home = tmp_path_factory.mktemp("home")
    data = {"train": [str(make_set(home / "data", 10))], "workers": 0}
    (home / "run.yaml").write_text(write_yaml({**RUN, "data": data}))
    train = ["train", "run.yaml", "--out"]
    mmalign(*train, "first", folder=home)
    mmalign(*train, "second", f"init_from={home / 'first'}", folder=home)
    return home


def check_data(run: Path, lineage: dict[str, Any], home: Path) -> None:
    (data,) = lineage["data"]
    (folder,) = read_yaml(run / "config.yaml")["data"]["train"]
    assert Path(folder) == home / "data" and data["found"]
    assert data["manifest_sha256"] == sha256_of(home / "data" / MANIFEST)
    assert sorted(shard["file"] for shard in data["shards"]) == sorted(
        path.name for path in (home / "data").glob("*.tar")
    )
    for shard in data["shards"]:
        assert shard["sha256"] == sha256_of(home / "data" / shard["file"])
    assert data["samples"] == sum(shard["samples"] for shard in data["shards"]) == 10
    assert data["captions"] == sum(data["languages"].values())
    assert data["licenses"] == {"CC0-1.0": 10}


def test_a_run_leads_back_to_its_shards(home: Path) -> None:
    run = home / "first"
    lineage = read_source(run).lineage
    check_data(run, lineage, home)
    step = run / "checkpoints" / "step-000000001"
    assert lineage["model"] == {
        "kind": "run",
        "sha256": load_encoder(run).facts["sha256"],
        "step": 1,
    }
    manifest = json.loads((step / "MANIFEST.json").read_text())
    assert lineage["config_sha256"] == manifest["config_sha256"]
    assert lineage["code"] == manifest["code"] and lineage["code"]["version"] == __version__
    assert lineage["run"]["steps"] == 1 and lineage["run"]["world_size"] == 1
    assert lineage["run"]["captions_seen"] > 0
    assert lineage["tokenizer"] == {
        "kind": "trained",
        "sha256": sha256_of(run / "tokenizer" / "tokenizer.json"),
    }
    assert "parent" not in lineage and "base_models" not in lineage


def test_a_run_that_went_on_names_its_parent_and_that_one_its_shards(home: Path) -> None:
    run = home / "second"
    lineage = read_source(run).lineage
    parent = lineage["parent"]
    assert (parent["how"], parent["found"]) == ("init_from", True)
    first = load_encoder(home / "first").facts["sha256"]
    assert parent["model"]["sha256"] == first != lineage["model"]["sha256"]
    check_data(home / "first", parent, home)
    assert str(home) not in json.dumps(lineage)
    assert lineage == read_source(run).lineage
    assert lineage["config"]["data"]["train"] == [".../data"]
    # A run that resumes records its parent in the same way.
    state = json.loads((run / "checkpoints/step-000000001/state.json").read_text())
    resumed = module.parent_of_run({}, {**state["parent"], "how": "resume_from"})
    assert resumed == {**parent, "how": "resume_from"}


def test_other_data_or_another_parent_in_the_same_place_are_not_mistaken(home: Path) -> None:
    for path in (
        home / "data" / MANIFEST,
        home / "first/checkpoints/step-000000001/MANIFEST.json",
    ):
        good = path.read_bytes()
        path.write_bytes(good + b" ")
        try:
            lineage = read_source(home / "second").lineage
        finally:
            path.write_bytes(good)
        part = lineage["data"][0] if path.name == MANIFEST else lineage["parent"]
        assert part["found"] is False and "shards" not in part and "model" not in part
        assert len(part["manifest_sha256"]) == 64


def test_very_many_shards_are_a_number_and_a_hash_and_results_are_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = home / "first"
    shards = read_source(run).lineage["data"][0]["shards"]
    monkeypatch.setattr(module, "MOST_SHARDS", 2)
    results = Results(suite="s", model=load_encoder(run).facts, data={"flickr": "a" * 64})
    results.add("retrieval/flickr/en/text_to_image/recall@1", 0.5, count=4)
    path = run / "eval" / "s" / "results.json"
    results.write(path)
    lineage, sha256 = read_source(run).lineage, sha256_of(path)
    path.unlink()
    assert lineage["data"][0]["shards"] == {"count": 3, "sha256": module.sha256_of_tree(shards)}
    facts = {"file": "eval/s/results.json", "sha256": sha256, "suite": "s"}
    assert lineage["evaluation"] == [{**facts, "data": {"flickr": "a" * 64}}]


def test_a_fine_tuning_in_a_run_that_was_moved_still_finds_it(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "before")
    tower = load_text_encoder(str(run))
    model = {"path": "runs/before", "sha256": tower.facts["sha256"], "step": 1}
    (run / "finetune" / "toy").mkdir(parents=True)
    data = [{"folder": "data/toy", "files": {"train.en.tsv": "b" * 64}}]
    facts = {"task": "toy", "model": model, "data": data}
    with committed_folder(run / "finetune" / "toy" / "tower", facts) as place:
        tower.save(place)
    run.rename(tmp_path / "after")
    lineage = read_source(tmp_path / "after" / "finetune" / "toy").lineage
    assert lineage["data"] == data and lineage["task"] == "toy"
    parent = lineage["parent"]
    assert parent["found"] and parent["name"] == "runs/before"
    assert parent["model"]["kind"] == "run"


def test_a_fine_tuning_of_an_export_takes_over_its_lineage(tmp_path: Path) -> None:
    source = read_source(tiny_run(tmp_path / "run"))
    (tmp_path / "export").mkdir()
    write_sentence_transformers(source, tmp_path / "export")
    write_json(tmp_path / "export" / "lineage.json", source.lineage)
    tower = load_text_encoder(str(tmp_path / "export"))
    with committed_folder(tmp_path / "tower", {"task": "toy", "model": tower.facts}) as place:
        tower.save(place)
    parent = read_source(tmp_path / "tower").lineage["parent"]
    assert parent["found"] and parent["model"] == source.lineage["model"]
    assert parent["config"] == source.lineage["config"]


def test_a_parent_that_is_not_here_is_named(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run")
    tower = load_text_encoder(str(run))
    model = {"path": "somebody/some-model", "sha256": "d" * 64, "step": 0}
    facts = {"task": "toy", "model": model, "base_model": "somebody/some-model"}
    with committed_folder(tmp_path / "tower", facts) as place:
        tower.save(place)
    lineage = read_source(tmp_path / "tower").lineage
    assert lineage["base_models"] == {"text": "somebody/some-model"}
    absent = {"found": False, "model": {"sha256": "d" * 64}}
    assert lineage["parent"] == {"name": "somebody/some-model", **absent}
    # Other weights in the same folder are not mistaken for it.
    assert module.parent_of(str(run), "d" * 64, 1) == {"name": ".../run", **absent}


@pytest.mark.parametrize(
    ("value", "published"),
    [
        ("/home/me/data/set", ".../set"),
        ("/home/me/data/set/", ".../set"),
        ("~/data", ".../data"),
        ("../other/run", ".../run"),
        (r"C:\Users\me\run", ".../run"),
        ("local-dir:/home/me/model", "local-dir:.../model"),
        ("file:///home/me/model", "file:.../model"),
        ("data/set", "data/set"),
        ("xlm-roberta-base", "xlm-roberta-base"),
        ("s3://bucket/set", "s3://bucket/set"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        (3, 3),
    ],
)
def test_of_a_path_on_a_disk_the_last_name_stays(value: Any, published: Any) -> None:
    assert without_folders({"a": [value]}) == {"a": [published]}
