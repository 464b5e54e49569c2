"""A push sends one commit, checks it, reports a failure in one sentence, and never shows the token."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
from export_cases import build_encoder, files_of, source_of
from hub_server import CUT, OWNER, TOKEN, Failure, Hub, Repo
from huggingface_hub import hf_hub_download
from PIL import Image
from safetensors.numpy import save_file

import mmalign
from mmalign.core.commit import committed_folder, sha256_of
from mmalign.core.errors import UserError
from mmalign.export.hub import push
from mmalign.export.open_clip import write_open_clip
from mmalign.export.sentence_transformers import write_sentence_transformers

NAME = f"{OWNER}/model"
TEXTS = ["a red ball", "собака", ""]
LOAD = """
import io, json, sys
import numpy as np, open_clip, torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from mmalign.models.load import load_model

texts, path, out = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
data = open(path, "rb").read()
model, preprocess = open_clip.create_model_from_pretrained("hf-hub:someone/dual")
tokens = open_clip.get_tokenizer("hf-hub:someone/dual")(texts)
pixels = preprocess(Image.open(path)).unsqueeze(0)
ours = load_model("someone/dual")
with torch.inference_mode():
    np.savez(
        out,
        texts_sentence_transformers=SentenceTransformer("someone/texts").encode(texts),
        texts_open_clip=model.eval().encode_text(tokens, normalize=True).numpy(),
        images_open_clip=model.encode_image(pixels, normalize=True).numpy(),
        texts_mmalign=ours.encode_texts(texts),
        images_mmalign=ours.encode_images([data]),
        texts_mmalign_alone=load_model("someone/texts").encode_texts(texts),
    )
"""
CARD = "---\nlicense: mit\n---\n\n# A model\n"


def make_export(folder: Path, value: float = 1.0, **files: str) -> Path:
    """What the push takes for an export: some files and a manifest."""
    with committed_folder(folder, {"formats": ["x"], "model_sha256": f"{value:064.0f}"}) as inside:
        weights = {"weight": np.full((4, 4), value, np.float32)}
        save_file(weights, inside / "model.safetensors")
        (inside / "README.md").write_text(CARD, encoding="utf-8")
        for name, text in {"config.json": "{}", **files}.items():
            (inside / name).parent.mkdir(parents=True, exist_ok=True)
            (inside / name).write_text(text, encoding="utf-8")
    return folder


def test_one_commit_holds_the_folder_and_reads_back(hub: Hub, tmp_path: Path) -> None:
    folder = make_export(tmp_path / "out", **{"2_Dense/config.json": '{"bias": false}'})
    url = push(folder, NAME, private=True, dry_run=False)

    repo = hub.repos[NAME]
    assert repo.private
    assert len(repo.commits) == 2  # the first is the hub's own
    assert url == f"{hub.endpoint}/{NAME}/commit/{repo.commits[-1][0]}"
    assert {k: v for k, v in repo.files.items() if k != ".gitattributes"} == files_of(folder)
    assert f"{1:064}" in repo.messages[-1]

    options = {"cache_dir": tmp_path / "cache", "endpoint": hub.endpoint, "token": TOKEN}
    for name in ("model.safetensors", "2_Dense/config.json"):
        path = hf_hub_download(NAME, name, **options)
        assert Path(path).read_bytes() == (folder / name).read_bytes()


def test_the_next_export_replaces_the_last_in_one_commit(hub: Hub, tmp_path: Path) -> None:
    push(make_export(tmp_path / "a", **{"old.json": "{}"}), NAME, False, False)
    assert not hub.repos[NAME].private
    by_hand = {**hub.repos[NAME].files, "LICENSE": b"MIT", "figure.png": b"png"}
    hub.repos[NAME].commit(by_hand, "by hand")
    push(make_export(tmp_path / "b", 2.0), NAME, False, False)

    repo = hub.repos[NAME]
    assert len(repo.commits) == 4
    assert "old.json" not in repo.files
    kept = {".gitattributes", "LICENSE", "figure.png"}
    assert repo.files.keys() == {*files_of(tmp_path / "b"), *kept}
    assert repo.files["model.safetensors"] == files_of(tmp_path / "b")["model.safetensors"]

    push(tmp_path / "b", NAME, False, False)  # nothing new: no commit, and no error
    assert len(repo.commits) == 4


def test_a_dry_run_says_the_files_and_contacts_nobody(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")  # not needed
    folder = make_export(tmp_path / "out")
    assert push(folder, NAME, private=True, dry_run=True) is None
    assert hub.requests == []
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(files_of(folder)) + 1
    for name, data in files_of(folder).items():
        line = next(line for line in lines if line.endswith(f" {name}"))
        assert line.split()[:2] == [sha256_of(folder / name), f"{len(data):,}"]
    assert "private" in lines[-1]


def test_the_token_is_in_no_address_no_output_and_no_log(
    hub: Hub,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.failures = [Failure("POST", "preupload", 503), Failure("POST", "/commit/", 403)]
    with pytest.raises(UserError) as error:
        push(make_export(tmp_path / "out"), NAME, True, False)
    push(tmp_path / "out", NAME, True, False)
    captured = capfd.readouterr()
    assert all(TOKEN not in request.path for request in hub.requests)
    assert any(TOKEN in str(request.headers) for request in hub.requests)
    seen = captured.out + captured.err + caplog.text + str(error.value)
    assert TOKEN not in seen
    hf_hub_download(
        NAME, "model.safetensors", cache_dir=tmp_path, endpoint=hub.endpoint, token=TOKEN
    )
    large = [request for request in hub.requests if request.path.startswith("/storage/")]
    assert {request.method for request in large} == {"PUT", "GET"}
    assert all("authorization" not in request.headers for request in large)


def test_what_the_hub_refuses_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    folder = make_export(tmp_path / "out")
    for failure, sentence in (
        (Failure("GET", "whoami", 401), "does not accept the token"),
        (Failure("POST", "/commit/", 403), "may not write there"),
        (Failure("POST", "preupload", 404), "knows no such owner"),
        (Failure("POST", "/commit/", 412), "somebody else changed"),
        (Failure("POST", "/commit/", 503), "answers 503"),
        (Failure("PUT", "/storage/", 500, 99), "answers 500"),
        (Failure("PUT", "/storage/", CUT, 99), "the connection to http://localhost"),
    ):
        hub.failures = [failure]
        hub.store.clear()
        with pytest.raises(UserError, match=sentence) as error:
            push(folder, NAME, True, False)
        assert "\n" not in str(error.value) and TOKEN not in str(error.value)
        assert NAME not in hub.repos or len(hub.repos[NAME].commits) == 1


def test_a_temporary_failure_is_waited_out(hub: Hub, tmp_path: Path) -> None:
    hub.failures = [Failure("PUT", "/storage/", status) for status in (503, CUT)]
    hub.failures.append(Failure("POST", "preupload", 503, 2))
    assert push(make_export(tmp_path / "out"), NAME, True, False)
    assert hub.repos[NAME].files.keys() > files_of(tmp_path / "out").keys()


def test_no_network_no_token_and_no_name(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_export(tmp_path / "out")
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:9")  # where no server listens
    with pytest.raises(UserError, match="the connection to http://localhost:9 failed"):
        push(folder, NAME, True, False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="run `hf auth login` or set HF_TOKEN"):
        push(folder, NAME, True, False)
    for name in ("model", "some one/model", "a/b/c", "someone/.."):
        with pytest.raises(UserError, match="--push"):
            push(folder, name, True, False)


def test_what_is_there_already_is_not_published_over(hub: Hub, tmp_path: Path) -> None:
    folder = make_export(tmp_path / "out")
    hub.create(NAME, private=False)
    with pytest.raises(UserError, match="everybody can read it"):
        push(folder, NAME, True, False)
    hub.create(f"{OWNER}/other", private=True, files={"pytorch_model.bin": b"weights"})
    with pytest.raises(UserError, match=r"no export of mmalign wrote \(such as pytorch_model.bin"):
        push(folder, f"{OWNER}/other", True, False)
    with pytest.raises(UserError, match="may not write there"):
        push(folder, "nobody/model", True, False)
    assert [len(repo.commits) for repo in hub.repos.values()] == [1, 1]


def test_what_arrived_otherwise_is_found(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Repo.commit

    def damaged(self: Repo, files: dict[str, bytes], message: str) -> str:
        """The server accepts the commit and stores other bytes."""
        return commit(self, {**files, "model.safetensors": b"other"}, message)

    hub.create(NAME, private=True)
    monkeypatch.setattr(Repo, "commit", damaged)
    with pytest.raises(UserError, match=r"model\.safetensors did not arrive as it was sent"):
        push(make_export(tmp_path / "out"), NAME, True, False)


def test_only_a_complete_and_clean_folder_is_sent(hub: Hub, tmp_path: Path) -> None:
    folder = make_export(tmp_path / "out")
    (folder / "config.json").write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(UserError, match="damaged"):
        push(folder, NAME, True, False)
    place = json.dumps({"hf_model_name": str(tmp_path / "named")})
    folder = make_export(tmp_path / "named", **{"open_clip_config.json": place})
    with pytest.raises(UserError, match="export it with --push"):
        push(folder, NAME, True, False)
    folder = make_export(tmp_path / "bad", **{"README.md": "---\nlicense: made-up\n---\n"})
    with pytest.raises(UserError, match="must be one of the known ones"):
        push(folder, NAME, True, False)
    assert NAME not in hub.repos  # a refused card leaves no repository
    folder = make_export(tmp_path / "more")
    (folder / "notes.txt").write_text("not part of the export", encoding="utf-8")
    push(folder, NAME, True, False)
    assert "notes.txt" not in hub.repos[NAME].files


@pytest.mark.slow  # four libraries are imported
def test_each_library_loads_what_was_pushed(hub: Hub, tmp_path: Path) -> None:
    encoder = build_encoder()
    source = source_of(encoder)
    with committed_folder(tmp_path / "texts", {}) as folder:
        write_sentence_transformers(source, folder)
    with committed_folder(tmp_path / "dual", {}) as folder:
        write_open_clip(source, folder, home=f"{OWNER}/dual")
    for name in ("texts", "dual"):
        push(tmp_path / name, f"{OWNER}/{name}", private=True, dry_run=False)

    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "PYTHONPATH": str(Path(mmalign.__file__).parents[1]),
    }
    arguments = [json.dumps(TEXTS), str(tmp_path / "image.png"), str(tmp_path / "out.npz")]
    command = [sys.executable, "-c", LOAD, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert TOKEN not in done.stdout + done.stderr
    expected = {
        "texts": encoder.encode_texts(TEXTS),
        "images": encoder.encode_images([(tmp_path / "image.png").read_bytes()]),
    }
    with np.load(tmp_path / "out.npz") as vectors:
        for name in vectors.files:
            difference = np.abs(vectors[name] - expected[name.partition("_")[0]]).max()
            assert difference <= 1e-6, name
