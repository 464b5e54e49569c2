"""One fine-tuning on towers small enough to know what must come out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import text_tasks
import torch
from text_tasks import fit_config

from mmalign.core.errors import UserError
from mmalign.models.encoder import weights_sha256
from mmalign.models.text_encoder import TextEncoder
from mmalign.text.fit import _new_model, fit
from mmalign.text.fit_loop import Fitted, Training, _build_optimizer
from mmalign.text.scores import hits
from mmalign.text.tasks.task import Example, Task

WORDS = ("red ball", "dog", "green chair", "a cat", "0123", "and sleeps", "Hund", "ein Ball")
LABELS = ("thing", "animal")
HOW = ("head", "lora", "all")


def rows(lang: str, right: bool = True, words: tuple[str, ...] = WORDS) -> list[Example]:
    """Every second word is an animal; or the other way round."""
    return [Example(str(i), lang, (w,), LABELS[(i + (not right)) % 2]) for i, w in enumerate(words)]


def task_of(**fields: Any) -> Task:
    """English rows to train on, tested on the same words under another name."""
    return text_tasks.task_of("classification", fields.pop("train", rows("en")), **fields)


def accuracy(fitted: Fitted, examples: list[Example]) -> float:
    predicted = [str(one) for one in fitted.model.predict(examples)]
    return float(hits([str(one.target) for one in examples], predicted).mean())


@pytest.mark.parametrize("trainable", HOW)
def test_it_learns_and_the_tower_given_stays_as_it_is(tower: TextEncoder, trainable: str) -> None:
    assert tower.projection is not None
    before, projection = weights_sha256(tower), tower.projection.weight.detach().clone()
    names = list(tower.state_dict())
    fitted = fit(tower, task_of(), fit_config(trainable=trainable), seed=0)
    assert accuracy(fitted, rows("en")) == 1.0
    assert weights_sha256(tower) == before
    after = fitted.model.tower
    assert list(after.state_dict()) == names  # no adapters left
    assert (weights_sha256(after) == before) == (trainable == "head")
    assert after.projection is not None
    assert torch.equal(after.projection.weight, projection) == (trainable != "all")
    assert not fitted.model.training


@pytest.mark.parametrize("trainable", ["lora", "all"])
def test_a_seed_decides_everything(tower: TextEncoder, trainable: str) -> None:
    def weights(seed: int) -> str:
        torch.rand(3)  # whatever was drawn before
        config = fit_config(trainable=trainable, hidden=8, epochs=3)
        return weights_sha256(fit(tower, task_of(), config, seed).model)

    first = weights(0)
    assert weights(0) == first != weights(1)


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_the_check_that_is_best_on_dev_is_kept(tower: TextEncoder, trainable: str) -> None:
    # Dev rows with the wrong labels: the better the training rows are learnt, the worse these are.
    task = task_of(dev={"en": rows("en", right=False)})
    fitted = fit(tower, task, fit_config(trainable=trainable, head_lr=0.03), seed=0)
    curve = fitted.history["dev"]
    assert len(curve) == 40
    assert max(curve) > curve[-1] == 0.0
    kept = fitted.history["kept_step"]
    assert curve[kept // 2 - 1] == max(curve)  # two steps an epoch, a check after each epoch
    assert accuracy(fitted, task.dev["en"]) == max(curve) == fitted.kept()["dev"]


def test_without_dev_the_last_step_is_kept(tower: TextEncoder) -> None:
    # Dev rows of another language are for the oracle only.
    task = task_of(dev={"de": rows("de", right=False)})
    fitted = fit(tower, task, fit_config(epochs=7), seed=0)
    assert fitted.history["steps"] == fitted.history["kept_step"] == 14
    assert "dev" not in fitted.history
    assert "dev" not in fitted.kept()
    assert fitted.history["train_loss"][-1] < fitted.history["train_loss"][0]
    assert fitted.kept()["train_loss"] == fitted.history["train_loss"][-1]


FINE = ("yes", "perhaps", "no")
MERGE = {"perhaps": "not_yes", "no": "not_yes"}


def in_three_classes(lang: str, merged: bool = False) -> list[Example]:
    labels = (FINE[i % 3] for i in range(len(WORDS)))
    named = (MERGE.get(label, label) if merged else label for label in labels)
    return [Example(str(i), lang, (WORDS[i],), label) for i, label in enumerate(named)]


def test_labels_that_tests_merge_are_compared_as_they_are_on_dev(tower: TextEncoder) -> None:
    """HANS knows two of the labels of MNLI, on whose dev rows three are right."""
    parts = {"train": in_three_classes("en"), "tests": {"de": in_three_classes("de", True)}}
    config = fit_config(patience=5, oracle=True)
    dev = {"en": in_three_classes("en"), "de": in_three_classes("de", True)}
    merged, plain = (
        fit(tower, task_of(**parts, dev=dev, merge=merge), config, seed=0) for merge in (MERGE, {})
    )
    assert max(merged.history["dev"]) == 1.0
    assert merged.history == plain.history
    assert weights_sha256(merged.model) == weights_sha256(plain.model)
    # German dev rows have the labels of the tests.
    assert np.mean(merged.oracle["de"].values["accuracy"]) == 1.0
    coarse = task_of(**parts, dev={"en": in_three_classes("en", True)}, merge=MERGE)
    assert max(fit(tower, coarse, fit_config(), seed=0).history["dev"]) == 1.0


def test_a_kept_fit_depends_on_merge_only_where_dev_is_coarse(
    tower: TextEncoder, tmp_path: Path
) -> None:
    parts = {"train": in_three_classes("en"), "tests": {"de": in_three_classes("de", True)}}
    for merged, expected in ((False, 1), (True, 2)):
        dev = {"en": in_three_classes("en", merged)}
        for merge in (MERGE, {"no": "not_yes"}):
            task = task_of(**parts, dev=dev, merge=merge)
            fit(tower, task, fit_config(epochs=1), seed=0, fits=tmp_path / str(merged))
        assert len([*(tmp_path / str(merged)).iterdir()]) == expected


def test_of_equal_checks_the_one_with_the_lower_loss_is_kept(tower: TextEncoder) -> None:
    fitted = fit(tower, task_of(dev={"en": rows("en")}), fit_config(), seed=0)
    curve = fitted.history["dev"]
    assert curve.count(1.0) > 10
    # The first check with 1.0 came long before; the loss on the learnt rows falls to the end.
    assert fitted.history["kept_step"] > 2 * (curve.index(1.0) + 10)


@pytest.mark.parametrize(("checks", "expected"), [(1, 2), (2, 4), (3, 8)])
def test_checks_within_an_epoch(tower: TextEncoder, checks: int, expected: int) -> None:
    """Two epochs of four steps; three checks would fall between steps, and are one a step."""
    task = task_of(dev={"en": rows("en")})
    fitted = fit(tower, task, fit_config(epochs=2, batch_size=2, checks=checks), seed=0)
    assert fitted.history["steps"] == 8
    assert len(fitted.history["dev"]) == len(fitted.history["train_loss"]) == expected


def test_looking_at_dev_does_not_change_training(tower: TextEncoder) -> None:
    """Neither the order of the rows nor dropout depend on how often dev is looked at."""
    config = fit_config(trainable="all", epochs=2, batch_size=2)
    often = config.model_copy(update={"checks": 4})
    first, second = (fit(tower, task_of(), one, seed=0) for one in (config, often))
    assert weights_sha256(first.model) == weights_sha256(second.model)


def test_the_last_step_is_checked_though_no_check_falls_on_it(tower: TextEncoder) -> None:
    task = task_of(train=rows("en", words=(*WORDS, "mpira")), dev={"en": rows("en")})
    fitted = fit(tower, task, fit_config(epochs=1, batch_size=2, checks=2), seed=0)  # 5 steps
    assert fitted.history["steps"] == 5
    assert len(fitted.history["dev"]) == 3  # after 2, 4 and 5


def test_the_oracle_takes_each_languages_own_best_check(tower: TextEncoder) -> None:
    dev = {
        "en": rows("en", right=False),
        "de": rows("de"),
        "sw": rows("sw", right=False),
        "fr": rows("fr"),
    }
    tests = {lang: dev[lang] for lang in ("en", "de", "sw")} | {"yo": rows("yo")}
    config = fit_config(oracle=True, epochs=20, head_lr=0.06)
    fitted = fit(tower, task_of(dev=dev, tests=tests), config, seed=0)
    # Neither the source, nor a language without tests or without dev.
    found = {lang: np.mean(one.values["accuracy"]) for lang, one in fitted.oracle.items()}
    assert list(found) == ["de", "sw"]
    for lang, value in found.items():  # tested on the very rows that chose
        assert value >= accuracy(fitted, tests[lang])
    assert found["de"] == 1.0 > accuracy(fitted, tests["de"])
    assert not fit(tower, task_of(dev=dev), fit_config(epochs=1), seed=0).oracle


def test_repeats_are_as_many_steps_as_copies(tower: TextEncoder, tmp_path: Path) -> None:
    neighbours = tmp_path / "neighbours.tsv"
    neighbours.write_text("word\tneighbours\ndog\tcat\n", encoding="utf-8")
    copies = {"kind": "rs_da", "neighbours": str(neighbours), "copies": 3}
    repeated = fit(tower, task_of(), fit_config(epochs=2, repeats=3), seed=0)
    copied = fit(tower, task_of(), fit_config(epochs=2, augment=copies), seed=0)
    assert repeated.history["steps"] == copied.history["steps"] == 2 * 3 * 2
    assert len(repeated.history["train_loss"]) == 2  # a check an epoch, however long


def test_a_view_that_changes_no_row_is_an_error_before_training(
    tower: TextEncoder, tmp_path: Path
) -> None:
    (tmp_path / "en-de.tsv").write_text("en\ttranslation\ndog\tHund\n", encoding="utf-8")
    view = {"kind": "code_switch", "dictionaries": str(tmp_path)}
    config = fit_config(epochs=2, method={"kind": "consistency", "view": view})
    # Batches of four rows: some have no English ones.
    mixed = [*rows("sw"), *rows("en")]
    assert fit(tower, task_of(train=mixed), config, seed=0).model.source == "en"
    with pytest.raises(UserError, match="no dictionary leads from `sw`, `yo` to"):
        fit(tower, task_of(train=[*rows("sw"), *rows("yo")]), config, seed=0)


def test_the_learning_rates_are_those_of_head_and_tower(tower: TextEncoder) -> None:
    """One step of AdamW without decay moves no number by more than its learning rate."""
    config = fit_config(
        trainable="all", epochs=1, batch_size=8, warmup=0, weight_decay=0, lr=1e-4, head_lr=1e-2
    )
    fitted = fit(tower, task_of(train=rows("en") * 2), config, seed=0)  # two steps: 1 and 1/2
    moved = [
        (new - old).abs().max().item()
        for new, old in zip(fitted.model.tower.parameters(), tower.parameters(), strict=True)
    ]
    assert 0 < max(moved) <= 1.6e-4
    head = fitted.model.head.state_dict()["output.weight"]  # starts at zero
    assert 1e-3 < head.abs().max().item() <= 1.6e-2


def test_auto_is_fp32_bit_for_bit_where_the_device_does_not_multiply_bf16(
    tower: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmalign.core.precision.multiplies_bf16", lambda: False)
    configs = (fit_config(trainable="all", epochs=2, precision=one) for one in ("auto", "fp32"))
    auto, fp32 = (fit(tower, task_of(), one, seed=0) for one in configs)
    assert weights_sha256(auto.model) == weights_sha256(fp32.model)
    assert auto.kept()["precision"] == "fp32"


@pytest.mark.parametrize("trainable", HOW)
def test_bf16_is_for_the_encoder_in_training_alone(tower: TextEncoder, trainable: str) -> None:
    passes: set[tuple[bool, bool]] = set()  # in training mode, under autocast
    tower.trunk.register_forward_pre_hook(
        lambda module, _: passes.add((module.training, torch.is_autocast_enabled("cpu")))
    )
    task = task_of(dev={"en": rows("en")})
    fp32, bf16 = (
        fit(tower, task, fit_config(trainable=trainable, epochs=2, precision=one), seed=0)
        for one in ("fp32", "bf16")
    )
    trains = trainable != "head"
    assert ((True, True) in passes) == trains and (False, True) not in passes
    assert bf16.kept()["precision"] == ("bf16" if trains else "fp32")
    assert all(one.dtype == torch.float32 for one in bf16.model.parameters())
    pairs = zip(fp32.model.parameters(), bf16.model.parameters(), strict=True)
    apart = max((one - other).abs().max().item() for one, other in pairs)
    assert 0 < apart < 0.1 if trains else apart == 0


def test_training_that_diverges_is_an_error(tower: TextEncoder) -> None:
    config = fit_config(trainable="all", lr=1e30, epochs=4)
    with pytest.raises(UserError, match="lower `lr` or `head_lr`"):
        fit(tower, task_of(), config, seed=0)


@pytest.mark.parametrize("trainable", HOW)
def test_a_tower_whose_vectors_are_no_numbers_is_not_trained(
    tower: TextEncoder, trainable: str
) -> None:
    next(tower.parameters()).data.fill_(torch.nan)
    with pytest.raises(UserError, match=r"run.*: its vectors are not finite"):
        fit(tower, task_of(), fit_config(trainable=trainable), seed=0)


def test_a_frozen_part_of_the_trunk_stays_as_it_was(tower: TextEncoder) -> None:
    before = {name: p.detach().clone() for name, p in tower.trunk.named_parameters()}

    def changed(**fields: Any) -> set[str]:
        fitted = fit(tower, task_of(), fit_config(trainable="all", epochs=1, **fields), seed=0)
        trunk = fitted.model.tower.trunk
        return {n for n, p in trunk.named_parameters() if not torch.equal(p, before[n])}

    everything = changed()
    assert any("embeddings" in name for name in everything)
    blocks = tower.trunk.config.num_hidden_layers
    for frozen in range(blocks + 1):
        below = (*(f"layer.{i}." for i in range(frozen)), "embeddings")
        wanted = {name for name in everything if not any(part in name for part in below)}
        assert changed(frozen_layers=frozen) == wanted
        assert bool(wanted) == (frozen < blocks)


def test_layers_further_down_learn_more_slowly(tower: TextEncoder) -> None:
    def rates(decay: float) -> dict[str, float]:
        model = _new_model(tower, task_of(), fit_config(trainable="all"))
        optimizer, _ = _build_optimizer(model, 1, fit_config(lr=0.5, layer_decay=decay, warmup=0))
        rate_of = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
        return {name: rate_of[id(p)] for name, p in model.named_parameters()}

    blocks = tower.trunk.config.num_hidden_layers
    flat, found = rates(1.0), rates(0.5)
    for name, rate in found.items():
        parts = name.split(".")
        steps = blocks if "embeddings" in parts else 0
        if "layer" in parts:
            steps = blocks - 1 - int(parts[parts.index("layer") + 1])
        assert rate == pytest.approx(flat[name] * 0.5**steps), name


def test_training_stops_when_dev_gets_no_better(tower: TextEncoder) -> None:
    # Dev rows with the wrong labels: the better the training rows are learnt, the worse these are.
    task = task_of(dev={"en": rows("en", right=False)})
    whole = fit(tower, task, fit_config(head_lr=0.03), seed=0)
    early = fit(tower, task, fit_config(head_lr=0.03, patience=3), seed=0)
    kept = whole.history["kept_step"]
    assert early.history["kept_step"] == kept
    assert early.history["steps"] == kept + 3 * 2 < whole.history["steps"]  # two steps per check
    assert weights_sha256(early.model) == weights_sha256(whole.model)


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_parts_of_a_batch_add_up_to_its_gradient(
    tower: TextEncoder, micro_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gradients(size: int | None) -> list[torch.Tensor]:
        """Of the first step, and its loss."""
        config = fit_config(trainable="all", batch_size=7, micro_batch=size)
        model = _new_model(tower, task_of(), config)
        model.prepare(rows("en"))
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0  # drawn anew in every part
        torch.nn.init.normal_(model.head.output.weight, generator=torch.manual_seed(0))
        training = Training(model, task_of(), config, 0, {})
        for name in ("_optimizer.step", "_optimizer.zero_grad", "_schedule.step"):
            owner, method = name.split(".")
            monkeypatch.setattr(getattr(training, owner), method, lambda: None)
        training._step(rows("en")[:7])
        found = [one.grad for one in model.parameters() if one.grad is not None]
        return [torch.tensor(training._losses), *found]

    for parts, together in zip(gradients(micro_batch), gradients(None), strict=True):
        torch.testing.assert_close(parts, together, atol=1e-6, rtol=1e-4)


def test_classes_can_weigh_the_same(tower: TextEncoder) -> None:
    few = rows("en")[:5]  # three things, two animals
    model = _new_model(tower, task_of(train=few), fit_config(class_weights="balanced"))
    batch = model.collate(few)
    logits = torch.zeros(5, 2, device=tower.device)
    losses = model.losses(logits, batch)
    lacking = _new_model(
        tower, replace(task_of(), train=few[:1]), fit_config(class_weights="balanced")
    )
    assert torch.isfinite(lacking.losses(logits, batch)).all()
    by_class = {label: losses[[one.target == label for one in few]].sum() for label in LABELS}
    torch.testing.assert_close(by_class["thing"], by_class["animal"])
    torch.testing.assert_close(losses.mean(), torch.tensor(2.0).log())
    scores = [Example(str(i), "en", ("a", "b"), float(i)) for i in range(3)]
    with pytest.raises(UserError, match="`class_weights` are for classification, not similarity"):
        task = text_tasks.task_of("similarity", scores)
        _new_model(tower, task, fit_config(class_weights="balanced"))


def test_texts_can_be_cut_earlier_than_by_the_tower(tower: TextEncoder) -> None:
    long = [Example("0", "en", ("a b c d e f g h i j k l m n o p",), "thing"), *rows("en")]
    before = tower.max_length
    model = fit(tower, task_of(train=long), fit_config(max_length=8, epochs=1), seed=0).model
    assert model.collate(long).tokens.token_NL.shape[1] == 8 == model.tower.max_length
    assert tower.max_length == before > 8
    # Also where nothing is trained.
    retrieval = text_tasks.task_of("retrieval", [], candidates={"de": rows("de")})
    fitted = fit(tower, retrieval, fit_config(max_length=8, precision="fp32"), seed=0)
    assert fitted.model.tower.max_length == 8 and fitted.model.tower.precision == "fp32"
    assert tower.max_length == before and tower.precision == "auto"


def test_a_fixed_tower_encodes_in_float32_and_says_so(tower: TextEncoder) -> None:
    for trainable, precision in (("head", "fp32"), ("all", "auto")):
        config = fit_config(trainable=trainable, epochs=1, precision="auto")
        model = fit(tower, task_of(), config, seed=0).model
        assert model.tower.precision == precision
