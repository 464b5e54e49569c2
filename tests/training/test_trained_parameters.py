"""What trains: the last layers, adapters, averages. All resume exactly and are read like any other run."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_cases import assert_equal_weights, config, losses, mmalign, newest
from safetensors.torch import load_file
from shard_sets import make_image, make_set
from tiny import MODEL, TEXTS, tiny_tokenizer
from typer.testing import CliRunner

import mmalign as package
from mmalign.cli import app
from mmalign.core.config import validate, write_yaml
from mmalign.core.errors import UserError
from mmalign.models.dual_encoder import DualEncoder, ModelConfig, add_adapters, build_dual_encoder
from mmalign.models.encoder import Encoder, load_encoder
from mmalign.training.run_config import RunConfig

VIT = {"depth": 3, "embed_dim": 32, "num_heads": 2, "patch_size": 8}
IMAGE = {"kind": "timm", "name": "vit_tiny_patch16_224", "image_size": 32, "options": VIT}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def model_tree(image: dict[str, Any] = {}, text: dict[str, Any] = {}) -> dict[str, Any]:  # noqa: B006
    """A section `model` with three blocks in each tower, and without dropout."""
    architecture = {**MODEL["text"]["architecture"], "num_hidden_layers": 3, **STILL}
    texts = {**MODEL["text"], "architecture": architecture, **text}
    return {**MODEL, "image": {**IMAGE, **image}, "text": texts}


def build(**sides: Any) -> DualEncoder:
    torch.manual_seed(0)
    section = validate(ModelConfig, model_tree(**sides), "test")
    return build_dual_encoder(section, tiny_tokenizer().vocabulary, 0)


def trained(model: DualEncoder, tower: str) -> set[str]:
    parameters = getattr(model, tower).trunk.named_parameters()
    return {name for name, parameter in parameters if parameter.requires_grad}


def test_the_last_layers_train() -> None:
    model = build(image={"train_layers": 1}, text={"train_layers": 2})
    texts, images = trained(model, "text_tower"), trained(model, "image_tower")
    assert {name.split(".")[2] for name in texts} == {"1", "2"}
    assert {name.split(".")[0] for name in images} == {"blocks", "norm"}
    assert all(name.startswith(("blocks.2.", "norm.")) for name in images)
    model.train()
    # No dropout in what does not train; the others are in training mode.
    layers = model.text_tower.trunk.encoder.layer
    assert [layer.training for layer in layers] == [False, True, True]
    assert not model.text_tower.trunk.embeddings.training


def test_the_table_of_tokens_may_stay() -> None:
    model = build(text={"train_embeddings": False})
    names = {name for name, _ in model.text_tower.trunk.named_parameters()}
    assert names - trained(model, "text_tower") == {"embeddings.word_embeddings.weight"}


@pytest.mark.parametrize("fields", [{"lora": {"rank": 2}}, {"train_layers": 1}])
def test_the_table_of_tokens_may_train_beside_what_is_chosen(fields: dict[str, Any]) -> None:
    name = "embeddings.word_embeddings.weight"
    for choice, trains in ((None, False), (True, True)):
        section = validate(
            ModelConfig, model_tree(text={**fields, "train_embeddings": choice}), "test"
        )
        model = build_dual_encoder(section, tiny_tokenizer().vocabulary, 0)
        add_adapters(model, section, 0)
        found = trained(model, "text_tower")
        assert (name in found) is trains
        assert all("lora_" in one or one.startswith("encoder.layer.2.") for one in found - {name})


@pytest.mark.parametrize(
    ("side", "fields", "reason"),
    [
        ("text", {"train_layers": 9}, "train_layers: is 9, and the layers of a `BertModel` are 4"),
        ("text", {"train_layers": 1, "frozen": True}, "`frozen` and `train_layers` exclude each"),
        ("image", {"lora": {"targets": ["query"]}}, "no linear layer is named `query`; there are"),
    ],
)
def test_what_does_not_fit_is_one_sentence(side: str, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        section = validate(ModelConfig, model_tree(**{side: fields}), "test")
        add_adapters(build_dual_encoder(section, 160, 0), section, 0)


def test_an_average_needs_complete_weights(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"optimizer": {"lr": 1e-3, "average": 0.9}}
    changes["engine"] = {"zero_stage": 3}
    with pytest.raises(UserError, match=r"`optimizer\.average` needs complete weights"):
        validate(RunConfig, config(tmp_path, **changes), "test")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with adapters in both towers and an average, complete and in two parts, and one without either."""
    folder = tmp_path_factory.mktemp("adapters")
    make_set(folder / "data", 14)
    lora = {"lora": {"rank": 2, "alpha": 6.0}}
    tree = config(folder / "data", model=model_tree(image=lora, text=lora))
    tree["checkpoint"] = {"every": 1, "keep": 9}
    (folder / "run.yaml").write_text(write_yaml(tree))
    mmalign("train", "run.yaml", "--out", "plain", folder=folder)
    average = ("train", "run.yaml", "optimizer.average=0.5", "--out")
    mmalign(*average, "whole", folder=folder)
    mmalign(*average, "parts", "--stop-after", "3", folder=folder)
    mmalign(*average, "parts", folder=folder)
    return folder


def test_an_average_changes_no_step_and_is_what_is_read(runs: Path) -> None:
    assert losses(runs / "plain") == losses(runs / "whole")
    kept = sorted((runs / "plain/checkpoints").glob("step-*"))
    weights = [load_file(folder / "model.safetensors") for folder in kept]
    last = newest(runs / "whole")
    averaged, stepped = (load_file(last / f"{n}.safetensors") for n in ("model", "trained"))
    name = "text_projection.weight"
    assert stepped[name].equal(weights[-1][name])
    # By hand, from the weights before the first step and after each.
    wanted = load_encoder(runs / "whole", untrained=True).model.state_dict()[name]
    for step, after in enumerate(weights):
        decay = min(0.5, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * after[name]
    torch.testing.assert_close(averaged[name], wanted)


def test_a_stop_changes_nothing(runs: Path) -> None:
    assert losses(runs / "parts") == losses(runs / "whole")
    assert_equal_weights(runs / "parts", runs / "whole")


def test_only_adapters_projections_and_temperature_train(runs: Path) -> None:
    before, after = (
        load_file(runs / f"plain/checkpoints/step-{step:09d}/model.safetensors") for step in (1, 6)
    )
    moved = {name for name, tensor in before.items() if not tensor.equal(after[name])}
    assert moved
    assert all(".lora_" in n or "projection" in n or n == "logit_scale" for n in moved)
    assert any(n.startswith("image_tower.") for n in moved)


def test_readers_get_merged_adapters(runs: Path) -> None:
    merged = load_encoder(runs / "plain")
    assert not any("lora" in name for name in merged.model.state_dict())
    model = build_dual_encoder(merged.config, merged.tokenizer.vocabulary, 0)
    add_adapters(model, merged.config, 0)
    model.load_state_dict(load_file(newest(runs / "plain") / "model.safetensors"))
    adapted = Encoder(model, merged.config, merged.tokenizer, facts={})
    pictures = [make_image(number) for number in range(3)]
    np.testing.assert_allclose(merged.encode_texts(TEXTS), adapted.encode_texts(TEXTS), atol=1e-6)
    np.testing.assert_allclose(
        merged.encode_images(pictures), adapted.encode_images(pictures), atol=1e-6
    )


@pytest.mark.usefixtures("in_this_process")
def test_it_is_exported_and_started_from(runs: Path) -> None:
    wanted = load_encoder(runs / "whole").encode_texts(TEXTS)
    arguments = ["--format", "sentence-transformers", "--out", str(runs / "export")]
    done = CliRunner().invoke(app, ["export", str(runs / "whole"), *arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    np.testing.assert_allclose(
        package.load(str(runs / "export")).encode_texts(TEXTS), wanted, atol=1e-6
    )
    changes = ["init_from=whole", "optimizer.lr=1e-12", "steps=1", "model.text.lora=null"]
    changes += ["model.image.lora=null", "tokenizer={kind: pretrained, name: whole/tokenizer}"]
    mmalign("train", "run.yaml", *changes, "--out", "next", folder=runs)
    np.testing.assert_allclose(load_encoder(runs / "next").encode_texts(TEXTS), wanted, atol=1e-5)


def test_two_ranks_with_split_moments_and_cached_gradients(runs: Path) -> None:
    options = ["optimizer.average=0.5", "engine.zero_stage=1", "engine.micro_batch=1"]
    options += ["data.augmentation={}", "--out"]
    for out, ranks in (("one", 1), ("two", 2)):
        mmalign("train", "run.yaml", *options, out, "--stop-after", "3", folder=runs, ranks=ranks)
    shutil.copytree(runs / "two", runs / "back", symlinks=True)
    mmalign("train", "run.yaml", *options, "one", folder=runs)
    for out, ranks in (("two", 2), ("back", 1)):
        mmalign("train", "run.yaml", *options, out, folder=runs, ranks=ranks)
        for file in ("model", "trained"):
            one, other = (load_file(newest(runs / n) / f"{file}.safetensors") for n in ("one", out))
            assert all(torch.allclose(one[n], other[n], atol=2e-4) for n in one)


def test_adapters_on_four_ranks_with_all_weights_split(runs: Path) -> None:
    options = ["data.augmentation={}", "--out"]
    mmalign("train", "run.yaml", *options, "of_one", folder=runs)
    for steps in ("3", "6"):  # in two parts
        split = ("engine.zero_stage=3", *options, "of_four", "--stop-after", steps)
        mmalign("train", "run.yaml", *split, folder=runs, ranks=4)
    one, four = losses(runs / "of_one"), losses(runs / "of_four")
    assert list(four.values()) == pytest.approx(list(one.values()), rel=1e-4)
    weights, others = (
        load_file(newest(runs / n) / "model.safetensors") for n in ("of_one", "of_four")
    )
    assert weights.keys() == others.keys()
    assert all(torch.allclose(weights[name], others[name], atol=2e-4) for name in weights)
