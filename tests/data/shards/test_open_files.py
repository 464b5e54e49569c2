"""Descriptors of a data set are few, and none outlives its owner."""

import os
import pickle
from pathlib import Path

import pytest
from shard_sets import open_descriptors

from mmalign.data.shards.folder import LocalFolder
from mmalign.data.shards.open_files import OpenFiles


@pytest.fixture
def folder(tmp_path: Path) -> LocalFolder:
    for name in "abc":
        (tmp_path / name).write_text(name * 3)
    return LocalFolder(tmp_path)


def test_the_file_that_was_used_longest_ago_is_closed(folder: LocalFolder) -> None:
    before = open_descriptors()
    files = OpenFiles(folder, most=2)
    a, b = files.descriptor("a"), files.descriptor("b")
    assert files.descriptor("a") == a  # used again, so that `b` goes first
    assert os.pread(files.descriptor("c"), 3, 0) == b"ccc"
    assert len(open_descriptors() - before) == 2
    assert os.pread(a, 3, 0) == b"aaa"
    assert os.pread(files.descriptor("b"), 3, 0) == b"bbb" and b is not None


def test_files_close_with_their_owner(folder: LocalFolder) -> None:
    before = open_descriptors()
    files = OpenFiles(folder)
    for name in "abc":
        files.descriptor(name)
    assert len(open_descriptors() - before) == 3
    del files
    assert open_descriptors() <= before


def test_another_process_opens_its_own(folder: LocalFolder) -> None:
    files = OpenFiles(folder, most=2)
    files.descriptor("a")
    before = open_descriptors()
    copy = pickle.loads(pickle.dumps(files))
    assert copy.most == 2 and open_descriptors() <= before
    assert os.pread(copy.descriptor("a"), 3, 0) == b"aaa"
    copy.close()
    assert os.pread(files.descriptor("a"), 3, 0) == b"aaa"
