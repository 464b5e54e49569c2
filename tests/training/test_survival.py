"""A short form of `benchmarks/kill.py`: runs that are killed, stopped or damaged end with equal weights."""

import random
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from kill import Tally, damage_run, kill_run, signal_run
from lives import Case, Reference, measure_reference, prepare

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")

STEPS, EVERY = 12, 3


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("survival")
    prepare(folder, STEPS, EVERY)
    return Case(folder, ranks=1, steps=STEPS)


@pytest.fixture(scope="module")
def reference(case: Case) -> Reference:
    """The run without a stop."""
    reference = measure_reference(case)
    assert sorted(reference.losses) == list(range(1, STEPS + 1))
    return reference


def assert_unharmed(tally: Tally) -> None:
    assert tally.wrong == []
    assert tally.fresh_starts == 0


def test_a_run_that_is_killed_while_it_saves_goes_on_bit_for_bit(
    case: Case, reference: Reference
) -> None:
    tally = kill_run(case, reference, "killed", kills=2, saves=2, rng=random.Random(0))
    assert_unharmed(tally)
    assert tally.exact == tally.kills >= 1


def test_a_run_that_is_asked_saves_its_step_and_leaves_nobody_behind(
    case: Case, reference: Reference
) -> None:
    rng = random.Random(36)  # SIGUSR1 to the whole group, early
    tally = signal_run(case, reference, "signalled", signals=1, rng=rng)
    assert_unharmed(tally)
    assert tally.signals == 1


def test_a_damaged_checkpoint_is_never_loaded(case: Case, reference: Reference) -> None:
    damages = [("model.safetensors", "flipped"), ("MANIFEST.json", "truncated")]
    tally = damage_run(case, reference, EVERY, damages)
    assert_unharmed(tally)
    assert tally.damaged == 2
