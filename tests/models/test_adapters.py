"""Adapters of peft are folded into the model that they were trained on, whoever saved them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tiny import TEXTS, tiny_run, tiny_tokenizer
from transformers import BertConfig, BertForSequenceClassification, BertModel

from mmalign.core.errors import UserError
from mmalign.models.adapters import CONFIG, WEIGHTS
from mmalign.models.load import load_text_encoder
from mmalign.models.text_encoder import TextEncoder

SETTINGS = BertConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=64,
    vocab_size=160,
    pad_token_id=0,
)
QUERY = "encoder.layer.1.attention.self.query"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A text encoder of transformers with its tokenizer."""
    torch.manual_seed(0)
    BertModel(SETTINGS, add_pooling_layer=False).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save(tmp_path / "base")
    return tmp_path / "base"


def adapt(model: Any, folder: Path, **changes: Any) -> Any:
    """An adapter whose B is not zero, saved by peft."""
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["query", "dense"]}
    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**{**settings, **changes})).eval()
    for name, one in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(one)
    adapted.save_pretrained(str(folder))
    return adapted


def test_a_merged_adapter_is_the_sum_in_float32(base: Path, tmp_path: Path) -> None:
    adapted = adapt(BertModel.from_pretrained(base, add_pooling_layer=False), tmp_path / "lora")
    tower = load_text_encoder(str(tmp_path / "lora"))
    tensors = load_file(tmp_path / "lora" / WEIGHTS)
    b, a = (tensors[f"base_model.model.{QUERY}.lora_{one}.weight"] for one in "BA")
    before = load_file(base / "model.safetensors")[f"{QUERY}.weight"]
    assert torch.equal(tower.trunk.get_submodule(QUERY).weight, before + (b @ a) * (6 / 4))
    expected = TextEncoder(adapted, tiny_tokenizer(), max_length=tower.max_length).encode(TEXTS)
    np.testing.assert_allclose(tower.encode(TEXTS), expected, atol=1e-5)
    assert np.abs(tower.encode(TEXTS) - load_text_encoder(str(base)).encode(TEXTS)).max() > 0.1
    assert not any("lora" in name for name in tower.state_dict())
    assert tower.facts["path"] == str(tmp_path / "lora")


def test_the_base_may_be_a_fine_tuned_tower_or_a_run(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run")
    before = load_text_encoder(str(run))
    (tmp_path / "tower").mkdir()
    before.save(tmp_path / "tower")
    trunk = load_text_encoder(str(run)).trunk
    adapt(trunk, tmp_path / "lora")
    for name in ("run", "tower"):
        path = tmp_path / "lora" / CONFIG
        tree = {**json.loads(path.read_text()), "base_model_name_or_path": str(tmp_path / name)}
        path.write_text(json.dumps(tree))
        tower = load_text_encoder(str(tmp_path / "lora"))
        assert tower.unit_length and tower.feature_width == before.feature_width
        assert np.abs(tower.encode(TEXTS) - before.encode(TEXTS)).max() > 0.01
    assert tower.facts["sha256"] != before.facts["sha256"]


def test_the_head_of_a_task_is_left_out(base: Path, tmp_path: Path) -> None:
    model = BertForSequenceClassification.from_pretrained(base)
    adapted = adapt(model, tmp_path / "lora", task_type="SEQ_CLS")
    held = load_file(tmp_path / "lora" / WEIGHTS)
    # `bert.pooler.dense` was adapted too, which a trunk without a pooler has no place for.
    with pytest.raises(UserError, match=r"lora: the adapter does not fit .*pooler"):
        load_text_encoder(str(tmp_path / "lora"))
    kept = {name: one for name, one in held.items() if "pooler" not in name}
    save_file(kept, tmp_path / "lora" / WEIGHTS)
    assert any(".classifier." in name for name in kept)
    trunk = adapted.merge_and_unload().bert
    tower = load_text_encoder(str(tmp_path / "lora"))
    expected = TextEncoder(trunk, tiny_tokenizer(), max_length=tower.max_length).encode(TEXTS)
    np.testing.assert_allclose(tower.encode(TEXTS), expected, atol=1e-5)


def test_an_adapter_that_sentence_transformers_saved(base: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(base), device="cpu")
    torch.manual_seed(2)
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["query"], init_lora_weights=False))
    model.save(str(tmp_path / "lora"))
    tower = load_text_encoder(str(tmp_path / "lora"))
    np.testing.assert_allclose(tower.encode(TEXTS), model.encode(list(TEXTS)), atol=1e-5)
    assert not any("lora" in name for name in tower.state_dict())
    (tmp_path / "tower").mkdir()
    tower.save(tmp_path / "tower")
    assert np.array_equal(
        load_text_encoder(str(tmp_path / "tower")).encode(TEXTS), tower.encode(TEXTS)
    )


def broken(folder: Path, how: str) -> None:
    path, tensors = folder / CONFIG, load_file(folder / WEIGHTS)
    first = next(iter(tensors))
    changed = {
        "a tensor too few": {k: v for k, v in tensors.items() if k != first},
        "a tensor too many": {**tensors, "base_model.model.other.weight": torch.ones(2)},
        "another width": {**tensors, first: torch.ones(4, 7)},
    }
    if how in changed:
        save_file(changed[how], folder / WEIGHTS)
    elif how == "no base":
        tree = json.loads(path.read_text())
        path.write_text(json.dumps({**tree, "base_model_name_or_path": None}))
    elif how == "not JSON":
        path.write_text("hello")
    elif how == "damaged":
        (folder / WEIGHTS).write_bytes(b"123")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no base", "set `base_model_name_or_path` to"),
        ("not JSON", "not the configuration of an adapter"),
        ("a tensor too few", "does not fit .*lora_A.weight` and 0 more names differ"),
        ("a tensor too many", "does not fit .*`base_model.model.other.weight`"),
        ("another width", "does not fit .*size mismatch"),
        ("damaged", "does not fit"),
    ],
)
def test_what_cannot_be_merged_is_one_sentence(
    base: Path, tmp_path: Path, how: str, message: str
) -> None:
    adapt(BertModel.from_pretrained(base, add_pooling_layer=False), tmp_path / "lora")
    broken(tmp_path / "lora", how)
    with pytest.raises(UserError, match=message) as caught:
        load_text_encoder(str(tmp_path / "lora"))
    assert "\n" not in str(caught.value)


def test_a_base_that_is_gone_is_named_with_the_field_that_names_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    adapt(BertModel.from_pretrained(base, add_pooling_layer=False), tmp_path / "lora")
    base.rename(tmp_path / "elsewhere")
    field = rf"needs its base model .*{base}.* set `base_model_name_or_path` in .*{CONFIG} to"
    with pytest.raises(UserError, match=field):
        load_text_encoder(str(tmp_path / "lora"))
