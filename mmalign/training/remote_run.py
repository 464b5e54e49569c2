"""A run in a store of objects: `mmalign train RUN.yaml --out s3://bucket/run`.

    start           store -> small files, newest checkpoint -> a folder of rank 0's host -> the run resumes
    each checkpoint files of all ranks -> store; then small files that changed; then the manifest
    end             small files that changed -> store

The folder on the host is for work alone: whatever a resume needs is in the store, so that a run may go on on
another machine. Each host has such a folder, for the files that its ranks upload.
"""

import shutil
from collections.abc import Iterator

from mmalign.data.storage.object_store import local_folder
from mmalign.data.storage.remote import RemoteConfig
from mmalign.models.stored_run import CHECKPOINTS, StoredRun

# What a run reads when it resumes, beside its tokenizer and a checkpoint.
_RESUMED = (
    "config.yaml",
    "towers.json",
    "metrics.jsonl",
    "unusable.jsonl",
    "non_finite.jsonl",
    "stopped.json",
    "commands.txt",
)


class RemoteRun:
    """The run at a URL; rank 0 calls the methods.

    Attributes:
        folder: on this host, where the run works as in a folder of its own.
    """

    def __init__(self, url: str, config: RemoteConfig) -> None:
        self.run = StoredRun(url, config)
        self.url = self.run.store.url
        self.folder = local_folder(self.url, config, "runs")
        self._pushed: dict[str, tuple[int, int]] = {}  # size and time of modification, by name

    def fetch(self) -> None:
        """Make the folder what the store has, after a trial whether it can be written."""
        self.run.store.check_writable()
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in _RESUMED:
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / "tokenizer", ignore_errors=True)
        self.run.fetch_files(self.folder, _RESUMED)
        # What an earlier start left on this host may be newer than in the store, or not there.
        stored = self.run.store.list_files()
        files = dict(self._small_files())
        self._pushed = {name: one for name, one in files.items() if stored.get(name) == one[0]}
        self.fetch_checkpoint()

    def fetch_checkpoint(self) -> None:
        """Put the newest checkpoint of the store into the folder, alone."""
        self.drop_checkpoint()
        self.run.fetch_newest(self.folder / CHECKPOINTS)

    def drop_checkpoint(self) -> None:
        """Delete what `fetch_checkpoint` put there, once it is loaded."""
        shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)

    def push(self) -> None:
        """Upload what changed outside `checkpoints`, and delete what the run has deleted."""
        found = dict(self._small_files())
        for name, facts in found.items():
            if self._pushed.get(name) != facts:
                self.run.store.write(name, self.folder / name)
                self._pushed[name] = facts
        gone = self._pushed.keys() - found.keys()
        self.run.store.remove(sorted(gone))
        for name in gone:
            del self._pushed[name]

    def _small_files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for path in self.folder.rglob("*"):
            parts = path.relative_to(self.folder).parts
            # The lock, and what is being written.
            is_own = any(part.startswith(".") or ".tmp-" in part for part in parts)
            if parts[0] != CHECKPOINTS and not is_own and path.is_file():
                facts = path.stat()
                yield "/".join(parts), (facts.st_size, facts.st_mtime_ns)
