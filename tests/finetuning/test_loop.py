"""Fine-tuning on towers small enough to know what must come out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_run

from mmalign.commit import verify
from mmalign.config import load_config, read_yaml, validate
from mmalign.errors import UserError
from mmalign.evaluation.encoder import load_encoder, weights_sha256
from mmalign.evaluation.results import read_results
from mmalign.evaluation.text_tasks import TransferTask, read_transfer
from mmalign.finetuning.heads import ClassificationHead
from mmalign.finetuning.loop import FinetuneConfig, finetune, fit, score

WORDS = ("red ball", "dog", "green chair", "a cat", "0123", "and sleeps", "Hund", "ein Ball")
LABELS = ("thing", "animal")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("run"))


def write_task(folder: Path, files: dict[str, list[tuple[str, str, str]]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in files.items():
        lines = ["id\tlabel\ttext", *("\t".join(row) for row in rows)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def rows_of(label_of: Any) -> list[tuple[str, str, str]]:
    return [(str(i), label_of(i), word) for i, word in enumerate(WORDS)]


def right(i: int) -> str:
    return LABELS[i % 2]


def wrong(i: int) -> str:
    return LABELS[1 - i % 2]


def config_for(folder: Path, **fields: Any) -> FinetuneConfig:
    tree = {
        "task": {"name": "toy", "folder": str(folder)},
        "epochs": 60,
        "batch_size": 4,
        "head_lr": 0.1,
        **fields,
    }
    return validate(FinetuneConfig, tree, "test")


def toy_task(folder: Path) -> TransferTask:
    return read_transfer(folder, "toy", "en")


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_a_language_of_the_same_words_is_known_and_one_of_wrong_labels_is_not(
    run: Path, tmp_path: Path, trainable: str
) -> None:
    folder = write_task(
        tmp_path / "task",
        {
            "train.en": rows_of(right),
            "test.en": rows_of(right),
            "test.de": rows_of(right),
            "test.sw": rows_of(wrong),
        },
    )
    config = config_for(folder, trainable=trainable, lr=1e-3, baselines=["untrained"])
    results = finetune(config, run, tmp_path / "out")
    for measured in (results, results.baselines["untrained"]):
        assert measured.metrics["text/toy/en/clean/accuracy"] == 1.0
        assert measured.metrics["text/toy/de/clean/accuracy"] == 1.0
        assert measured.metrics["text/toy/sw/clean/accuracy"] == 0.0
        assert measured.metrics["text/toy/mean/clean/accuracy"] == 0.5
        assert measured.chance["text/toy/mean/clean/accuracy"] == 0.5
        assert measured.counts["text/toy/mean/typos/accuracy"] == 2 * len(WORDS)
    # The noisy texts are not what was trained on: with wrong labels, noise can only help.
    noisy = results.metrics
    assert noisy["text/toy/de/typos/accuracy"] == pytest.approx(
        1 - noisy["text/toy/sw/typos/accuracy"]
    )
    assert "not to new items" in results.protocol["text/toy"]


def test_the_baseline_is_the_run_before_its_first_step(run: Path, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task", {"train.en": rows_of(right), "test.de": rows_of(right)})
    results = finetune(config_for(folder, epochs=1, baselines=["untrained"]), run, tmp_path / "out")
    untrained = results.baselines["untrained"]
    assert (results.model["step"], untrained.model["step"]) == (1, 0)
    assert results.model["sha256"] != untrained.model["sha256"]
    assert untrained.model["sha256"] == load_encoder(run, untrained=True).facts["sha256"]
    assert set(untrained.metrics) == set(results.metrics)


def test_items_that_are_held_out_are_unknown(run: Path, tmp_path: Path) -> None:
    """Every item has a label of its own: an accuracy above 0 would mean that it was trained on."""
    rows = rows_of(lambda i: f"label{i}")
    files = {"train.en": rows, "dev.en": rows, "test.de": rows, "test.sw": rows[:5]}
    folder = write_task(tmp_path / "task", files)
    results = finetune(config_for(folder, folds=4), run, tmp_path / "out")
    assert results.metrics["text/toy/de/clean/accuracy"] == 1.0
    for lang, count in (("de", len(WORDS)), ("sw", 5)):
        for variant in ("clean", "typos"):
            name = f"text/toy_unseen/{lang}/{variant}/accuracy"
            assert (results.metrics[name], results.counts[name]) == (0.0, count)
    assert "new items" in results.protocol["text/toy_unseen"]


def test_folds_need_items_that_training_and_tests_share(run: Path, tmp_path: Path) -> None:
    tests = [("x" + one, label, text) for one, label, text in rows_of(right)]
    folder = write_task(tmp_path / "task", {"train.en": rows_of(right), "test.de": tests})
    with pytest.raises(UserError, match="`folds` is 2, but only 0 test ids"):
        finetune(config_for(folder, folds=2), run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_the_epoch_that_is_best_on_dev_is_kept(run: Path, tmp_path: Path, trainable: str) -> None:
    # Dev rows with the wrong labels: the better the training rows are learned, the worse these are.
    files = {"train.en": rows_of(right), "dev.en": rows_of(wrong), "test.de": rows_of(right)}
    folder = write_task(tmp_path / "task", files)
    config = config_for(folder, trainable=trainable, head_lr=0.03, lr=1e-3)
    task = toy_task(folder)
    classifier, history = fit(load_encoder(run), task, config)
    curve = history["dev_accuracy"]
    assert len(curve) == 60 and max(curve) > curve[-1] == 0.0
    assert curve[history["kept_epoch"] - 1] == max(curve)
    accuracy = np.mean(classifier.predict(WORDS) == task.classes(task.dev))
    assert accuracy == max(curve)


def test_without_dev_the_last_epoch_is_kept(run: Path, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task", {"train.en": rows_of(right), "test.de": rows_of(right)})
    _, history = fit(load_encoder(run), toy_task(folder), config_for(folder, epochs=7))
    assert history["kept_epoch"] == 7 and "dev_accuracy" not in history
    assert history["train_loss"][-1] < history["train_loss"][0]


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_a_seed_gives_the_same_weights_and_the_encoder_stays(
    run: Path, tmp_path: Path, trainable: str
) -> None:
    folder = write_task(tmp_path / "task", {"train.en": rows_of(right), "test.de": rows_of(right)})
    encoder = load_encoder(run)
    config = config_for(folder, trainable=trainable, epochs=3, lr=1e-2)

    def weights(seed: int) -> tuple[str, str]:
        changed = config.model_copy(update={"seed": seed})
        classifier, _ = fit(encoder, toy_task(folder), changed)
        return weights_sha256(classifier.head), weights_sha256(classifier.encoder.model)

    first = weights(0)
    assert weights_sha256(encoder.model) == encoder.facts["sha256"]
    assert weights(0) == first != weights(1)
    assert (first[1] == encoder.facts["sha256"]) == (trainable == "head")


def test_a_prediction_does_not_depend_on_the_texts_beside_it(run: Path, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task", {"train.en": rows_of(right), "test.de": rows_of(right)})
    classifier, _ = fit(load_encoder(run), toy_task(folder), config_for(folder, epochs=5))
    texts = [" ".join(WORDS[: n % 5 + 1]) + "!" * n for n in range(40)]
    together = classifier.embed(texts)
    alone = torch.cat([classifier.embed([text]) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert classifier.predict(texts).tolist() == [classifier.predict([t])[0] for t in texts]


def test_typos_are_in_the_tests_only(run: Path, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task", {"train.en": rows_of(right), "test.de": rows_of(right)})
    quiet = finetune(config_for(folder), run, tmp_path / "a")
    loud = finetune(config_for(folder, typos={"rate": 1.0}), run, tmp_path / "b")
    assert quiet.metrics["text/toy/de/clean/accuracy"] == loud.metrics["text/toy/de/clean/accuracy"]
    assert quiet.model == loud.model
    for name in ("head.safetensors", "model.safetensors"):
        assert (tmp_path / "a/tower" / name).read_bytes() == (
            tmp_path / "b/tower" / name
        ).read_bytes()


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_what_is_written_gives_the_same_accuracy_again(
    run: Path, tmp_path: Path, trainable: str
) -> None:
    folder = write_task(tmp_path / "task", {"train.en": rows_of(right), "test.de": rows_of(right)})
    out = tmp_path / "out"
    config = config_for(folder, trainable=trainable, epochs=4, lr=1e-2)
    results = finetune(config, run, out)
    assert read_results(out / "results.json").metrics == results.metrics
    assert load_config(FinetuneConfig, out / "config.yaml") == config

    tower = out / "tower"
    assert verify(tower)["task"] == "toy"
    encoder = load_encoder(run, untrained=True)
    text_side = load_file(tower / "model.safetensors")
    unknown = encoder.model.load_state_dict(text_side, strict=False).unexpected_keys
    assert not unknown and all(name.startswith("text_") for name in text_side)
    assert read_yaml(tower / "config.yaml")["model"]["embedding"] == encoder.config.embedding
    head = load_file(tower / "head.safetensors")
    labels = json.loads((tower / "labels.json").read_text())
    logits_NK = encoder.encode_texts(WORDS) @ head["weight"].numpy().T + head["bias"].numpy()
    hits = [labels[k] == right(i) for i, k in enumerate(logits_NK.argmax(1))]
    assert np.mean(hits) == results.metrics["text/toy/de/clean/accuracy"]

    again = finetune(config, run, out)  # into the same folder: replaced as a whole
    assert again.metrics == results.metrics and verify(tower)


def test_a_run_that_diverges_is_an_error(run: Path, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task", {"train.en": rows_of(right), "test.de": rows_of(right)})
    with pytest.raises(UserError, match="lower `lr` or `head_lr`"):
        finetune(config_for(folder, head_lr=1e38), run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("hidden", [None, 64])
def test_the_head_learns_from_embeddings_that_hardly_differ(hidden: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    class_N = torch.arange(64) % 2
    text_ND = 0.01 * torch.randn(64, 16, generator=generator) + 1
    text_ND[:, 0] += 0.02 * class_N
    text_ND = torch.nn.functional.normalize(text_ND, dim=-1)
    torch.manual_seed(0)
    head = ClassificationHead(16, 2, hidden)
    head.fit_scale(text_ND)
    assert ((text_ND - head.centre_D) * head.scale_1).square().mean() == pytest.approx(1, rel=1e-3)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.01)
    for _ in range(100):
        loss = torch.nn.functional.cross_entropy(head(text_ND), class_N)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (head(text_ND).argmax(1) == class_N).float().mean() > 0.75
    folded = head.folded()
    feature = text_ND
    if hidden:
        feature = torch.relu(text_ND @ folded["hidden.weight"].T + folded["hidden.bias"])
    plain = torch.nn.functional.linear(feature, folded["weight"], folded["bias"])
    torch.testing.assert_close(plain, head(text_ND), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["emoji_category", "sib200"])
def test_the_shipped_configurations_are_valid(name: str) -> None:
    path = Path(__file__).parents[2] / "train" / "finetune" / f"{name}.yaml"
    assert load_config(FinetuneConfig, path).task.name == name


def test_scores_cover_every_variant_and_language(run: Path, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task", {"train.en": rows_of(right), "test.de": rows_of(right)})
    task = toy_task(folder).with_variant("upper", lambda rows: rows[:3])
    classifier, _ = fit(load_encoder(run), task, config_for(folder, epochs=1))
    outcomes = score(classifier, task)
    assert {variant: list(one) for variant, one in outcomes.items()} == {
        "clean": ["de"],
        "upper": ["de"],
    }
    assert len(outcomes["upper"]["de"].hits) == 3
