"""One folder in several formats: whole, verified, replaceable, or not there at all."""

import json
from pathlib import Path

import numpy as np
import pytest
from export_cases import build_encoder, source_of
from tiny import TEXTS, tiny_run
from typer.testing import CliRunner

import mmalign
from mmalign import cli
from mmalign.core.commit import verify, write_json
from mmalign.core.errors import UserError
from mmalign.export import build
from mmalign.export.build import FORMATS, export, write_files
from mmalign.export.sentence_transformers import write_sentence_transformers
from mmalign.export.source import Source
from mmalign.models.encoder import load_encoder
from mmalign.results.results import Results

SHARED = ("sentence-transformers", "open_clip", "onnx")


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the processes of the other libraries; `test_verify.py` and the first test here start them."""
    monkeypatch.setattr(build, "verify_export", lambda source, folder, formats: {})


def test_a_run_leaves_in_three_formats_and_comes_back_from_each(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run")
    arguments = [item for name in SHARED for item in ("--format", name)]
    result = CliRunner().invoke(cli.app, ["export", str(run), *arguments])
    assert result.exit_code == 0, result.output
    for library in (
        "sentence-transformers",
        "transformers (AutoModel)",
        "open_clip",
        "ONNX Runtime",
    ):
        assert f"{library} loads it: its vectors differ from ours by at most " in result.output
    out = run / "export"
    assert verify(out)["formats"] == list(SHARED)
    assert not list(out.glob(".*"))
    expected = load_encoder(run).encode_texts(TEXTS)
    for prefix in ("sentence-transformers:", "open_clip:", "onnx:", ""):
        theirs = mmalign.load(f"{prefix}{out}").encode_texts(TEXTS)
        assert np.abs(theirs - expected).max() <= 1e-5, prefix
    assert np.abs(mmalign.load(str(run)).encode_texts(TEXTS) - expected).max() == 0


@pytest.mark.usefixtures("unverified")
def test_the_same_run_gives_the_same_bytes_and_nothing_of_the_machine(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run")
    results = Results(suite="s", model={"path": "/home/someone/run", "sha256": _sha256(run)})
    results.add("retrieval/scenes/pt-BR/text_to_image/recall@1", 0.25, count=40)
    (run / "eval/s").mkdir(parents=True)
    results.write(run / "eval/s/results.json")
    for name in ("first", "again"):
        export(run, tmp_path / name, SHARED, "apache-2.0", "someone/model")
    first, again = verify(tmp_path / "first"), verify(tmp_path / "again")
    assert first == again
    files = [path for path in (tmp_path / "first").rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl", ".py")]
    for path in files:
        held = path.read_bytes()
        for trace in (str(tmp_path), "/home/someone", "is_local"):
            assert trace.encode() not in held, (path.name, trace)
    for name in ("lineage.json", "results.json", "README.md"):
        assert name in first["files"], name


def _sha256(run: Path) -> str:
    return str(load_encoder(run).facts["sha256"])


@pytest.mark.usefixtures("unverified")
def test_a_new_export_replaces_an_old_one_and_nothing_else(tmp_path: Path) -> None:
    run, out = tiny_run(tmp_path / "run"), tmp_path / "out"
    export(run, out, ["sentence-transformers", "onnx"])
    export(run, out, ["sentence-transformers"])
    assert not (out / "onnx").exists() and verify(out)["formats"] == ["sentence-transformers"]
    for kept in (tmp_path / "photos", run, run / "checkpoints/step-000000001"):
        kept.mkdir(exist_ok=True)
        (kept / "dear.txt").write_text("dear", encoding="utf-8")
        with pytest.raises(UserError, match="holds something that is no export"):
            export(run, kept, ["sentence-transformers"])
        assert (kept / "dear.txt").read_text(encoding="utf-8") == "dear"


def test_an_export_that_another_library_reads_otherwise_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(source: Source, folder: Path) -> None:
        write_sentence_transformers(source, folder)
        path = folder / "1_Pooling/config.json"
        modes = json.loads(path.read_text(encoding="utf-8"))
        write_json(
            path, {**modes, "pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
        )

    run = tiny_run(tmp_path / "run")
    monkeypatch.setattr(build, "write_sentence_transformers", broken)
    with pytest.raises(UserError, match="sentence-transformers"):
        export(run, tmp_path / "out", ["sentence-transformers"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_formats_that_contradict_each_other_do_not_share_a_folder(tmp_path: Path) -> None:
    source = source_of(build_encoder(pooling="cls"))
    with pytest.raises(
        UserError, match=r"--format transformers: its config\.json and that of another"
    ):
        write_files(source, tmp_path, ["sentence-transformers", "transformers"], "someone/model")


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--format tar: known are {', '.join(FORMATS)}"):
        export(tmp_path / "nowhere", tmp_path / "out", ["tar"])
