"""A tokenizer on its way out: the files that AutoTokenizer reads, without what a machine or a call left."""

import json
from pathlib import Path

from mmalign.core.commit import write_json
from mmalign.data.tokenizer import Tokenizer

# What a tokenizer remembers of the machine that it was loaded on.
_LOCAL_FIELDS = (
    "is_local",
    "local_files_only",
    "name_or_path",
    "tokenizer_file",
    "vocab_file",
)


def write_tokenizer(tokenizer: Tokenizer, max_length: int, folder: Path) -> None:
    """Write the tokenizer whole.

    Args:
        max_length: where texts are cut, in tokens; it becomes `model_max_length`.
    """
    tokenizer.save(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings = {name: value for name, value in settings.items() if name not in _LOCAL_FIELDS}
    write_json(path, {**settings, "model_max_length": max_length})
    # The last call's padding and cut are state of that call and no part of the tokenizer.
    path = folder / "tokenizer.json"
    if path.is_file():
        fast = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, {**fast, "truncation": None, "padding": None})
