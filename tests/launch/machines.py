"""Stand-ins for torchrun, Slurm and the hosts' tools: scripts run for real, the tools note what they hear."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

# Writes its arguments as one JSON line; torchrun may leave what a stopped run leaves, and end with a code.
_TORCHRUN = """#!{python}
import json, os, pathlib, sys
with open({calls!r}, "a") as calls:
    print(json.dumps(["torchrun", os.environ.get("GLOO_SOCKET_IFNAME"), *sys.argv[1:]]), file=calls)
with open({environment!r}, "w") as environment:
    json.dump(dict(os.environ), environment)
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
if os.environ.get("STOPPED"):
    out.mkdir(parents=True, exist_ok=True)
    (out / "stopped.json").write_text(json.dumps({{"step": 7, "signal": os.environ["STOPPED"]}}))
sys.exit(int(os.environ.get("CODE", "0")))
"""
# One task a node, one after another; the highest code is srun's.
_SRUN = """#!/bin/bash
printf '%s\\n' "$@" > {options}
while [ "$1" != bash ]; do shift; done
code=0
for node in 0 1; do SLURM_NODEID=$node "$@" || code=$?; done
exit $code
"""
_SCONTROL = """#!{python}
import json, sys
with open({calls!r}, "a") as calls:
    print(json.dumps(["scontrol", *sys.argv[1:]]), file=calls)
"""
_PYTHON = "#!/bin/bash\necho 10.0.0.9\n"  # called for the host's own address only
_HOSTNAME = (
    "#!/bin/bash\nif [ \"${1:-}\" = -I ]; then echo '10.0.0.1 10.1.0.1 '; else echo node1; fi\n"
)
_GETENT = """#!/bin/bash
case $2 in
  first) echo 10.0.0.1 STREAM first ;;
  loop) echo 127.0.1.1 STREAM loop ;;
  *) echo 10.0.0.2 STREAM $2 ;;
esac
"""


class Machine:
    """A folder where scripts run, with only the stand-ins and the system's own tools on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tools = folder / "tools"
        self._calls = folder / "calls.jsonl"
        self._environment = self._tools / "environment.json"
        self._tools.mkdir(parents=True)
        texts = {
            "torchrun": _TORCHRUN.format(
                python=sys.executable,
                calls=str(self._calls),
                environment=str(self._environment),
            ),
            "scontrol": _SCONTROL.format(python=sys.executable, calls=str(self._calls)),
            "srun": _SRUN.format(options=shlex.quote(str(self._tools / "srun.txt"))),
            "python3": _PYTHON,
            "hostname": _HOSTNAME,
            "getent": _GETENT,
        }
        for name, text in texts.items():
            (self._tools / name).write_text(text)
            (self._tools / name).chmod(0o755)

    def run(self, script: str, **environment: str) -> int:
        """The exit code of a bash script in this folder."""
        path = f"{self._tools}:{os.defpath}"
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.folder, env={"PATH": path, **environment}, timeout=30
        )
        return done.returncode

    @property
    def environment(self) -> dict[str, str]:
        """The variables that torchrun had."""
        found: dict[str, str] = json.loads(self._environment.read_text())
        return found

    @property
    def srun_options(self) -> list[str]:
        """What srun was told before its command."""
        words = (self._tools / "srun.txt").read_text().splitlines()
        return words[: words.index("bash")]

    @property
    def calls(self) -> list[list[Any]]:
        """What torchrun (interface, arguments) and scontrol were told, in order."""
        if not self._calls.exists():
            return []
        return [json.loads(line) for line in self._calls.read_text().splitlines()]
