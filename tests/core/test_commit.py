"""A folder is whole or absent, damage is found, and the newest usable checkpoint is taken."""

import errno
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mmalign.core.commit import (
    MANIFEST,
    check_writable,
    committed_folder,
    exclusive,
    flush,
    newest_folder,
    sha256_of,
    verify,
    write_atomic,
    write_json,
    write_manifest,
)
from mmalign.core.errors import UserError

ROOT = Path(__file__).parents[2]
KILLED = """
import os, signal, sys
from pathlib import Path
from mmalign.core import commit

target, moment = Path(sys.argv[1]), sys.argv[2]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == "before the rename":
    commit.replace_folder = die
with commit.committed_folder(target, {}) as folder:
    (folder / "a.bin").write_bytes(b"half")
    if moment == "before the manifest":
        die()
"""


def python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def commit(folder: Path, step: int, content: bytes = b"weights") -> Path:
    target = folder / f"step-{step:09d}"
    with committed_folder(target, {"step": step}) as work:
        (work / "inner").mkdir()
        (work / "inner" / "model.bin").write_bytes(content)
        (work / "state.json").write_text("{}")
    return target


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_committed_folder_holds_what_its_manifest_says(tmp_path: Path) -> None:
    target = commit(tmp_path, 7)
    info = verify(target)
    assert info["step"] == 7
    assert info["files"].keys() == {"inner/model.bin", "state.json"}
    assert info["files"]["inner/model.bin"] == {
        "size": 7,
        "sha256": sha256_of(target / "inner" / "model.bin"),
    }
    assert names(tmp_path) == [target.name]


def test_a_commit_replaces_what_was_there_as_a_whole(tmp_path: Path) -> None:
    commit(tmp_path, 7, b"old")
    (tmp_path / "step-000000007" / "left over").write_text("x")
    target = commit(tmp_path, 7, b"new")
    assert (target / "inner" / "model.bin").read_bytes() == b"new"
    assert names(target) == [MANIFEST, "inner", "state.json"]
    assert names(tmp_path) == [target.name]


def test_a_commit_removes_what_a_kill_left_of_the_older_folder(tmp_path: Path) -> None:
    drawn = "0123456789abcdef" * 2
    of_others = [f"step-2.old-{drawn}", "step.old-2023-keep", f"step.tmp-{drawn}"]
    for name in (f"step.old-{drawn}", *of_others):
        (tmp_path / name).mkdir()
    for _ in range(2):
        with committed_folder(tmp_path / "step", {}) as folder:
            (folder / "a.bin").write_bytes(b"new")
    assert names(tmp_path) == sorted(["step", *of_others])


def test_an_older_folder_that_cannot_be_deleted_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = commit(tmp_path, 7, b"old")

    def busy(path: Path, **_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(shutil, "rmtree", busy)
    commit(tmp_path, 7, b"new")
    assert (target / "inner" / "model.bin").read_bytes() == b"new"
    assert "not deleted (Device or resource busy)" in capsys.readouterr().err


def test_a_copy_that_a_person_made_is_no_checkpoint_of_the_run(tmp_path: Path) -> None:
    commit(tmp_path, 3)
    for name in ("step-000000001-good", "step-000000009 (copy)", "step-"):
        shutil.copytree(tmp_path / "step-000000003", tmp_path / name)
    assert newest_folder(tmp_path)[0].name == "step-000000003"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), committed_folder(tmp_path / "new", {}) as folder:
        (folder / "a").write_text("half")
        raise error
    assert names(tmp_path) == []


def test_a_failure_leaves_the_older_folder_as_it_was(tmp_path: Path) -> None:
    target = commit(tmp_path, 7)
    with pytest.raises(RuntimeError), committed_folder(target, {}):
        raise RuntimeError
    assert verify(target)["step"] == 7
    assert names(tmp_path) == [target.name]


@pytest.mark.parametrize("moment", ["before the manifest", "before the rename"])
def test_a_kill_leaves_no_committed_folder(tmp_path: Path, moment: str) -> None:
    older = commit(tmp_path, 3)
    newer = tmp_path / "step-000000004"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(newer), moment], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert not newer.exists()
    assert (
        len(names(tmp_path)) == 2
    )  # the older one, and a temporary folder that counts for nothing
    assert newest_folder(tmp_path)[0] == older


def test_a_flipped_byte_is_found_wherever_it_is(tmp_path: Path) -> None:
    target = commit(tmp_path, 7)
    model = target / "inner" / "model.bin"
    good = model.read_bytes()
    for place in range(len(good)):
        model.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(UserError, match=r"inner/model\.bin: damaged"):
            verify(target)
    model.write_bytes(good)
    assert verify(target)["step"] == 7


def test_missing_and_cut_files_are_found(tmp_path: Path) -> None:
    target = commit(tmp_path, 7)
    model = target / "inner" / "model.bin"
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"inner/model\.bin: damaged"):
        verify(target)
    model.unlink()
    with pytest.raises(UserError, match=r"inner/model\.bin: missing"):
        verify(target)
    (target / MANIFEST).unlink()
    with pytest.raises(UserError, match="never finished"):
        verify(target)


def test_a_damaged_manifest_is_a_damaged_folder(tmp_path: Path) -> None:
    target = commit(tmp_path, 7)
    manifest = target / MANIFEST
    good = manifest.read_bytes()
    for text in (b"[]", b"3", b"{}", b'{"files": []}', b'{"files": {"a": 3}}', good[:-20], b"\xff"):
        manifest.write_bytes(text)
        with pytest.raises(UserError, match="not a manifest"):
            verify(target)
    in_files = range(good.index(b'"files"'), len(good.rstrip()))
    for place in in_files:  # whatever was hit among the files, the person gets a sentence
        manifest.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        try:
            verify(target)
        except UserError:
            continue
        assert json.loads(manifest.read_bytes()) == json.loads(good)  # white space was hit


def test_the_newest_folder_that_verifies_is_taken_and_the_others_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2, 10):
        commit(tmp_path, step)
    (tmp_path / "step-000000020.tmp-1").mkdir()
    (tmp_path / "LATEST").write_text("step-000000010\n")
    assert newest_folder(tmp_path)[1]["step"] == 10
    assert capsys.readouterr().err == ""
    (tmp_path / "step-000000010" / "state.json").write_text("[]")
    (tmp_path / "step-000000002" / MANIFEST).unlink()
    folder, info = newest_folder(tmp_path)
    assert (folder.name, info["step"]) == ("step-000000001", 1)
    damaged, unfinished = capsys.readouterr().err.splitlines()
    assert "step-000000010/state.json: damaged" in damaged
    assert "step-000000002: no MANIFEST.json" in unfinished


def test_no_usable_folder_is_an_error_that_names_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none was written"):
        newest_folder(tmp_path)
    for step in (1, 2):
        (commit(tmp_path, step) / "state.json").unlink()
    with pytest.raises(UserError, match=r"step-000000002/state.json.*step-000000001/state.json"):
        newest_folder(tmp_path)


def test_an_atomic_write_replaces_the_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old and longer")
    with path.open() as reader:
        write_atomic(path, "new ñ")
        assert reader.read() == "old and longer"  # whoever reads the old file reads it to its end
    assert path.read_text(encoding="utf-8") == "new ñ"
    write_json(path, {"語": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"語": 1}
    assert names(tmp_path) == ["a.txt"]


def test_a_failed_atomic_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "old")

    def full_disk(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    (tmp_path / "to nowhere").symlink_to(tmp_path / "missing")
    cases = (
        (tmp_path, False, "is a folder; name a file"),
        (file, True, "is a file; name a folder"),
        (file / "below.json", False, "Not a directory"),
        (file / "far" / "below", True, "Not a directory"),
        (tmp_path / "to nowhere", True, "No such file"),
        (tmp_path / ("x" * 300), False, "File name too long"),
        # A folder of the kernel refuses even root, whom permissions do not stop.
        (Path("/proc/self/new/file.json"), False, "cannot be written"),
        (Path("/proc/self"), True, "cannot be written"),
    )
    for path, is_folder, why in cases:
        with pytest.raises(UserError, match=why):
            check_writable(path, is_folder)
    for path in (tmp_path / "new" / "deep" / "a.json", file, Path("relative.json")):
        check_writable(path)
    for path in (tmp_path / "new" / "deep", tmp_path, Path()):
        check_writable(path, is_folder=True)
    assert names(tmp_path) == ["file", "to nowhere"]
    assert file.read_text() == "kept"


def test_a_folder_without_permission_is_refused() -> None:
    code = (
        "import os, sys; from pathlib import Path; from mmalign.core.commit import check_writable\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "check_writable(Path(sys.argv[1]))"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)  # another user may walk through it
        (Path(folder) / "locked").mkdir(mode=0o555)
        for path in ("locked/a.json", "locked/new/a.json"):
            done = python("-c", code, f"{folder}/{path}")
            assert f"{path}: cannot be written (Permission denied: {folder}/locked)" in done.stderr


HOLDS = """
import os, sys, time
from pathlib import Path
from mmalign.core.commit import exclusive

with exclusive(Path(sys.argv[1])):
    if os.fork() == 0:
        os._exit(0)  # the end of a forked worker must not end the lock
    os.wait()
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_process_which_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    arguments = [sys.executable, "-c", HOLDS, str(folder)]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        expected = rf"run: in use by process {holder.pid} on {platform.node()}; wait until it ends"
        for _ in range(2):
            with pytest.raises(UserError, match=expected), exclusive(folder):
                pass
        holder.kill()
    for _ in range(2):  # what a killed process left does not block
        with exclusive(folder):
            assert names(folder) == [".lock"]
    assert names(folder) == []


def test_a_folder_that_cannot_be_locked_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", Path("/proc/self/new")):
        with pytest.raises(UserError, match="cannot be written or locked"), exclusive(folder):
            pass


def test_only_folders_of_listed_files_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("own", "lost+found"):
        (tmp_path / name).mkdir()
    (tmp_path / "own" / "file").write_bytes(b"x")
    synced: list[Path] = []
    monkeypatch.setattr("mmalign.core.commit._sync", synced.append)
    write_manifest(tmp_path, {}, files={"own/file": flush(tmp_path / "own" / "file")})
    assert tmp_path / "own" in synced and tmp_path / "lost+found" not in synced
