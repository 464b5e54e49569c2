"""Both ways to load a model put the same words before the same texts; the command line may change them."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from mmalign.export.sentence_transformers import write_sentence_transformers
from mmalign.export.source import Source
from mmalign.models.encoder import DualModel
from mmalign.models.load import load_model, load_text_encoder, text_encoder_of
from mmalign.models.prompts import Prompts, Side

TEXTS = ["a red ball", "the cat sleeps on a green chair", "mpira"]
QUERY, PASSAGE = "a dog: ", "ein Ball: "


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    """A model of sentence-transformers whose default prompt is that of queries."""
    folder = tmp_path / "model"
    write_sentence_transformers(Source(load_text_encoder(str(run))), folder)
    path = folder / "config_sentence_transformers.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree["prompts"] = {"query": QUERY, "document": PASSAGE}
    path.write_text(json.dumps({**tree, "default_prompt_name": "query"}), encoding="utf-8")
    return folder


def test_both_loaders_apply_the_prompts_of_the_configuration(folder: Path) -> None:
    library = SentenceTransformer(str(folder), device="cpu")
    model, tower = load_model(str(folder)), load_text_encoder(str(folder))
    sides: dict[Side, np.ndarray] = {
        "query": library.encode_query(TEXTS),
        "passage": library.encode_document(TEXTS),
    }
    for side, expected in sides.items():
        for found in (model.encode_texts(TEXTS, side=side), tower.encode(TEXTS, side=side)):
            assert np.abs(found - expected).max() < 1e-5
    assert np.abs(library.encode(TEXTS) - tower.encode(TEXTS)).max() < 1e-5
    assert np.abs(sides["query"] - sides["passage"]).max() > 1e-3
    assert model.prompts == tower.prompts == Prompts(QUERY, PASSAGE)
    assert model.facts["prompts"] == {"query": QUERY, "passage": PASSAGE}
    assert QUERY in model.note and PASSAGE in tower.note


def test_a_default_prompt_alone_is_that_of_all_texts_but_passages(folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree |= {"prompts": {"sts": QUERY}, "default_prompt_name": "sts"}
    path.write_text(json.dumps(tree), encoding="utf-8")
    library = SentenceTransformer(str(folder), device="cpu")
    for model in (load_model(str(folder)), load_text_encoder(str(folder))):
        assert model.prompts == Prompts(QUERY, "")
    tower = load_text_encoder(str(folder))
    assert np.abs(library.encode(TEXTS) - tower.encode(TEXTS)).max() < 1e-5
    passages = library.encode_document(TEXTS)
    assert np.abs(passages - tower.encode(TEXTS, side="passage")).max() < 1e-5


@pytest.mark.parametrize("given", [{"query": "mpira "}, {"query": "", "passage": ""}])
def test_given_prompts_take_the_place_of_the_models_own(
    folder: Path, given: Mapping[Side, str]
) -> None:
    model, tower = load_model(str(folder), given), load_text_encoder(str(folder), prompts=given)
    bare = load_text_encoder(str(folder)).encode([given["query"] + one for one in TEXTS], side=None)
    for found in (
        model.encode_texts(TEXTS),
        tower.encode(TEXTS),
        text_encoder_of(model).encode(TEXTS),
    ):
        assert np.abs(found - bare).max() < 1e-5
    assert tower.prompts.passage == given.get("passage", PASSAGE)
    assert (model.note == "") == (given["query"] == "")


def test_a_saved_tower_keeps_its_prompts(folder: Path, tmp_path: Path) -> None:
    tower = load_text_encoder(str(folder))
    tower.save(tmp_path / "tower")
    write_sentence_transformers(Source(tower), tmp_path / "export")
    library = SentenceTransformer(str(tmp_path / "export"), device="cpu")
    assert np.abs(library.encode(TEXTS) - tower.encode(TEXTS)).max() < 1e-5
    assert np.abs(library.encode(TEXTS, prompt="") - tower.encode(TEXTS, side=None)).max() < 1e-5
    for again in (load_text_encoder(str(tmp_path / "tower")), load_model(str(tmp_path / "tower"))):
        vectors = again.encode_texts(TEXTS) if isinstance(again, DualModel) else again.encode(TEXTS)
        assert np.abs(vectors - tower.encode(TEXTS)).max() < 1e-6
