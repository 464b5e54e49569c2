"""A run: its records, its checkpoints, and a resume that equals the run without a stop."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from failure_cases import run_that_differs, stop_before_an_evaluation
from ranks import Done, run_command, run_ranks
from safetensors.torch import load_file
from shard_sets import make_pair, make_set, write_set
from tiny import MODEL, tiny_tokenizer

from mmalign.core.commit import exclusive
from mmalign.core.config import write_yaml
from mmalign.core.record import read_records
from mmalign.data.tokenizer import load_tokenizer
from mmalign.export.source import lineage
from mmalign.models.encoder import load_encoder

STEPS = 6
WORD_EMBEDDINGS = "text_tower.trunk.embeddings.word_embeddings.weight"


def config(data: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "steps": STEPS,
        "batch_size": 4,
        "data": {
            "train": [str(data)],
            "captions_per_image": 2,
            "augmentation": {"crop_scale": [0.5, 1.0], "flip": True},
            "workers": 0,
        },
        "tokenizer": {"kind": "trained", "vocabulary": 128},
        "model": MODEL,  # dropout is on: the random state must be restored too
        "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        "engine": {"precision": "fp32"},
        "checkpoint": {"every": 3},
        "log": {"every": 1},
        **changes,
    }


def mmalign(*arguments: str, folder: Path, ranks: int = 1, expect: int = 0) -> Done:
    done = run_command(arguments, folder, ranks)
    assert done.returncode == expect, done.stderr[-3000:]
    return done


def torchrun(*arguments: str, folder: Path) -> None:
    """The command on two ranks under the real torchrun, which takes seconds to start."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*launcher, "--standalone", "-m", "mmalign", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a run file, and a run of all steps without a stop."""
    folder = tmp_path_factory.mktemp("runs")
    make_set(folder / "data", 14)
    (folder / "run.yaml").write_text(write_yaml(config(folder / "data")))
    mmalign("train", "run.yaml", "--out", "whole", folder=folder)
    return folder


@pytest.fixture(scope="module")
def stopped(folder: Path) -> Path:
    """The same run, stopped after half of its steps; to be copied."""
    mmalign("train", "run.yaml", "--out", "halfway", "--stop-after", "3", folder=folder)
    return folder / "halfway"


@pytest.mark.parametrize("limit", [128, 256])
def test_a_run_of_many_shards_needs_few_descriptors(tmp_path: Path, limit: int) -> None:
    write_set(tmp_path / "data", [make_pair(n, ("en",)) for n in range(240)], 1)
    tree = config(tmp_path / "data", steps=60)
    tree["data"] |= {"workers": 2, "shuffle_shards": 1000}
    (tmp_path / "run.yaml").write_text(write_yaml(tree))
    command = f'ulimit -n {limit}; exec "$0" -m mmalign train run.yaml --out run'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 60 of 60" in done.stdout
    assert not (tmp_path / "run" / "unusable.jsonl").exists()


def newest(run: Path) -> Path:
    return run / "checkpoints" / (run / "checkpoints" / "LATEST").read_text().strip()


@pytest.fixture(scope="module")
def words(folder: Path) -> Path:
    """A run of masked language modelling on the same data, without a stop."""
    objective = {"kind": "masked_language_model"}
    (folder / "words.yaml").write_text(write_yaml(config(folder / "data", objective=objective)))
    mmalign("train", "words.yaml", "--out", "words", folder=folder)
    return folder / "words"


def assert_equal_weights(a: Path, b: Path) -> None:
    first, second = (load_file(newest(run) / "model.safetensors") for run in (a, b))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def losses(run: Path) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in read_records(run / "metrics.jsonl")}


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


def test_stopping_and_resuming_is_bit_for_bit_the_same(folder: Path, stopped: Path) -> None:
    shutil.copytree(stopped, folder / "stopped")  # in the middle of an epoch
    mmalign("train", "run.yaml", "--out", "stopped", folder=folder)
    assert losses(folder / "stopped") == losses(folder / "whole")
    assert_equal_weights(folder / "stopped", folder / "whole")


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


def test_another_shuffle_is_refused(folder: Path) -> None:
    changed = ("train", "run.yaml", "data.shuffle_shards=2", f"resume_from={folder / 'whole'}")
    refused = mmalign(*changed, "--out", "windows", expect=1, folder=folder)
    assert "shuffled the data in another way (full, here windows of 2 shards)" in refused.stderr


def test_a_run_of_masked_language_modelling_resumes_bit_for_bit(folder: Path, words: Path) -> None:
    mmalign("train", "words.yaml", "--out", "words_stopped", "--stop-after", "4", folder=folder)
    mmalign("train", "words.yaml", "--out", "words_stopped", folder=folder)
    assert losses(folder / "words_stopped") == losses(words)
    assert_equal_weights(folder / "words_stopped", words)


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


@pytest.mark.parametrize(("run", "start"), [("run.yaml", "words"), ("words.yaml", "whole")])
def test_init_from_takes_the_weights_of_the_other_kind(
    folder: Path, words: Path, run: str, start: str
) -> None:
    changes = [f"init_from={start}", "optimizer.lr=1e-12", "steps=1"]
    mmalign("train", run, *changes, "--out", f"from_{start}", folder=folder)
    first, second = (
        load_file(newest(folder / name) / "model.safetensors") for name in (start, f"from_{start}")
    )
    assert first.keys() == second.keys()
    for name in (WORD_EMBEDDINGS, "image_projection.weight", "text_projection.weight"):
        assert torch.allclose(first[name], second[name], atol=1e-6), name


def test_all_state_of_the_other_kind_is_refused(folder: Path, words: Path) -> None:
    refused = mmalign(
        "train", "run.yaml", "resume_from=words", "--out", "mixed", expect=1, folder=folder
    )
    assert "holds `exp_avg/decoder.bias`, which this model does not have" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_two_ranks_under_torchrun_see_the_same_and_resume_on_another_number(folder: Path) -> None:
    tree = config(folder / "data", engine={"precision": "fp32", "zero_stage": 1})
    # Without dropout, whose draws differ between ranks.
    architecture = tree["model"]["text"]["architecture"]
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    text = {**tree["model"]["text"], "architecture": {**architecture, **still}}
    # And without batch normalisation, whose float32 rounding a batch of four magnifies.
    vit = {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 8}
    image = {"kind": "timm", "name": "vit_tiny_patch16_224", "image_size": 32, "options": vit}
    tree["model"] = {**tree["model"], "text": text, "image": image}
    (folder / "two.yaml").write_text(write_yaml(tree))
    mmalign("train", "two.yaml", "--out", "one_rank", folder=folder)
    torchrun("train", "two.yaml", "--out", "two_ranks", "--stop-after", "3", folder=folder)
    shutil.copytree(folder / "two_ranks", folder / "fewer_ranks")
    mmalign("train", "two.yaml", "--out", "two_ranks", ranks=2, folder=folder)
    one, two = losses(folder / "one_rank"), losses(folder / "two_ranks")
    assert one.keys() == two.keys()
    assert list(two.values()) == pytest.approx(list(one.values()), rel=1e-5)
    # Another number of ranks, and another stage of ZeRO, go on with the same run.
    mmalign("train", "two.yaml", "--out", "fewer_ranks", "--stop-after", "5", folder=folder)
    other_stage = ("engine.zero_stage=2", "--out", "fewer_ranks")
    mmalign("train", "two.yaml", *other_stage, ranks=2, folder=folder)
    assert list(losses(folder / "fewer_ranks").values()) == pytest.approx(
        list(two.values()), rel=1e-6
    )


def test_a_run_never_starts_from_scratch_by_accident(folder: Path) -> None:
    run = folder / "damaged"
    shutil.copytree(folder / "whole", run)
    for checkpoint in run.glob("checkpoints/step-*"):
        (checkpoint / "model.safetensors").write_bytes(b"damaged")
    refused = mmalign("train", "run.yaml", "--out", "damaged", expect=1, folder=folder)
    assert "no checkpoint that can be used" in refused.stderr
    assert refused.stderr.count("step-00000000") >= 2
    assert "Traceback" not in refused.stderr


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


def measured(run: Path, metric: str) -> list[tuple[int, float]]:
    return [(r["step"], r[metric]) for r in read_records(run / "metrics.jsonl") if metric in r]


def test_ranks_that_differ_do_not_train(folder: Path, stopped: Path) -> None:
    out = shutil.copytree(stopped, folder / "differs")
    arguments = (str(folder / "run.yaml"), str(out))
    first, second = run_ranks(2, run_that_differs, folder / "ranks_differ", *arguments)
    assert first == second
    assert "differs: step or weights differ between the ranks" in first
    assert losses(out) == losses(stopped)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(folder: Path) -> None:
    run = folder / "fallback"
    shutil.copytree(folder / "whole", run)
    (newest(run) / "optimizer-rank00000.safetensors").write_bytes(b"damaged")
    done = mmalign("train", "run.yaml", "--out", "fallback", folder=folder)
    assert "from step 3" in done.stdout
    assert losses(run) == losses(folder / "whole")
    assert_equal_weights(run, folder / "whole")


def test_another_configuration_is_refused_in_the_folder_of_a_run(folder: Path) -> None:
    refused = mmalign(
        "train", "run.yaml", "optimizer.lr=0.5", "--out", "whole", expect=1, folder=folder
    )
    assert "holds another run, its `optimizer.lr` differs (0.001, here 0.5)" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_what_may_change_on_a_resume_changes_as_the_messages_say(
    folder: Path, stopped: Path
) -> None:
    run = shutil.copytree(stopped, folder / "changed")
    go_on = ("train", "run.yaml", "--out", "changed")
    # Other records, and what to do about numbers that are not finite, change no weight.
    mmalign(*go_on, "log.every=2", "non_finite.then=roll_back", "--stop-after", "4", folder=folder)
    assert losses(run)[4] == losses(folder / "whole")[4]
    # Another rate does, so it is named, and kept in the lineage.
    refused = mmalign(*go_on, "optimizer.lr=1e-4", expect=1, folder=folder)
    (advice,) = re.findall(r"by `(--change optimizer\.lr)`", refused.stderr)
    changes = ("optimizer.lr=1e-4", "steps=8", *advice.split(), "--change", "steps")
    mmalign(*go_on, *changes, "--stop-after", "5", folder=folder)
    again = ("optimizer.lr=1e-4", "steps=8")
    mmalign(*go_on, *again, folder=folder)  # from here on it is the run's own
    state = json.loads((newest(run) / "state.json").read_text())
    assert state["step"] == 8
    assert state["changes"] == [
        {"step": 4, "field": "steps", "before": 6, "after": 8},
        {"step": 4, "field": "optimizer.lr", "before": 1e-3, "after": 1e-4},
    ]
    assert lineage(run, load_encoder(run).facts)["changes"] == state["changes"]
    assert read_records(run / "metrics.jsonl")[-1]["lr"] < 1e-4
    # What decides which samples come next stays.
    refused = mmalign(*go_on, *again, "seed=1", "--change", "seed", expect=1, folder=folder)
    assert "its `seed` differs (0, here 1); give another --out" in refused.stderr


def test_a_kill_in_the_first_save_does_not_block_the_next_start(folder: Path) -> None:
    (folder / "killed" / "checkpoints" / "step-000000003.tmp-0123").mkdir(parents=True)
    done = mmalign("train", "run.yaml", "--out", "killed", "--stop-after", "1", folder=folder)
    assert "from step 0" in done.stdout
    assert losses(folder / "killed")[1] == losses(folder / "whole")[1]


def test_resume_from_goes_on_with_all_state_or_says_why_not(folder: Path, stopped: Path) -> None:
    other = f"resume_from={stopped}"
    mmalign("train", "run.yaml", other, "--out", "continued", folder=folder)
    whole = losses(folder / "whole")
    assert losses(folder / "continued") == {step: whole[step] for step in (4, 5, 6)}
    assert_equal_weights(folder / "continued", folder / "whole")
    refused = mmalign(
        "train", "run.yaml", other, "batch_size=2", "--out", "shifted", expect=1, folder=folder
    )
    assert "has another `batch_size` (4)" in refused.stderr
    field = "data.language_floor={ja: 0.1}"
    refused = mmalign("train", "run.yaml", other, field, "--out", "x", expect=1, folder=folder)
    assert "has another `data.language_floor` (None)" in refused.stderr


def test_a_batch_without_negatives_is_a_step_without_gradient(folder: Path) -> None:
    pairs = [make_pair(number, ("en",), picture="one") for number in range(4)]
    data = write_set(folder / "one_picture", pairs)
    (folder / "one.yaml").write_text(write_yaml(config(data, steps=1)))
    mmalign("train", "one.yaml", "--out", "one", folder=folder)
    record = read_records(folder / "one" / "metrics.jsonl")[0]
    assert (record["loss"], record["grad_norm"]) == (0, 0)


def test_other_data_under_the_same_name_are_refused(folder: Path) -> None:
    shutil.copytree(folder / "whole", folder / "moved")
    shutil.move(folder / "data", folder / "kept")
    make_set(folder / "data", 13)
    try:
        refused = mmalign("train", "run.yaml", "--out", "moved", expect=1, folder=folder)
    finally:
        shutil.rmtree(folder / "data")
        shutil.move(folder / "kept", folder / "data")
    assert "was trained on other data than `data.train` now holds" in refused.stderr


def test_weights_of_another_model_are_refused(folder: Path) -> None:
    refused = mmalign(
        "train",
        "run.yaml",
        f"init_from={folder / 'whole'}",
        "model.embedding=8",
        "--out",
        "other",
        expect=1,
        folder=folder,
    )
    assert "`image_projection.weight` is 16 x 512 there and 8 x 512 here" in refused.stderr
    assert "Traceback" not in refused.stderr
