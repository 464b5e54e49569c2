"""Noise arrives in the layer it was meant for, in every kind of trunk."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import tiny_tokenizer
from torch import Tensor, nn

from mmalign.core.config import Section, validate
from mmalign.core.errors import UserError
from mmalign.models.text_encoder import TextEncoder
from mmalign.text.robust import noise
from mmalign.text.robust.noise import Layer, Norm, direction, draw, project

TEXTS = ["a red ball", "the cat sleeps on a green chair"]
_BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
_SPECIAL = {name: 1 for name in ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")}
TRUNKS: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "modernbert": {**_BERT, **_SPECIAL},
    "mt5": {"d_model": 16, "num_layers": 2, "d_ff": 32, "num_heads": 2, "d_kv": 8},
    "m2m_100": {
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    },
    "albert": {**_BERT, "embedding_size": 8},
}


LAYERS: tuple[Layer, ...] = ("embedding", 1, 2, "last")


class Place(Section):
    layer: Layer


def build(kind: str) -> TextEncoder:
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=tokenizer.vocabulary, pad_token_id=tokenizer.padding_id, **TRUNKS[kind]
    )
    if kind == "mt5":
        return TextEncoder(AutoModelForTextEncoding.from_config(config), tokenizer)
    model = AutoModel.from_config(config)
    return TextEncoder(model.get_encoder() if kind == "m2m_100" else model, tokenizer)


def with_lora(tower: TextEncoder) -> TextEncoder:
    peft = pytest.importorskip("peft")
    tower.trunk = peft.get_peft_model(tower.trunk, peft.LoraConfig(target_modules="all-linear"))
    return tower


def delta_for(tower: TextEncoder, tokens: Any, layer: Layer) -> torch.Tensor:
    zero = noise.zeros(tower, tokens, layer)
    return torch.rand(zero.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["bert", "modernbert", "mt5", "m2m_100", "lora"])
def test_noise_after_a_block_is_added_to_what_the_next_block_reads(kind: str) -> None:
    tower = with_lora(build("bert")) if kind == "lora" else build(kind)
    tokens = tower.tokenize(TEXTS)
    second = next(one for one in tower.trunk.modules() if isinstance(one, nn.ModuleList))[1]
    read: list[torch.Tensor] = []
    second.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].detach()))
    delta = delta_for(tower, tokens, 1)
    clean = tower.states(tokens)
    noisy = noise.states(tower, tokens, 1, delta)
    torch.testing.assert_close(read[1], read[0] + delta)
    assert not torch.allclose(clean, noisy)
    assert torch.equal(tower.states(tokens), clean), "the hook is still there"


@pytest.mark.parametrize("kind", [*TRUNKS, "lora"])
def test_noise_on_the_embedding_changes_the_word_vectors_by_itself(kind: str) -> None:
    tower = with_lora(build("bert")) if kind == "lora" else build(kind)
    tokens = tower.tokenize(TEXTS)
    delta = delta_for(tower, tokens, "embedding")
    noisy = noise.states(tower, tokens, "embedding", delta)
    vectors = tower.trunk.get_input_embeddings()(tokens.token_NL)
    expected = tower.trunk(inputs_embeds=vectors + delta, attention_mask=tokens.mask_NL)
    read = tokens.mask_NL.bool()  # M2M-100 counts its positions otherwise on padding
    torch.testing.assert_close(noisy[read], expected.last_hidden_state[read])
    assert not torch.allclose(noisy, tower.states(tokens))


def test_noise_of_zero_and_failing_passes_leave_the_tower_as_it_was() -> None:
    tower = build("bert")
    tokens = tower.tokenize(TEXTS)
    clean = tower.states(tokens)
    for layer in LAYERS:
        zero = noise.zeros(tower, tokens, layer)
        assert torch.equal(noise.states(tower, tokens, layer, zero), clean)
    delta = delta_for(tower, tokens, "last")
    last, second = (noise.states(tower, tokens, layer, delta) for layer in ("last", 2))
    torch.testing.assert_close(last, second)  # BERT has no norm after its last block
    with pytest.raises(RuntimeError):
        noise.states(tower, tokens, 1, torch.ones(9, 9, 9))
    assert torch.equal(tower.states(tokens), clean)


@pytest.mark.parametrize(
    ("kind", "layer", "words"), [("bert", 3, "2 blocks"), ("albert", 1, "albert")]
)
def test_a_block_that_is_not_there_is_one_sentence(kind: str, layer: int, words: str) -> None:
    tower = build(kind)
    tokens = tower.tokenize(TEXTS)
    with pytest.raises(UserError, match=words):
        noise.states(tower, tokens, layer, torch.zeros(()))


def test_a_layer_is_a_name_or_a_number_from_one() -> None:
    for layer in ("embedding", "last", 1, 12):
        assert validate(Place, {"layer": layer}, "x.yaml").layer == layer
    for wrong in ("first", 0, 1.5):
        with pytest.raises(UserError):
            validate(Place, {"layer": wrong}, "x.yaml")


def test_the_passes_of_a_batch_share_their_dropout_and_batches_do_not() -> None:
    tower = build("bert").train()
    tokens = tower.tokenize(TEXTS)
    torch.manual_seed(0)
    batches = [[tower.states(tokens) for _ in noise.passes(tower, 3)] for _ in range(2)]
    for first, *others in batches:
        assert all(torch.equal(first, other) for other in others)
    assert not torch.allclose(batches[0][0], batches[1][0])


NORMS: tuple[Norm, ...] = ("linf", "l2", "l2_sequence")
NormOf = Callable[[Tensor, Norm], Tensor]
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def random(seed: int) -> Tensor:
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", NORMS)
def test_drawn_noise_is_inside_and_never_on_padding(norm_of: NormOf, norm: Norm) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [draw(torch.zeros(2, 5, 8), MASK, norm, 0.7, generator) for _ in range(200)]
    for one in drawn:
        assert (norm_of(one, norm) <= 0.7 + 1e-6).all()
        assert (one[1, 3:] == 0).all() and (one[1, :3] != 0).all()
    assert torch.stack(drawn).mean().abs() < 0.01
    if norm == "linf":  # uniform: the deviation is the half-width over the root of 3
        assert torch.stack(drawn)[:, 0].std().item() == pytest.approx(0.7 / 3**0.5, rel=0.02)


@pytest.mark.parametrize("norm", NORMS)
def test_projected_noise_is_inside_and_what_was_inside_stays(norm_of: NormOf, norm: Norm) -> None:
    outside = random(1) * 10
    assert (norm_of(project(outside, norm, 0.5), norm) <= 0.5 + 1e-6).all()
    inside = project(outside, norm, 0.25)
    torch.testing.assert_close(project(inside, norm, 0.5), inside, rtol=0, atol=0)
    assert (project(outside, norm, 0.0) == 0).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1.0, 1e-25])
def test_a_direction_has_size_one_however_small_the_gradient(
    norm_of: NormOf, norm: Norm, scale: float
) -> None:
    step = direction(random(2) * scale, MASK, norm)
    assert norm_of(step, norm).tolist() == pytest.approx([1, 1], abs=1e-6)
    assert (step[1, 3:] == 0).all()
    assert (direction(torch.zeros(2, 5, 8), MASK, norm) == 0).all()
