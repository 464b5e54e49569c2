"""The command line: one function per verb.

    app.py       the application and what verbs share
    data.py      data build, index, verify, stats
    train.py     train, launch, embed
    evaluate.py  eval, compare, report, search
    finetune.py  finetune, study
    publish.py   export, demo

Every verb reads one YAML file, takes dotted overrides (`optimizer.lr=5e-4`) and does its work in the
package. A verb that writes into a run folder adds its command line to `commands.txt` there. Heavy imports
(torch, transformers, deepspeed, faiss) stay inside the verbs, so that `mmalign --help` answers at once.
"""

import os
import sys
from pathlib import Path

from mmalign.cli.app import app
from mmalign.core.errors import UserError, describe_os_error, printable

# Importing a module registers its verbs; the help shows them in this order.
# isort: off
from mmalign.cli import data, train, evaluate, finetune, publish  # noqa: F401


def main() -> None:
    """Run the command line; a user's mistake is one sentence on stderr and exit code 1."""
    # oneDNN keeps up to 1,024 prepared operators, one per shape that it has seen. Captions make new shapes
    # every step, and the memory of a CPU run would grow by tens of megabytes per step.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        # A terminal that is not UTF-8 gets escapes, whatever a file or a text is called.
        getattr(sys, name).reconfigure(errors="backslashreplace")
    try:
        app()
    except (UserError, OSError) as error:
        sentence = describe_os_error(error) if isinstance(error, OSError) else str(error)
        sys.stderr.write(f"mmalign: {printable(sentence)}\n")
        sys.exit(1)
