"""Draws: the same in every process, as many as the share, nested from level to level."""

from itertools import pairwise

import numpy as np
import pytest

from mmalign.text.perturbations.sampling import (
    NOISE_SHARES,
    REPLACED_SHARES,
    choose,
    text_generator,
)


def test_a_stream_depends_on_seed_draw_id_and_text() -> None:
    # A known value: another process, machine or Python must come to the same noise.
    assert text_generator(0, 0, "1f435", 0).integers(1_000_000) == 470_771
    arguments = [(0, 0, "a", 0), (1, 0, "a", 0), (0, 1, "a", 0), (0, 0, "b", 0), (0, 0, "a", 1)]
    assert len({text_generator(*one).integers(2**40) for one in arguments}) == len(arguments)


def test_levels_grow() -> None:
    for shares in (NOISE_SHARES, REPLACED_SHARES):
        assert len(shares) == 5 and list(shares) == sorted(set(shares))


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_the_mean_number_of_places_is_exact(share: float) -> None:
    numbers = [len(choose(range(7), share, np.random.default_rng(s), 0)) for s in range(4000)]
    assert np.mean(numbers) == pytest.approx(7 * share, abs=0.04)
    assert max(numbers) - min(numbers) <= 1


def test_places_of_a_low_level_are_among_those_of_a_higher_one() -> None:
    for seed in range(50):
        drawn = [
            set(choose(range(20), share, np.random.default_rng(seed))) for share in NOISE_SHARES
        ]
        assert all(low <= high for low, high in pairwise(drawn))
        assert len(drawn[0]) >= 1


def test_no_place_no_choice() -> None:
    assert choose([], 0.5, np.random.default_rng(0)) == []
