"""The command line: one function per verb.

    app.py       the application and what verbs share
    data.py      data build, index, append, verify, stats
    train.py     train, launch, embed
    evaluate.py  eval, compare, report, index, search
    finetune.py  finetune, study
    publish.py   export, demo

Heavy imports (torch, transformers, deepspeed, faiss) stay inside the verbs, so that `mmalign --help` answers
at once.
"""

import errno
import io
import logging
import os
import re
import sys
from pathlib import Path

from mmalign.cli.app import app
from mmalign.cli.restarts import note_final, refuse_restart
from mmalign.core.errors import REFUSALS, UserError, describe_os_error, printable

# Importing a module registers its verbs; the help shows them in this order.
# isort: off
from mmalign.cli import data, selection, train, evaluate, finetune, publish  # noqa: F401


def main() -> None:
    """Run the command line; a user's mistake, or a full disk, is one sentence on stderr and exit code 1."""
    # oneDNN keeps up to 1,024 prepared operators, one per shape that it has seen. Captions make new shapes
    # every step, and the memory of a CPU run would grow by tens of megabytes per step.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    # DeepSpeed warns at every start without a GPU; a run's own first line names the device.
    logging.getLogger("DeepSpeed").addFilter(
        lambda record: "Setting accelerator to CPU" not in record.getMessage()
    )
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this process: `mmalign ... >&-`
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            # A terminal that is not UTF-8 must not end a verb after its work.
            stream.reconfigure(errors="backslashreplace")
    try:
        refuse_restart()
        app()
    except Exception as error:
        if isinstance(error, UserError):
            note_final(error)
        sentence = str(error) if isinstance(error, UserError) else _refused(error)
        if sentence is None:
            raise
        sys.stderr.write("mmalign: " + printable(sentence, keep="\t\n") + "\n")
        sys.exit(1)


def _refused(error: BaseException | None) -> str | None:
    """What the machine refused, as a sentence; None: the error is of another kind."""
    while error is not None:
        # Some libraries take names in UTF-8 alone; those of another locale (POSIX) are not.
        if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
            name = ascii(error.object)[:200]
            return f"{name}: not a name in UTF-8; set PYTHONUTF8=1, or name another place"
        refused = error if isinstance(error, OSError) else OSError()
        # Libraries in Rust (safetensors, tokenizers) have errors of their own, which end in the number.
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            refused = OSError(int(number[1]), os.strerror(int(number[1])))
        # numpy and torch know only that less was written than they gave.
        if re.search(r"requested and \d+ written|PytorchStreamWriter failed writing", str(error)):
            refused = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if refused.errno in REFUSALS:
            return describe_os_error(refused)
        error = error.__cause__ or error.__context__
    return None
