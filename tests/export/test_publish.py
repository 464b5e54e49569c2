"""A push publishes the finished export, changes nothing here, and its licence is checked before it begins."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from export_cases import files_of
from hub_server import OWNER, Hub
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from mmalign.cli import app
from mmalign.core.commit import MANIFEST, sha256_of
from mmalign.export.build import model_name
from mmalign.export.licenses import check_license, warn_about_data, write_notice

NAME = f"{OWNER}/space-of-texts"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["export", *arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["export", *arguments])
    assert result.exit_code == 1, result.output
    return str(result.exception)


@pytest.fixture
def model(exported: Any, tmp_path: Path) -> Path:
    """A run with a finished export in three formats, which the test may change."""
    return Path(shutil.copytree(exported.run, tmp_path / "run"))


def test_a_dry_run_writes_nothing_and_lists_every_format(
    model: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = model.parent / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = files_of(model.parent)
    output = run(str(model), "--push", NAME, "--dry-run")
    assert files_of(model.parent) == before and not list(scratch.iterdir())
    assert hub.requests == []
    listed = {line.split()[-1]: line.split()[0] for line in output.splitlines() if "  " in line}
    assert listed.keys() == files_of(model / "export").keys()
    # What is published differs from the folder only in the name that it has on the hub.
    differ = {name for name in listed if listed[name] != sha256_of(model / "export" / name)}
    assert differ == {"open_clip_config.json", "README.md", MANIFEST}


def test_a_push_publishes_the_finished_folder_under_its_name(model: Path, hub: Hub) -> None:
    before = files_of(model / "export")
    run(str(model), "--push", NAME, "--license", "apache-2.0")
    assert files_of(model / "export") == before
    repo = hub.repos[NAME]
    assert len(repo.commits) == 2  # the first is the hub's own
    files = {name: data for name, data in repo.files.items() if name != ".gitattributes"}
    assert files.keys() == before.keys()
    assert json.loads(files[MANIFEST])["formats"] == ["sentence-transformers", "open_clip", "onnx"]
    config = json.loads(files["open_clip_config.json"])["model_cfg"]
    assert config["text_cfg"]["hf_model_name"] == config["text_cfg"]["hf_tokenizer_name"] == NAME
    assert config["vision_cfg"]["timm_model_name"] == f"hf-hub:{NAME}"
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert card.text.lstrip().startswith("# space-of-texts\n")
    assert f'SentenceTransformer("{NAME}")' in card.text
    for name, data in files.items():
        assert b"pytest-of-" not in data, name  # a path of this machine


@pytest.mark.usefixtures("in_this_process")
def test_what_the_folder_does_not_hold_is_exported_elsewhere(model: Path, hub: Hub) -> None:
    # One format of three, and a folder of other weights.
    before = files_of(model / "export")
    assert "exported to a temporary folder" in run(
        str(model), "--push", NAME, "--format", "sentence-transformers"
    )
    assert files_of(model / "export") == before
    assert "open_clip_config.json" not in hub.repos[NAME].files
    manifest = model / "export" / MANIFEST
    facts = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps({**facts, "model_sha256": "0" * 64}), encoding="utf-8")
    assert "exported to a temporary folder" in run(str(model), "--push", NAME)
    pushed = json.loads(hub.repos[NAME].files[MANIFEST])
    assert pushed["model_sha256"] == facts["model_sha256"]
    # Files of version 0.1 have other names than the card says.
    manifest.write_text(json.dumps(facts), encoding="utf-8")
    lineage = model / "export/lineage.json"
    tree = json.loads(lineage.read_text(encoding="utf-8"))
    tree["exported_by"]["version"] = "0.1.0"
    lineage.write_text(json.dumps(tree), encoding="utf-8")
    assert "exported to a temporary folder" in run(str(model), "--push", NAME)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--license", "Foo Bar!"], "--license 'Foo Bar!': not an identifier of the hub"),
        (["--license", "Apache 2.0"], "(such as apache-2.0); the list is at"),
        (["--license", "other"], "give its --license-name and --license-link too"),
        (["--license-name", "mine"], "belong to --license other"),
        (
            ["--license", "other", "--license-name", "My Own", "--license-link", "x"],
            "small letters",
        ),
        (["--license", "other", "--license-name", "my", "--license-link", "x"], "not a URL"),
        (
            ["--license", "other", "--license-name", "my", "--license-link", "https://a.b/c)"],
            "not a",
        ),
    ],
)
def test_a_licence_that_the_hub_does_not_know_is_refused_before_the_work(
    arguments: list[str], sentence: str, tmp_path: Path
) -> None:
    assert sentence in refused(str(tmp_path / "missing"), *arguments)


def test_another_licence_has_a_name_and_a_link(model: Path, hub: Hub) -> None:
    other = ["--license-name", "my-own", "--license-link", "https://example.org/licence"]
    run(str(model), "--push", NAME, "--license", "other", *other)
    card = ModelCard(hub.repos[NAME].files["README.md"].decode())
    assert (card.data.license, card.data.license_name) == ("other", "my-own")
    assert card.data.license_link == "https://example.org/licence"
    assert "- Licence: [my-own](https://example.org/licence)." in card.text


def test_a_push_keeps_the_licence_of_the_folder(model: Path, hub: Hub) -> None:
    card = model / "export/README.md"
    text = card.read_text(encoding="utf-8").replace("---\n", "---\nlicense: mit\n", 1)
    card.write_text(text, encoding="utf-8")
    facts = json.loads((model / "export" / MANIFEST).read_text(encoding="utf-8"))
    facts["files"]["README.md"] = {"size": card.stat().st_size, "sha256": sha256_of(card)}
    (model / "export" / MANIFEST).write_text(json.dumps(facts), encoding="utf-8")
    run(str(model), "--push", NAME)
    assert ModelCard(hub.repos[NAME].files["README.md"].decode()).data.license == "mit"


def data_set(name: str, licenses: dict[str, int], **more: Any) -> dict[str, Any]:
    return {"name": name, "split": "train", "manifest_sha256": name, "licenses": licenses, **more}


@pytest.mark.parametrize(
    ("license", "said"),
    [
        (None, ["no --license"]),
        (
            "apache-2.0",
            ["share-alike (CC-BY-SA-4.0)", "non-commercial (free for non-commercial use)"],
        ),
        ("cc-by-sa-4.0", ["non-commercial (free for non-commercial use)"]),
        ("cc-by-nc-sa-4.0", []),
    ],
)
def test_conditions_of_the_data_that_the_licence_does_not_meet_are_said(
    license: str | None, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    parent = {"data": [data_set("photos", {"free for non-commercial use": 3})]}
    lineage = {"data": [data_set("drawings", {"CC-BY-SA-4.0": 2, "CC0-1.0": 1})], "parent": parent}
    warn_about_data(lineage, check_license(license, None, None))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(said)
    for line, words in zip(lines, said, strict=True):
        assert words in line
    if license is None:
        assert (
            "CC-BY-SA-4.0 (share-alike); free for non-commercial use (non-commercial)" in lines[0]
        )


def test_the_authors_of_the_data_are_named_where_their_licence_asks_for_it(tmp_path: Path) -> None:
    drawings = data_set("drawings", {"CC-BY-SA-4.0": 2}, attributions={"OpenMoji, openmoji.org": 2})
    photos = data_set("photos", {"CC-BY-2.0": 3})
    write_notice({"data": [drawings, data_set("free", {"CC0-1.0": 4})]}, tmp_path)
    text = (tmp_path / "NOTICE").read_text(encoding="utf-8")
    assert "drawings, train" in text and "2 images: OpenMoji, openmoji.org" in text
    assert "free" not in text and "sample by sample" not in text
    write_notice({"data": [photos]}, tmp_path)
    assert "sample by sample" in (tmp_path / "NOTICE").read_text(encoding="utf-8")
    (tmp_path / "none").mkdir()
    write_notice({"data": [data_set("free", {"CC0-1.0": 4})]}, tmp_path / "none")
    assert not list((tmp_path / "none").iterdir())


def test_a_model_has_the_name_of_its_run_and_of_its_task(tmp_path: Path) -> None:
    for path, name in (
        ("runs/demo", "demo"),
        ("runs/demo/checkpoints/step-000000010", "demo"),
        ("runs/demo/finetune/category", "demo-category"),
        ("runs/demo/finetune/category/seed-1/tower", "demo-category"),
    ):
        assert model_name(tmp_path / path) == name
