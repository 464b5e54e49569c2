"""Data sets of the library `datasets`, on disk and by a stand-in for the hub, as tasks."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.text.tasks.datasets import DatasetConfig
from mmalign.text.tasks.read import TaskConfig, read_task
from mmalign.text.tasks.task import Example

NAMES = ["entailment", "neutral", "contradiction"]


def table(words: str, count: int = 3, **columns: Any) -> datasets.Dataset:
    features = datasets.Features(
        {
            "premise": datasets.Value("string"),
            "hypothesis": datasets.Value("string"),
            "label": datasets.ClassLabel(names=NAMES),
            **{name: datasets.Value("string") for name in columns},
        }
    )
    rows = {
        "premise": [f"{words} one {i}" for i in range(count)],
        "hypothesis": [f"{words} two {i}" for i in range(count)],
        "label": [i % 3 for i in range(count)],
        **columns,
    }
    return datasets.Dataset.from_dict(rows, features=features)


def splits(lang: str) -> datasets.DatasetDict:
    return datasets.DatasetDict({"train": table(lang), "validation": table(lang, 2)})


def config(folder: Path | str, **fields: Any) -> TaskConfig:
    hf = {"texts": ["premise", "hypothesis"], **fields}
    return validate(TaskConfig, {"name": "nli", "folder": str(folder), "hf": hf}, "test")


def test_a_folder_per_language_as_save_to_disk_writes_it(tmp_path: Path) -> None:
    for lang in ("en", "sw", "zh_CN"):
        splits(lang).save_to_disk(str(tmp_path / lang))
    task = read_task(config(tmp_path))
    assert task.labels == tuple(sorted(NAMES))
    assert task.train[1] == Example("train-2", "en", ("en one 1", "en two 1"), "neutral")
    assert set(task.tests) == {"sw", "zh-CN"} and len(task.dev["en"]) == 2
    assert task.tests["sw"][0].id == task.dev["en"][0].id  # aligned by row


def test_parquet_files_with_a_column_of_languages_and_of_ids(tmp_path: Path) -> None:
    ids, langs = ["a", "b", "c"], ["en", "en", "de"]
    train = table("x", id=ids, lang=["en"] * 3)
    test = table("y", id=ids, lang=langs).add_item(
        {"premise": "?", "hypothesis": "?", "label": -1, "id": "d", "lang": "de"}
    )
    train.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    test.select([0, 1]).to_parquet(tmp_path / "test-00000-of-00002.parquet")
    test.select([2, 3]).to_parquet(tmp_path / "test-00001-of-00002.parquet")
    task = read_task(config(tmp_path, language="lang", id="id"))
    assert [one.id for one in task.tests["de"]] == ["c"]  # `d` has no label
    assert [one.id for one in task.tests["en"]] == ["a", "b"]


def test_a_name_on_the_hub_has_a_configuration_per_language(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    def load(name: str, one: str | None, revision: str | None) -> datasets.DatasetDict:
        asked.append((name, one, revision))
        return splits(one or "en")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(
        datasets, "get_dataset_config_names", lambda name, revision: ["en", "sw", "all_languages"]
    )
    task = read_task(config("owner/xnli", revision="abc"))
    assert asked == [("owner/xnli", "en", "abc"), ("owner/xnli", "sw", "abc")]
    assert set(task.tests) == {"sw"} and len(task.train) == 3


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    splits("en").save_to_disk(str(tmp_path / "en"))
    with pytest.raises(UserError, match=r"en/train: has no column `question`; it has premise, "):
        read_task(config(tmp_path, texts=["question"]))
    (tmp_path / "en" / "train" / "data-00000-of-00001.arrow").write_bytes(b"nothing")
    with pytest.raises(UserError, match="datasets cannot read it"):
        read_task(config(tmp_path))
    with pytest.raises(UserError, match="texts"):
        validate(DatasetConfig, {"texts": []}, "test")
