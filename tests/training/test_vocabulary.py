"""Runs with a trimmed and grown vocabulary: they resume exactly, stand alone and are started from."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from frozen_towers import pretrained_model
from run_cases import assert_equal_weights, config, losses, mmalign, newest
from safetensors.torch import load_file
from shard_sets import make_pair, write_set
from tiny import TEXTS, tiny_tokenizer

from mmalign.core.batch import Caption
from mmalign.core.config import write_yaml
from mmalign.data.tokenizer import load_tokenizer
from mmalign.models.encoder import load_encoder

WORDS = "text_tower.trunk.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that changes the vocabulary of a pretrained tower, complete and in two parts."""
    folder = tmp_path_factory.mktemp("vocabulary")
    pairs = [make_pair(number, ("en", "sw")) for number in range(14)]
    captions = (Caption("sw", "mbwa analala nyumbani"), Caption("en", "a red dog sleeps 13"))
    write_set(folder / "data", [replace(pair, captions=captions) for pair in pairs])
    model, (_, text) = pretrained_model(folder / "originals")
    (folder / "words.txt").write_text("\n".join(TEXTS[:2]), encoding="utf-8")
    tokenizer = {"kind": "pretrained", "name": str(text), "grow": 100}
    tokenizer["keep"] = ["captions", str(folder / "words.txt")]
    tree = config(folder / "data", model=model, tokenizer=tokenizer)
    (folder / "run.yaml").write_text(write_yaml(tree))
    mmalign("train", "run.yaml", "--out", "whole", folder=folder)
    mmalign("train", "run.yaml", "--out", "parts", "--stop-after", "3", folder=folder)
    return folder


def test_it_knows_the_kept_texts_and_has_new_pieces(runs: Path) -> None:
    tokenizer = load_tokenizer(runs / "whole/tokenizer")
    before = tiny_tokenizer().inner.get_vocab().keys()
    now = tokenizer.inner.get_vocab().keys()
    assert now - before
    assert before - now
    assert tokenizer.inner.tokenize(TEXTS[1]) == tiny_tokenizer().inner.tokenize(TEXTS[1])
    assert len(load_file(newest(runs / "whole") / "model.safetensors")[WORDS]) == len(now)
    facts = json.loads((runs / "whole/towers.json").read_text())
    kept = len(now & before)
    assert facts["text"]["vocab_size"] == len(now)
    assert facts["origins"]["text"]["vocabulary"] == {
        "kept": kept,
        "new": len(now) - kept,
        "dropped": len(before) - kept,
    }


def test_the_untrained_model_has_the_same_vocabulary(runs: Path) -> None:
    untrained = load_encoder(runs / "whole", untrained=True)
    assert np.isfinite(untrained.encode_texts(TEXTS)).all()
    rows = untrained.model.text_tower.trunk.get_input_embeddings().weight
    assert len(rows) == load_tokenizer(runs / "whole/tokenizer").vocabulary


def test_a_run_starts_from_it_with_a_larger_vocabulary(runs: Path) -> None:
    changes = ["init_from=whole", "optimizer.lr=1e-12", "steps=1", "tokenizer.grow=160"]
    changes += ["tokenizer.name=whole/tokenizer", "tokenizer.keep=[]"]
    mmalign("train", "run.yaml", *changes, "--out", "larger", folder=runs)
    old, new = (load_tokenizer(runs / run / "tokenizer") for run in ("whole", "larger"))
    before, after = (
        load_file(newest(runs / run) / "model.safetensors")[WORDS] for run in ("whole", "larger")
    )
    assert len(after) == new.vocabulary >= old.vocabulary == len(before)
    np.testing.assert_allclose(after[: len(before)], before, atol=1e-6)
    parent = json.loads((newest(runs / "larger") / "state.json").read_text())["parent"]
    assert parent["vocabulary"]["kept"] == len(before)


def test_it_resumes_exactly_without_the_pretrained_folder(runs: Path) -> None:
    (runs / "originals").rename(runs / "gone")
    mmalign("train", "run.yaml", "--out", "parts", folder=runs)
    (runs / "gone").rename(runs / "originals")
    assert losses(runs / "parts") == losses(runs / "whole")
    assert_equal_weights(runs / "parts", runs / "whole")


def test_words_that_cannot_be_read_are_one_sentence(runs: Path) -> None:
    refused = mmalign(
        "train", "run.yaml", "tokenizer.keep=[nothing.txt]", "--out", "no", expect=1, folder=runs
    )
    assert "tokenizer.keep: nothing.txt: cannot be read as text in UTF-8" in refused.stderr
    assert "Traceback" not in refused.stderr
