"""Resuming a run: bit for bit the same as without a stop, or refused in one sentence."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from failure_cases import run_that_differs
from ranks import run_ranks
from run_cases import (
    WORD_EMBEDDINGS,
    assert_equal_weights,
    config,
    losses,
    mmalign,
    newest,
    torchrun,
)
from safetensors.torch import load_file
from shard_sets import make_set

from mmalign.core.config import write_yaml
from mmalign.core.record import read_records
from mmalign.export.source import lineage
from mmalign.models.encoder import load_encoder


def test_stopping_and_resuming_is_bit_for_bit_the_same(folder: Path, stopped: Path) -> None:
    shutil.copytree(stopped, folder / "stopped")  # in the middle of an epoch
    mmalign("train", "run.yaml", "--out", "stopped", folder=folder)
    assert losses(folder / "stopped") == losses(folder / "whole")
    assert_equal_weights(folder / "stopped", folder / "whole")


def test_another_shuffle_is_refused(folder: Path) -> None:
    changed = ("train", "run.yaml", "data.shuffle_shards=2", f"resume_from={folder / 'whole'}")
    refused = mmalign(*changed, "--out", "windows", expect=1, folder=folder)
    assert "shuffled the data in another way (full, here windows of 2 shards)" in refused.stderr


def test_a_run_of_masked_language_modelling_resumes_bit_for_bit(folder: Path, words: Path) -> None:
    mmalign("train", "words.yaml", "--out", "words_stopped", "--stop-after", "4", folder=folder)
    mmalign("train", "words.yaml", "--out", "words_stopped", folder=folder)
    assert losses(folder / "words_stopped") == losses(words)
    assert_equal_weights(folder / "words_stopped", words)


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
    # Two ranks read a group each, in windows, and some samples twice.
    tree["data"] |= {"groups": 2, "shuffle_shards": 1, "language_temperature": 3.0}
    (folder / "two.yaml").write_text(write_yaml(tree))
    mmalign("train", "two.yaml", "--out", "one_rank", folder=folder)
    begin = ("train", "two.yaml", "--out", "two_ranks", "--stop-after", "3", "--preflight")
    printed = torchrun(*begin, folder=folder)
    assert "real_accelerator" not in printed  # DeepSpeed's warning of a machine without a GPU
    # One node of two ranks, and nothing that the run depends on.
    assert re.search(r"^preflight: \S+ \(ranks 0 to 1\), CPU: .* gloo all ", printed, re.M)
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
    done = mmalign("train", "run.yaml", other, "--out", "continued", folder=folder)
    assert "tokenizer: training" not in done.stdout  # it is that of the weights
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
    assert "`image_projection.weight` is 16 x 16 there and 8 x 16 here" in refused.stderr
    assert "Traceback" not in refused.stderr
