"""The probe of a tower's layers, beside states that are pooled by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation.alignment_cases import make_embedded, probed, random_spaces, tiny_tower, unit
from ranks import run_ranks
from tiny import TEXTS, tiny_run

from mmalign.evaluation import layers
from mmalign.evaluation.alignment import measure_alignment
from mmalign.evaluation.embed import EmbeddedSet
from mmalign.evaluation.layers import LayersConfig, probe_layers
from mmalign.models.pooling import Pooling
from mmalign.results.protocol import sentence
from mmalign.results.results import Results

POOLINGS: tuple[Pooling, ...] = ("mean", "last", "cls")


def pooled_by_hand(text: str, layer: int, pooling: str) -> np.ndarray:
    """The states of one text, alone and without padding; the first and the last token are special."""
    tower = tiny_tower()
    tokens = tower.tokenize([text])
    with torch.no_grad():
        output = tower.trunk(input_ids=tokens.token_NL, output_hidden_states=True)
    state_LF = output.hidden_states[layer][0].numpy()
    inner = state_LF[1:-1]
    return {"mean": inner.mean(0), "last": inner[-1], "cls": state_LF[0]}[pooling]


def test_special_tokens_and_padding_are_left_out() -> None:
    states = layers._encode(tiny_tower(), list(TEXTS), POOLINGS)
    settings = {(layer, pooling) for layer in ("0", "1") for pooling in POOLINGS}
    assert states.keys() == settings | {("feature", "mean")}
    for layer, pooling in settings:
        by_hand = [pooled_by_hand(text, int(layer), pooling) for text in TEXTS]
        np.testing.assert_allclose(states[layer, pooling], unit(np.stack(by_hand)), atol=1e-5)
    np.testing.assert_allclose(states["feature", "mean"], tiny_tower().encode(TEXTS), atol=1e-5)
    without_tokens = layers._encode(tiny_tower(), ["", "a dog"], ("mean", "last")).values()
    assert all(np.linalg.norm(rows, axis=1) == pytest.approx(1) for rows in without_tokens)


def test_the_tower_keeps_its_mode_and_has_no_dropout() -> None:
    tower = tiny_tower().train()
    first, second = (layers._encode(tower, list(TEXTS), ("mean",)) for _ in range(2))
    assert tower.training
    assert all(np.array_equal(first[name], second[name]) for name in first)


def probed_on(embedded: EmbeddedSet, poolings: tuple[Pooling, ...] = ("mean",)) -> Results:
    results = Results(suite="x", model={})
    probe_layers(tiny_tower(), embedded, results, LayersConfig(sets=("s",), poolings=poolings))
    return results


def test_the_numbers_are_those_of_alignment_on_the_same_vectors() -> None:
    embedded, expected = make_embedded(random_spaces(3, pictures=20)), Results("x", {})
    results, vectors = probed_on(embedded), tiny_tower().encode(embedded.texts)
    measure_alignment(replace(embedded, text_MD=vectors), expected)
    name = "layers/s/feature/mean/bitext@1"
    other = "alignment/s/mean/bitext@1"
    assert results.metrics[name] == pytest.approx(expected.metrics[other])
    assert results.counts[name] == expected.counts[other]
    assert results.chance[name] == pytest.approx(expected.chance[other])
    assert results.metrics.keys() == {f"layers/s/{i}/mean/bitext@1" for i in (0, 1, "feature")}
    assert "17 pictures" in sentence(results.protocol["layers/s"])


def test_equal_texts_meet_in_every_layer() -> None:
    embedded = make_embedded(random_spaces(2, pictures=6))
    embedded = replace(embedded, texts=[*TEXTS, *TEXTS[:3]])
    for name, value in probed_on(embedded, POOLINGS).metrics.items():
        # Layer 0 of the last token or the first is the same in many texts.
        assert value == 1.0 or name.split("/")[1:3] == ["s", "0"], name


def test_a_sample_of_shared_images_is_drawn_by_its_seed() -> None:
    embedded = make_embedded(random_spaces(2, pictures=30))  # 27 have both languages
    whole = layers._sample(embedded, 100, 0)
    assert sorted(set(whole.picture_M.tolist())) == list(range(27)) and len(whole.texts) == 54
    some, again, other = (layers._sample(embedded, 5, seed) for seed in (0, 0, 1))
    assert len(some.texts) == 10 and some.languages == ["l0", "l1"]
    assert some.texts == again.texts != other.texts
    assert [text.split()[0] for text in some.texts] == some.language_M.tolist()


def test_one_language_is_not_probed() -> None:
    assert probed_on(make_embedded(random_spaces(1))).metrics == {}


def test_two_ranks_share_the_batches(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    run = tiny_run(tmp_path / "run")
    expected = probed(run)
    assert 0 < expected["layers/s/feature/mean/bitext@1"] < 1
    assert run_ranks(2, probed, tmp_path / "store", run) == [pytest.approx(expected)] * 2
