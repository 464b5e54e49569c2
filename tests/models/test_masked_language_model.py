"""The head that predicts hidden words, and what of the dual encoder trains below it."""

import pytest
import torch
from tiny import MODEL, tiny_model, tiny_tokenizer

from mmalign.core.config import validate
from mmalign.models.dual_encoder import DualEncoder, ModelConfig, build_dual_encoder
from mmalign.models.masked_language_model import MaskedLanguageModel

TOKEN_NL = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
MASK_NL = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
PREDICTED_NL = torch.tensor([[0, 1, 0, 1], [1, 0, 0, 0]]).bool()


def narrow_embeddings() -> DualEncoder:
    """ALBERT: token embeddings narrower than the states."""
    architecture = {
        "model_type": "albert",
        "embedding_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    tree = {**MODEL, "text": {"architecture": architecture}}
    tokenizer = tiny_tokenizer()
    config = validate(ModelConfig, tree, "test")
    return build_dual_encoder(config, tokenizer.vocabulary, tokenizer.padding_id)


@pytest.mark.parametrize("build", [tiny_model, narrow_embeddings])
def test_it_scores_every_token_at_the_places_to_predict(build: type[DualEncoder]) -> None:
    model = MaskedLanguageModel(build()).eval()
    logits_PV = model(TOKEN_NL, MASK_NL, PREDICTED_NL)
    assert logits_PV.shape == (3, tiny_tokenizer().vocabulary)
    # The first caption's place 1, its place 3, then the second caption's place 0; padding changes nothing.
    alone_PV = model(TOKEN_NL[1:, :2], MASK_NL[1:, :2], PREDICTED_NL[1:, :2])
    assert torch.allclose(logits_PV[2:], alone_PV, atol=1e-5)
    assert not torch.allclose(logits_PV[:1], logits_PV[1:2], atol=1e-3)
    assert model(TOKEN_NL, MASK_NL, PREDICTED_NL & False).shape == (0, logits_PV.shape[1])


def test_the_decoder_is_the_input_embedding_and_only_the_text_tower_trains() -> None:
    dual_encoder = tiny_model()
    before = {name: t.clone() for name, t in dual_encoder.state_dict().items()}
    model = MaskedLanguageModel(dual_encoder)
    embedding = dual_encoder.text_tower.trunk.get_input_embeddings()
    assert model.decoder.weight is embedding.weight
    model(TOKEN_NL, MASK_NL, PREDICTED_NL).square().sum().backward()
    assert embedding.weight.grad is not None
    assert embedding.weight.grad[60].any()  # never read: its gradient came through the decoder
    for name, parameter in dual_encoder.named_parameters():
        assert (parameter.grad is not None) == name.startswith("text_tower."), name
    assert all(tensor.equal(before[name]) for name, tensor in dual_encoder.state_dict().items())


def test_the_logits_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert MaskedLanguageModel(tiny_model())(TOKEN_NL, MASK_NL, PREDICTED_NL).dtype is (
            torch.float32
        )
