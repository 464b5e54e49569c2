"""A valid configuration is read; an invalid one is refused with a sentence that names file and field."""

from pathlib import Path
from typing import Any

import pytest
from tiny import MODEL

from mmalign.core.config import apply_override, load_config, read_yaml, validate, write_yaml
from mmalign.core.errors import UserError
from mmalign.data.recipe_config import RecipeConfig
from mmalign.data.select.rules import SelectConfig
from mmalign.evaluation.ann.config import FaissConfig
from mmalign.evaluation.suite import SuiteConfig
from mmalign.models.dual_encoder import ModelConfig
from mmalign.study.config import StudyConfig
from mmalign.text.benchmark import BenchmarkConfig
from mmalign.text.finetune import FinetuneConfig
from mmalign.text.lexical.config import LexicalInjectionConfig
from mmalign.training.run_config import RunConfig

ROOT = Path(__file__).parents[2]
KINDS = (
    "emoji_scenes, hf_dataset, img2dataset, jsonl, xm3600, xtd10, multi30k, xflickrco, flickr8k, "
    "table, wit_tsv, wit"
)
RUN: dict[str, Any] = {
    "name": "small",
    "steps": 2,
    "batch_size": 4,
    "data": {"train": ["data/x"]},
    "tokenizer": {"kind": "trained"},
    "model": MODEL,
    "optimizer": {"lr": 1e-3},
}


def recipe(**source: Any) -> dict[str, Any]:
    return {"name": "x", "source": source}


def refusal(cls: type[Any], tree: Any) -> str:
    """The message of the error for an invalid tree, without the file name."""
    with pytest.raises(UserError) as caught:
        validate(cls, tree, "x.yaml")
    message = str(caught.value)
    assert message.startswith("x.yaml: ")
    assert "\n" not in message
    return message.removeprefix("x.yaml: ")


def overridden(tree: dict[str, Any], *overrides: str) -> dict[str, Any]:
    for override in overrides:
        apply_override(tree, override)
    return tree


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stepz": 3}, "unknown key `stepz`; did you mean `steps`?"),
        (
            {"data": {"train": ["x"], "worker": 1}},
            "unknown key `data.worker`; did you mean `workers`?",
        ),
        ({"steps": "2"}, "`steps` is '2': input should be a valid integer"),
        ({"steps": True}, "`steps` is True: input should be a valid integer"),
        ({"steps": 2.0}, "`steps` is 2.0: input should be a valid integer"),
        ({"optimizer": {"lr": True}}, "`optimizer.lr` is True: input should be a valid number"),
        ({"optimizer": {"lr": "1e-3"}}, "`optimizer.lr` is '1e-3': input should be a valid number"),
        (
            {"data": {"train": "x"}},
            "`data.train` is 'x': must be a list, also of one entry: `data.train: ['x']`",
        ),
        ({"data": {"train": []}}, "`data.train` is (): list should have at least 1 item"),
        ({"data": "x"}, "`data` is 'x': must be a section of `key: value` lines"),
        (
            {"optimizer": {"lr": float("inf")}},
            "`optimizer.lr` is inf: input should be a finite number",
        ),
        ({"seed": 2**64}, "`seed` is over the largest integer of 64 bits; lower it"),
        ({"seed": -1}, "`seed` is -1: input should be greater than or equal to 0"),
        ({"data": {"train": ["x", 3]}}, "`data.train.1` is 3: input should be a valid string"),
        ({"data": {}}, "`data.train` is missing; add it"),
        (
            {"resume_from": "a", "init_from": "b"},
            "the file: give `resume_from` or `init_from`, not both",
        ),
        (
            {"tokenizer": {"kind": "pretrained"}},
            "`tokenizer`: a pretrained tokenizer needs a `name`, a trained one has none",
        ),
    ],
)
def test_an_invalid_field_is_named(changes: dict[str, Any], sentence: str) -> None:
    assert refusal(RunConfig, {**RUN, **changes}).startswith(sentence)


def test_a_number_that_is_not_finite_is_refused_where_a_part_is_kept_as_it_is() -> None:
    tree = read_yaml(ROOT / "eval" / "study_demo.yaml")
    tree["methods"]["rs_rp"]["method"]["epsilon"] = float("nan")
    assert refusal(StudyConfig, tree).startswith("`methods.rs_rp.method.epsilon` is nan: input")


def test_an_unknown_key_without_a_similar_name_lists_the_known_names() -> None:
    tree = {"name": "x", "sets": [{"name": "a", "shards": "b", "qqq": 1}]}
    assert refusal(SuiteConfig, tree) == (
        "unknown key `sets.0.qqq`; known here: languages, measures, name, protocols, sharded, shards"
    )


def test_an_unknown_key_is_reported_before_a_missing_one() -> None:
    assert refusal(SuiteConfig, {"name": "x", "set": []}) == (
        "unknown key `set`; did you mean `sets`?"
    )


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (
            {"kind": "emoji_scenes", "train_scene": 3},
            "unknown key `source.train_scene`; did you mean `train_scenes`?",
        ),
        ({"kind": "jsonl", "folder": []}, "unknown key `source.folder`; did you mean `folders`?"),
        # A field of another kind is unknown here.
        (
            {"kind": "jsonl", "train_scenes": 3},
            "unknown key `source.train_scenes`; known here: allow_outside, folders, kind",
        ),
        (
            {"kind": "emoji_scenes", "test_scenes": "3"},
            "`source.test_scenes` is '3': input should be a valid integer",
        ),
        ({"kind": "emoji_scene"}, "`source.kind` is `emoji_scene`; did you mean `emoji_scenes`?"),
        ({"kind": "parquet"}, f"`source.kind` is `parquet`; known here: {KINDS}"),
        ({"folders": []}, f"`source.kind` is missing; add one of {KINDS}"),
    ],
)
def test_messages_about_sections_of_several_kinds_leave_out_the_kind(
    source: dict[str, Any], sentence: str
) -> None:
    assert refusal(RecipeConfig, recipe(**source)) == sentence


def test_the_kind_of_a_nested_section_is_left_out_of_the_path() -> None:
    image = {"kind": "open_clip", "name": "ViT-B-32", "image_size": 32}
    assert refusal(ModelConfig, {**MODEL, "image": {**image, "pretrain": "x"}}) == (
        "unknown key `image.pretrain`; did you mean `pretrained`?"
    )
    # `pretrained` names weights for open_clip, and is a boolean for timm.
    assert validate(ModelConfig, {**MODEL, "image": {**image, "pretrained": "x"}}, "y")
    timm = {**MODEL["image"], "pretrained": "x"}
    assert refusal(RunConfig, {**RUN, "model": {**MODEL, "image": timm}}) == (
        "`model.image.pretrained` is 'x': input should be a valid boolean"
    )


def test_a_configuration_is_immutable() -> None:
    config = validate(RunConfig, RUN, "x.yaml")
    with pytest.raises(ValueError, match="frozen"):
        config.steps = 3


def test_files_are_read_as_yaml_1_2(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("languages: [no, yes, on]\nlr: 1e-3\nbig: 5E4\ncode: 010\ntime: 12:30\n")
    assert read_yaml(path) == {
        "languages": ["no", "yes", "on"],
        "lr": 0.001,
        "big": 50000.0,
        "code": 10,
        "time": "12:30",
    }


def twice(letter: int) -> bytes:
    """A line that holds the one of `letter` twice, under the next letter."""
    return b"%c: &%c [*%c, *%c]\n" % (letter + 1, letter + 1, letter, letter)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"a: [1, 2", r"not valid YAML \(line 1, column 9: expected"),
        (b"a: 1\nb: 2\na: 3\n", r"not valid YAML \(line 3, column 1: found duplicate key"),
        (b"a: 2020-13-45", r"not valid YAML \(month must be"),
        (b"a: \xff", r"not valid YAML \('utf-8' codec"),
        (b"a: !!python/name:os.system x", r"not valid YAML \(line 1, column 4: could not"),
        (b"a: &x [*x]", r"not valid YAML \(an alias"),
        (b"a: &x {b: [1, *x]}", r"not valid YAML \(an alias"),
        (
            b"a: &a [1, 2]\n"
            + b"".join(b"%c: &%c [*%c, *%c]\n" % (n + 1, n + 1, n, n) for n in range(97, 120)),
            r"not valid YAML \(an alias",
        ),
        (b"a: " + b"[" * 500, r"not valid YAML \(it is nested too deeply"),
        (b"- a\n", "must hold a mapping"),
        (b"", "must hold a mapping"),
    ],
)
def test_an_invalid_file_is_refused(tmp_path: Path, text: bytes, reason: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(text)
    with pytest.raises(UserError, match=rf"x\.yaml: {reason}") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such file"):
        load_config(RunConfig, tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match="no such file"):
        load_config(RunConfig, tmp_path)


def test_overrides_replace_values_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(write_yaml(RUN))
    config = load_config(
        RunConfig,
        path,
        [
            "optimizer.lr=5e-4",
            "data.languages=[no, sw]",
            "data.workers=0",
            "log.every=3",
            "name=no",
        ],
    )
    assert config.optimizer.lr == 0.0005
    assert config.data.languages == ("no", "sw")
    assert config.log.every == 3  # a section that the file does not have
    assert config.name == "no"
    with pytest.raises(UserError, match=r"x\.yaml: unknown key `optimizer\.l`; did you mean `lr`"):
        load_config(RunConfig, path, ["optimizer.l=1"])


def test_overrides_reach_into_lists_and_make_sections() -> None:
    tree = {
        "sets": [{"name": "a", "shards": "x"}, {"name": "b"}],
        "languages": ["en", "sw"],
        "none": None,
    }
    overridden(
        tree, "sets.0.shards=y", "sets.1.more.deep=1", "languages.1=no", "none.a=2", "new.a.b=c=d"
    )
    assert tree == {
        "sets": [{"name": "a", "shards": "y"}, {"name": "b", "more": {"deep": 1}}],
        "languages": ["en", "no"],
        "none": {"a": 2},
        "new": {"a": {"b": "c=d"}},
    }
    assert overridden({"a": 1}, "a=") == {"a": None}
    assert overridden({"a": 1}, "a={b: [1, x]}") == {"a": {"b": [1, "x"]}}


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("name", "write it as `section.key=value`"),
        ("=3", "write it as `section.key=value`"),
        ("a..b=3", "write it as `section.key=value`"),
        ("name=[1", "the value is not valid YAML"),
        ("name=2020-13-45", "the value is not valid YAML"),
        ("name.first=x", "`name` is not a section"),
        ("sets.2.name=x", "`sets` is a list of 1, counted from 0"),
        ("sets.1=x", "`sets` is a list of 1, counted from 0"),
        ("sets.first.name=x", "`sets` is a list of 1, counted from 0"),
        ("sets.²=x", "`sets` is a list of 1, counted from 0"),
        ("sets.0.name.x=1", "`sets.0.name` is not a section"),
    ],
)
def test_an_invalid_override_is_reported(override: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        apply_override({"name": "x", "sets": [{"name": "a"}]}, override)
    assert str(caught.value) in (
        f"override `{override}`: {reason}",
        f"override `{override.partition('=')[0]}`: {reason}",
    )


def test_a_written_tree_is_read_back_in_the_same_order(tmp_path: Path) -> None:
    tree = {
        "z": ["no", "1e-3", "null", "", " x "],
        "a": {"y": 1e-05, "x": None, "w": True, "long": "word " * 60 + " two  spaces"},
        "語": "ñ: # not a comment\nsecond line",
        "empty": [],
    }
    path = tmp_path / "x.yaml"
    path.write_text(write_yaml(tree), encoding="utf-8")
    read = read_yaml(path)
    assert read == tree
    assert list(read) == list(tree)
    assert list(read["a"]) == list(tree["a"])


def test_a_resolved_configuration_equals_the_original(tmp_path: Path) -> None:
    config = validate(RunConfig, RUN, "x.yaml")
    path = tmp_path / "config.yaml"
    path.write_text(write_yaml(config.model_dump(mode="json")), encoding="utf-8")
    assert load_config(RunConfig, path) == config


def shipped() -> list[tuple[Path, type[Any]]]:
    """Every YAML file beside the package, with the class that reads it."""
    classes: dict[str, type[Any]] = {
        "train/finetune/lexical_": LexicalInjectionConfig,
        "train/finetune": FinetuneConfig,
        "train": RunConfig,
        "eval/study_": StudyConfig,
        "eval/faiss": FaissConfig,
        "eval/xtreme_r": BenchmarkConfig,
        "eval/glue_x": BenchmarkConfig,
        "eval": SuiteConfig,
        "data_recipes/rules": SelectConfig,
        "data_recipes": RecipeConfig,
    }
    folders = (ROOT / "train", ROOT / "eval", ROOT / "data_recipes")
    paths = sorted(path for folder in folders for path in folder.rglob("*.yaml"))
    relative = [path.relative_to(ROOT) for path in paths]
    return [
        (path, next(cls for start, cls in classes.items() if path.as_posix().startswith(start)))
        for path in relative
    ]


@pytest.mark.parametrize(("path", "cls"), shipped(), ids=str)
def test_every_shipped_file_is_valid(path: Path, cls: type[Any]) -> None:
    load_config(cls, ROOT / path)


def test_every_kind_of_file_is_shipped() -> None:
    classes = (SuiteConfig, BenchmarkConfig, FaissConfig, StudyConfig, LexicalInjectionConfig)
    assert {cls for _, cls in shipped()} == {
        RunConfig,
        RecipeConfig,
        SelectConfig,
        FinetuneConfig,
        *classes,
    }


def test_an_alias_that_is_used_twice_is_valid(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: &x [1, 2]\nb: [*x, *x]\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}


def test_a_negative_seed_of_a_recipe_is_refused() -> None:
    assert "`seed` is -1" in refusal(RecipeConfig, {**recipe(kind="emoji_scenes"), "seed": -1})
