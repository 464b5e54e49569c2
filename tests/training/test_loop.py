"""A run: its records, its checkpoints, its evaluations."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from failure_cases import stop_before_an_evaluation
from ranks import run_command, run_ranks
from run_cases import (
    STEPS,
    WORD_EMBEDDINGS,
    config,
    measured,
    mmalign,
    newest,
)
from safetensors.torch import load_file
from shard_sets import make_pair, write_set
from tiny import tiny_tokenizer

from mmalign.core.commit import exclusive
from mmalign.core.config import write_yaml
from mmalign.core.record import read_records
from mmalign.data.tokenizer import load_tokenizer
from mmalign.models.encoder import load_encoder


@pytest.mark.parametrize("limit", [128, 256])
def test_a_run_of_many_shards_needs_few_descriptors(tmp_path: Path, limit: int) -> None:
    write_set(tmp_path / "data", [make_pair(n, ("en",)) for n in range(240)], 1)
    tree = config(tmp_path / "data", steps=20, batch_size=12)
    tree["data"] |= {"workers": 2, "shuffle_shards": 1000}
    (tmp_path / "run.yaml").write_text(write_yaml(tree))
    done = run_command(["train", "run.yaml", "--out", "run"], tmp_path, most_files=limit)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 20 of 20" in done.stdout
    assert not (tmp_path / "run" / "unusable.jsonl").exists()


def test_a_run_leaves_records_and_checkpoints(folder: Path) -> None:
    run = folder / "whole"
    records = read_records(run / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    for name in (
        "loss",
        "temperature",
        "grad_norm",
        "lr",
        "images_per_second",
        "tokens_per_second",
        "captions_seen",
    ):
        assert all(record[name] >= 0 for record in records), name
    assert all(0 <= record["data_wait"] < 1 for record in records)
    assert [record["images_seen"] for record in records] == [
        4 * step for step in range(1, STEPS + 1)
    ]
    counted = sum(v for r in records for k, v in r.items() if k.startswith("captions/"))
    assert counted == records[-1]["captions_seen"] > STEPS * 4
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        "LATEST",
        "step-000000003",
        "step-000000006",
    ]
    state = json.loads((newest(run) / "state.json").read_text())
    assert state["stream"] == {"seed": 0, "position": STEPS * 4}


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_another_process_holds_is_refused(folder: Path, ranks: int) -> None:
    arguments = ("train", "run.yaml", "--out", f"held{ranks}", "--stop-after", "1")
    with exclusive(folder / f"held{ranks}"):
        refused = mmalign(*arguments, ranks=ranks, expect=1, folder=folder)
    assert f"held{ranks}: in use by process {os.getpid()} on " in refused.stderr
    assert "Traceback" not in refused.stderr
    # What a killed process leaves does not count.
    (folder / f"held{ranks}").mkdir(exist_ok=True)
    (folder / f"held{ranks}" / ".lock").write_text("process 1 on nowhere\n")
    mmalign(*arguments, ranks=ranks, folder=folder)
    assert not (folder / f"held{ranks}" / ".lock").exists()


def test_a_start_that_fails_leaves_no_run(folder: Path) -> None:
    def fails(change: str) -> str:
        done = mmalign("train", "run.yaml", change, "--out", "failed", expect=1, folder=folder)
        assert not (folder / "failed" / "config.yaml").exists()
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "nowhere" in fails("data.train=[nowhere]")
    assert not (folder / "failed").exists()
    assert "max_length: is 65, but the text tower has positions for 64" in fails(
        "model.text.max_length=65"
    )
    dry = mmalign(
        "train", "run.yaml", "--dry-run", "model.text.max_length=65", expect=1, folder=folder
    )
    assert "set it to 64 or less" in dry.stderr
    # The tokenizer that it made for another configuration is not used.
    tiny_tokenizer().save(folder / "other")
    changes = ("tokenizer.kind=pretrained", "tokenizer.name=other", "model.text.max_length=65")
    mmalign("train", "run.yaml", *changes, "--out", "failed", expect=1, folder=folder)
    mmalign("train", "run.yaml", "--out", "failed", "--stop-after", "1", folder=folder)
    found, wanted = (load_tokenizer(folder / name / "tokenizer") for name in ("failed", "whole"))
    assert found.sha256 == wanted.sha256 != load_tokenizer(folder / "other").sha256


def test_unusable_samples_are_counted_exactly_and_limited(folder: Path) -> None:
    pairs = [make_pair(number, ("en", "sw")) for number in range(14)]
    pairs[3] = replace(pairs[3], image=b"\x89PNG" + bytes(50))
    tree = config(write_set(folder / "damaged_data", pairs))
    tree["data"]["max_bad_fraction"] = 1.0
    (folder / "bad.yaml").write_text(write_yaml(tree))
    mmalign("train", "bad.yaml", "--out", "bad", "--stop-after", "5", folder=folder)
    mmalign("train", "bad.yaml", "--out", "bad", folder=folder)
    mmalign("train", "bad.yaml", "--out", "bad_whole", ranks=2, folder=folder)
    for name in ("bad", "bad_whole"):
        state = json.loads((newest(folder / name) / "state.json").read_text())
        ((*where, count),) = state["ledger"]["unusable"]
        assert where == [str(folder / "damaged_data"), "00000.tar", "does not decode"]
        last = read_records(folder / name / "metrics.jsonl")[-1]
        assert last["data/unusable"] == last["data/unusable/does not decode"] == count / 24
        assert last["data/captions/en"] + last["data/captions/sw"] == last["captions_seen"]
    both = [(folder / name / "unusable.jsonl").read_text() for name in ("bad", "bad_whole")]
    assert both[0] == both[1]
    assert json.loads(both[0])["key"] == "k003"
    # The limit may be another one when a run goes on.
    change = "data.max_bad_fraction=0.02"
    arguments = ("train", "bad.yaml", change, "steps=6", "--out", "bad_strict")
    refused = mmalign(*arguments, expect=1, folder=folder)
    assert "samples could not be used, over 2.00%" in refused.stderr
    assert "damaged_data/00000.tar (does not decode)" in refused.stderr
    assert "Traceback" not in refused.stderr
    shutil.copytree(folder / "bad", folder / "bad_raised")
    mmalign("train", "bad.yaml", "data.max_bad_fraction=0.5", "--out", "bad_raised", folder=folder)


def test_a_run_of_masked_language_modelling_looks_like_any_other(folder: Path, words: Path) -> None:
    records = read_records(words / "metrics.jsonl")
    assert all(
        r.keys() >= {"loss", "accuracy", "grad_norm", "lr", "captions_seen"} for r in records
    )
    assert not any("temperature" in record for record in records)
    # Its captions are those of the run with images.
    counts = [{k: v for k, v in r.items() if k.startswith("captions/")} for r in records]
    seen = read_records(folder / "whole" / "metrics.jsonl")
    assert counts == [{k: v for k, v in r.items() if k.startswith("captions/")} for r in seen]
    before = load_encoder(words, untrained=True).model.state_dict()
    also_before = load_encoder(folder / "whole", untrained=True).model.state_dict()
    after = load_encoder(words).model.state_dict()
    for name, tensor in after.items():
        assert before[name].equal(also_before[name]), name
        assert tensor.equal(before[name]) or name.startswith("text_tower."), name
    assert not after[WORD_EMBEDDINGS].equal(before[WORD_EMBEDDINGS])


def test_a_run_measures_itself_and_keeps_its_best_checkpoint(folder: Path) -> None:
    suite = {"name": "seen", "sets": [{"name": "seen", "shards": str(folder / "data")}]}
    (folder / "seen.yaml").write_text(write_yaml(suite))
    metric = "retrieval/seen/mean/text_to_image/recall@1"
    tree = config(
        folder / "data",
        evaluation={"suite": str(folder / "seen.yaml"), "every": 1, "best": metric},
        checkpoint={"every": 6, "keep": 1, "asynchronous": True},
    )
    (folder / "measured.yaml").write_text(write_yaml(tree))
    mmalign("train", "measured.yaml", "--out", "measured", folder=folder)
    records = read_records(folder / "measured" / "metrics.jsonl")
    values = {record["step"]: record[metric] for record in records if metric in record}
    assert len(values) == STEPS
    by_language = [name for name in records[-1] if name.startswith("retrieval/seen/")]
    assert {name.split("/")[2] for name in by_language} > {"mean", "all"}
    assert not any("-" in name.split("/")[2] for name in records[-1] if "alignment/" in name)
    first_best = min(step for step in values if values[step] == max(values.values()))
    best = folder / "measured" / "checkpoints" / "best"
    assert best.resolve().name == f"step-{first_best:09d}"
    assert load_encoder(best).facts["step"] == first_best
    # `best` starts another run: with its weights alone, from step 0.
    changes = [f"init_from={best}", "optimizer.lr=1e-12", "steps=1"]
    mmalign("train", "run.yaml", *changes, "--out", "from_best", folder=folder)
    first, second = (
        load_file(path / "model.safetensors") for path in (best, newest(folder / "from_best"))
    )
    name = "text_projection.weight"
    assert torch.allclose(first[name], second[name], atol=1e-6)
    assert json.loads((newest(folder / "from_best") / "state.json").read_text())["step"] == 1
    refused = mmalign(
        "train",
        "measured.yaml",
        "evaluation.best=retrieval/seen/mean/recall@1",
        "--out",
        "misnamed",
        expect=1,
        folder=folder,
    )
    assert (
        "the suite has no metric `retrieval/seen/mean/recall@1`; similar names: " in refused.stderr
    )


def test_a_step_is_saved_before_it_is_measured(folder: Path) -> None:
    suite = {"name": "seen", "sets": [{"name": "seen", "shards": str(folder / "data")}]}
    (folder / "seen.yaml").write_text(write_yaml(suite))
    best = "retrieval/seen/mean/text_to_image/recall@1"
    evaluation = {"suite": str(folder / "seen.yaml"), "every": 2, "best": best}
    tree = config(folder / "data", evaluation=evaluation, checkpoint={"every": 3, "keep": 1})
    (folder / "saved_first.yaml").write_text(write_yaml(tree))
    arguments = (str(folder / "saved_first.yaml"), str(folder / "saved_first"))
    for name, signal_at, found in (
        ("first", 4, {"stopped": "SIGTERM", "measured": [2]}),
        # The step that was saved at the request is measured by the next start, and only once.
        ("then", 6, {"stopped": "SIGTERM", "measured": [4]}),
        ("last", None, {"stopped": None, "measured": [6]}),
        ("again", None, {"stopped": None, "measured": []}),
    ):
        ranks = folder / f"ranks_{name}"
        assert run_ranks(1, stop_before_an_evaluation, ranks, *arguments, signal_at) == [found]
    mmalign("train", "saved_first.yaml", "--out", "never_stopped", folder=folder)
    one, other = folder / "saved_first", folder / "never_stopped"
    assert measured(one, best) == measured(other, best)
    links = [(run / "checkpoints" / "best").resolve().name for run in (one, other)]
    assert links[0] == links[1]


def test_a_batch_without_negatives_is_a_step_without_gradient(folder: Path) -> None:
    pairs = [make_pair(number, ("en",), picture="one") for number in range(4)]
    data = write_set(folder / "one_picture", pairs)
    (folder / "one.yaml").write_text(write_yaml(config(data, steps=1)))
    mmalign("train", "one.yaml", "--out", "one", folder=folder)
    record = read_records(folder / "one" / "metrics.jsonl")[0]
    assert (record["loss"], record["grad_norm"]) == (0, 0)
