"""A run starts from an exported model: the same vectors before its first step, or a sentence."""

from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import build_encoder, source_of
from ranks import run_command
from safetensors.torch import load_file, save_file
from shard_sets import make_set
from tiny import MODEL, TEXTS, tiny_run, tiny_tokenizer
from torch import Tensor

from mmalign.core.config import validate, write_yaml
from mmalign.core.errors import UserError
from mmalign.data.tokenizer import load_tokenizer, train_tokenizer
from mmalign.export.open_clip import write_open_clip
from mmalign.export.sentence_transformers import write_router, write_sentence_transformers
from mmalign.export.transformers import write_transformers
from mmalign.models.dual_encoder import DualEncoder, build_dual_encoder
from mmalign.models.encoder import Encoder, load_encoder
from mmalign.models.external.open_clip import to_open_clip
from mmalign.training.dry_run import dry_run
from mmalign.training.initialization import initialize_weights
from mmalign.training.run_config import RunConfig


def run_config(init_from: str) -> RunConfig:
    tree = {
        "name": "next",
        "steps": 4,
        "batch_size": 4,
        "data": {"train": ["nowhere"]},
        "tokenizer": {"kind": "trained", "vocabulary": 160},
        "model": MODEL,
        "optimizer": {"lr": 1e-3},
        "init_from": init_from,
    }
    return validate(RunConfig, tree, "test")


def fresh(encoder: Encoder, **changes: Any) -> DualEncoder:
    """A model configured like the encoder's, but for `changes`, with other random weights."""
    model = encoder.config.model_copy(update=changes)
    torch.manual_seed(11)
    tokenizer = encoder.tokenizer
    return build_dual_encoder(model, tokenizer.vocabulary, tokenizer.padding_id).eval()


def start(encoder: Encoder, init_from: str, **changes: Any) -> DualEncoder:
    """That model with the first weights of a run."""
    started = fresh(encoder, **changes)
    initialize_weights(run_config(init_from), started, encoder.tokenizer)
    return started


@torch.no_grad()
def texts(model: DualEncoder) -> Tensor:
    return model.encode_text(*tiny_tokenizer()(TEXTS, 32))


@torch.no_grad()
def images(model: DualEncoder) -> Tensor:
    size = model.image_tower.size
    noise = torch.randn((3, 3, size, size), generator=torch.Generator().manual_seed(0))
    return model.encode_image(noise)


def assert_close(one: Tensor, other: Tensor) -> None:
    assert (one - other).abs().max() <= 1e-6


def export(encoder: Encoder, folder: Path) -> str:
    folder.mkdir()
    write_open_clip(source_of(encoder), folder, str(folder))
    return str(folder)


@pytest.mark.parametrize(
    ("image", "trunk", "changes"),
    [
        ("resnet10t", "bert", {}),
        ("vit", "xlm-roberta", {"text_projection": "mlp"}),
        ("open_clip", "mt5", {"logit_bias": -10.0, "temperature": 0.1}),
        ("open_clip", "bert", {"embedding": 40}),  # the network's own width is 24
        ("around_timm", "xlm-roberta", {"pooling": "cls"}),
    ],
)
def test_an_open_clip_export_goes_on_with_the_same_vectors(
    image: str, trunk: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    encoder = build_encoder(image, trunk, **changes)
    started = start(encoder, export(encoder, tmp_path / "export"))
    assert_close(texts(started), texts(encoder.model))
    assert_close(images(started), images(encoder.model))
    assert started.logit_scale.equal(encoder.model.logit_scale)
    if encoder.model.logit_bias is not None:
        assert started.logit_bias is not None
        assert started.logit_bias.equal(encoder.model.logit_bias)


def test_what_was_loaded_learns_in_every_part(tmp_path: Path) -> None:
    encoder = build_encoder("open_clip", text_projection="mlp")
    started = start(encoder, export(encoder, tmp_path / "export"))
    optimizer = torch.optim.AdamW(started.parameters(), lr=1e-2)
    before = {name: one.detach().clone() for name, one in started.named_parameters()}
    token_NL, mask_NL = tiny_tokenizer()(TEXTS, 32)
    pixels = torch.randn((len(TEXTS), 3, 64, 64), generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(6):
        found = started(pixels, token_NL, mask_NL)
        logits = found.logit_scale * found.image_BD @ found.text_ND.T
        loss = torch.nn.functional.cross_entropy(logits, torch.arange(len(TEXTS)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    # The columns that the folded map left empty train as well.
    for name in ("image_projection.weight", "text_projection.0.weight", "text_projection.2.weight"):
        moved = (dict(started.named_parameters())[name] - before[name]).abs()
        assert bool((moved.amax(0) > 0).all()), name


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_of_open_clips_trainer_is_read(suffix: str, tmp_path: Path) -> None:
    encoder = build_encoder("vit", "xlm-roberta")
    state = {f"module.{name}": one for name, one in to_open_clip(encoder.model).items()}
    path = tmp_path / f"epoch_3{suffix}"
    if suffix == ".pt":
        torch.save({"epoch": 3, "name": "x", "state_dict": state, "optimizer": {}}, path)
    else:
        save_file(state, path)
    started = start(encoder, str(path))
    assert_close(texts(started), texts(encoder.model))
    assert_close(images(started), images(encoder.model))


def test_a_file_that_holds_more_than_tensors_is_not_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "epoch_1.pt"
    torch.save({"state_dict": {"x": torch.ones(1)}, "hook": Path}, path)
    with pytest.raises(UserError, match="no checkpoint of tensors alone"):
        start(build_encoder(), str(path))


def test_open_clips_own_text_tower_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "epoch_1.safetensors"
    save_file({"token_embedding.weight": torch.ones(2, 2), "visual.proj": torch.ones(2, 2)}, path)
    with pytest.raises(UserError, match=r"image tower alone, with `model\.image\.pretrained`"):
        start(build_encoder(), str(path))


def test_a_sentence_transformers_export_gives_its_text_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = build_encoder(text_projection="mlp")
    write_sentence_transformers(source_of(encoder), tmp_path)
    started = start(encoder, str(tmp_path))
    assert_close(texts(started), texts(encoder.model))
    assert (
        "text tower and its projection; the rest starts as `model` says" in capsys.readouterr().out
    )
    assert (images(started) - images(encoder.model)).abs().max() > 1e-3


@pytest.mark.parametrize("image", ["resnet10t", "around_timm"])
def test_a_router_export_gives_both_towers(image: str, tmp_path: Path) -> None:
    encoder = build_encoder(image, text_projection="mlp")
    write_router(source_of(encoder), tmp_path)
    started = start(encoder, str(tmp_path))
    assert_close(texts(started), texts(encoder.model))
    assert_close(images(started), images(encoder.model))


@pytest.mark.parametrize("image", ["vit", "around_timm"])
def test_a_transformers_export_gives_both_towers(image: str, tmp_path: Path) -> None:
    encoder = build_encoder(image, "xlm-roberta", "cls", temperature=0.05)
    write_transformers(source_of(encoder), tmp_path)
    started = start(encoder, str(tmp_path))
    assert_close(texts(started), texts(encoder.model))
    assert_close(images(started), images(encoder.model))
    # The pooler's small factor is undone, and is not left in the projection.
    assert started.text_projection.state_dict()["weight"].equal(
        encoder.model.text_projection.state_dict()["weight"]
    )
    assert started.logit_scale.equal(encoder.model.logit_scale)


def test_clips_image_tower_in_transformers_is_refused(tmp_path: Path) -> None:
    encoder = build_encoder("open_clip")
    write_router(source_of(encoder), tmp_path)
    with pytest.raises(UserError, match="is a CLIPVisionModel of transformers"):
        start(encoder, str(tmp_path))


def test_a_trained_pooler_is_refused(tmp_path: Path) -> None:
    encoder = build_encoder("vit", pooling="cls")
    write_transformers(source_of(encoder), tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    state["text_model.pooler.dense.weight"][0, 1] = 0.5
    save_file(state, path, {"format": "pt"})
    with pytest.raises(UserError, match="has a trained pooler behind its text tower"):
        start(encoder, str(tmp_path))


def test_a_plain_trunk_keeps_the_runs_projection(tmp_path: Path) -> None:
    encoder = build_encoder()
    encoder.model.text_tower.trunk.save_pretrained(tmp_path)
    encoder.tokenizer.save(tmp_path)
    started = start(encoder, str(tmp_path))
    loaded, trained = started.text_tower.state_dict(), encoder.model.text_tower.state_dict()
    assert all(one.equal(trained[name]) for name, one in loaded.items())
    assert not started.text_projection.state_dict()["weight"].equal(
        encoder.model.text_projection.state_dict()["weight"]
    )


def test_a_run_and_a_checkpoint_give_their_weights(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run")
    trained = load_encoder(run)
    for path in (run, run / "checkpoints/step-000000001"):
        started = start(trained, str(path))
        assert_close(texts(started), texts(trained.model))


def test_another_vocabulary_is_refused_and_names_the_tokenizer(tmp_path: Path) -> None:
    encoder = build_encoder()
    folder = export(encoder, tmp_path / "export")
    encoder.tokenizer = train_tokenizer([text[::-1] for text in TEXTS] * 4, vocabulary=160)
    with pytest.raises(UserError, match=rf"another vocabulary; .* name: {folder}}}"):
        start(encoder, folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"embedding": 8}, "image_projection.weight` is 16 x 32 there and 8 x 32 here"),
        (
            {"text_projection": "mlp"},
            "text_projection.0.weight` is absent there and 24 x 32 here .and 2 more",
        ),
    ],
)
def test_weights_of_another_shape_change_nothing(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    encoder = build_encoder()
    folder = export(encoder, tmp_path / "export")
    model = fresh(encoder, **changes)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    with pytest.raises(UserError, match=reason):
        initialize_weights(run_config(folder), model, encoder.tokenizer)
    assert all(one.equal(before[name]) for name, one in model.state_dict().items())


def test_a_changed_vocabulary_with_another_padding_is_refused(tmp_path: Path) -> None:
    encoder = build_encoder(trunk="xlm-roberta")
    folder = export(encoder, tmp_path / "export")
    config = run_config(folder)
    keep = config.tokenizer.model_copy(update={"keep": ("captions",)})
    tokenizer = load_tokenizer(folder)
    tokenizer.padding_id += 1
    with pytest.raises(UserError, match="counts positions from its own padding id"):
        initialize_weights(config.model_copy(update={"tokenizer": keep}), fresh(encoder), tokenizer)


def test_another_pooling_is_refused(tmp_path: Path) -> None:
    encoder = build_encoder(pooling="cls")
    folder = export(encoder, tmp_path / "export")
    text = encoder.config.text.model_copy(update={"pooling": "mean"})
    with pytest.raises(UserError, match=r"set `model\.text\.pooling: cls`"):
        start(encoder, folder, text=text)


def test_onnx_has_nothing_to_train(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx/text_model.onnx").write_bytes(b"")
    with pytest.raises(UserError, match="ONNX graphs, which have no weights to train"):
        start(build_encoder(), str(tmp_path))


def test_a_run_that_starts_so_can_be_planned(tmp_path: Path) -> None:
    table = dry_run(run_config(str(tmp_path / "somewhere")), nodes=1, gpus_per_node=2)
    assert "next on 1 x 2 GPUs" in table


def test_a_run_goes_on_from_an_export_with_its_tokenizer(tmp_path: Path) -> None:
    encoder = build_encoder()
    folder = export(encoder, tmp_path / "export")
    make_set(tmp_path / "data", 14)
    changes = {
        "steps": 1,
        "data": {"train": [str(tmp_path / "data")], "workers": 0},
        "tokenizer": {"kind": "pretrained", "name": folder},
        "model": encoder.config.model_dump(mode="json"),
        "optimizer": {"lr": 1e-12},
        "engine": {"precision": "fp32"},
    }
    tree = {**run_config(folder).model_dump(mode="json"), **changes}
    (tmp_path / "run.yaml").write_text(write_yaml(tree), encoding="utf-8")
    done = run_command(["train", "run.yaml", "--out", "next"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "both towers, projections and temperature" in done.stdout
    assert_close(texts(load_encoder(tmp_path / "next").model), texts(encoder.model))
