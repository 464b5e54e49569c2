"""One index and one server for all tests of the search page."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from search.search_cases import make_index, serving

from mmalign.search.corpus import SearchIndex
from mmalign.search.server import SearchServer


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the index: `run`, `set`, `cache`."""
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="session")
def index(folder: Path) -> SearchIndex:
    return make_index(folder)


@pytest.fixture(scope="session")
def server(index: SearchIndex) -> Iterator[SearchServer]:
    with serving(index) as one:
        yield one
