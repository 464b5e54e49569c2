"""A short form of `benchmarks/views.py`: one rank sees other files, and no run diverges."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from views import Fault, Reference, judge, make_case, measure

FAULTS = (
    Fault("resume", 1, "run/checkpoints", "stale", 0),
    Fault("resume", 0, "run", "slow", 1),
    Fault("start", 1, "base/checkpoints", "stale", 2),
    Fault("start", 1, "conf", "stale", 3),
)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reference]:
    if sys.platform != "linux" or subprocess.run(["unshare", "--mount", "true"]).returncode:
        pytest.skip("a view of its own for a process needs Linux and root")
    folder = tmp_path_factory.mktemp("views")
    make_case(folder)
    return folder, measure(folder, 2)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_run_goes_on_exactly_or_stops(case: tuple[Path, Reference], fault: Fault) -> None:
    folder, reference = case
    name = f"run{FAULTS.index(fault)}"
    outcome = judge(folder, 2, reference, fault, name)
    assert outcome.split()[0] in ("exact", "stopped"), outcome
