"""Vectors of words at every layer, of encoders and of decoders; and what a start token does to them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lexical_cases import (
    ENGLISH,
    LAYERS,
    WIDTH,
    write_decoder,
    write_decoder_with_long_start,
    write_encoder,
)

from mmalign.models.hidden_states import WordPooling, encode_words, word_states
from mmalign.models.load import load_text_encoder
from mmalign.models.text_encoder import TextEncoder

WORDS = [*ENGLISH[:5], "badekilomunapeba", "ki"]
NAMES = [*(str(layer) for layer in range(LAYERS + 1)), "feature"]


@pytest.fixture(scope="module", params=[write_encoder, write_decoder])
def tower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return load_text_encoder(str(request.param(tmp_path_factory.mktemp("model"))))


@pytest.mark.parametrize("pooling", ["content", "all"])
def test_vectors_are_the_means_of_each_word_read_alone(
    tower: TextEncoder, pooling: WordPooling
) -> None:
    states = encode_words(tower, WORDS, pooling)
    assert list(states) == NAMES
    for place, word in enumerate(WORDS):
        tokens = tower.tokenize([word])
        ids = tokens.token_NL[0].tolist()
        kept = [i for i, one in enumerate(ids) if pooling == "all" or one not in (1, 2)]
        with torch.no_grad():
            output = tower.trunk(input_ids=tokens.token_NL, output_hidden_states=True)
        for layer, state_1LF in enumerate(output.hidden_states):
            mean_F = state_1LF[0, kept].mean(0)
            expected = (mean_F / mean_F.norm()).numpy()
            np.testing.assert_allclose(states[str(layer)][place], expected, atol=1e-5)
        feature = tower.encode([word])[0]
        np.testing.assert_allclose(
            states["feature"][place], feature / np.linalg.norm(feature), atol=1e-5
        )


def test_other_words_of_a_batch_change_nothing(tower: TextEncoder) -> None:
    together = encode_words(tower, WORDS, "content")
    alone = encode_words(tower, WORDS[:1], "content")
    for layer in NAMES:
        np.testing.assert_allclose(together[layer][:1], alone[layer], atol=1e-5)


def test_gradients_flow_and_the_mode_stays(tower: TextEncoder) -> None:
    word_states(tower, WORDS, "content")["2"][:, 0].sum().backward()
    grads = {n: p.grad for n, p in tower.trunk.named_parameters() if p.grad is not None}
    assert any("layer" in name and float(grad.abs().sum()) > 0 for name, grad in grads.items())
    tower.zero_grad(set_to_none=True)
    tower.train()
    encode_words(tower, WORDS, "content")
    assert tower.training and all(p.grad is None for p in tower.parameters())
    tower.eval()


def test_a_word_of_special_tokens_alone_has_a_vector(tower: TextEncoder) -> None:
    states = encode_words(
        tower, [""] if tower.tokenize([""]).token_NL.shape[1] else ["</s>"], "content"
    )
    assert states["1"].shape == (1, WIDTH) and np.isclose(np.linalg.norm(states["1"]), 1, atol=1e-5)


def test_a_long_start_token_makes_all_words_look_alike_unless_it_is_left_out(
    tmp_path: Path,
) -> None:
    """Why the published choice of a layer saw a similarity of 0.99998, and why random pairs must be asked."""
    tower = load_text_encoder(str(write_decoder_with_long_start(tmp_path)))
    published = encode_words(tower, ENGLISH, "all")
    content = encode_words(tower, ENGLISH, "content")
    for layer in map(str, range(LAYERS)):
        assert (published[layer] @ published[layer].T).min() > 0.999
        others = content[layer] @ content[layer].T
        assert others.mean() < 0.5 and others.min() < 0.2
