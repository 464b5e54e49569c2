"""The preflight names the node that fails, on real gloo ranks, and the one that is slow."""

import os
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from mmalign.core.errors import UserError
from mmalign.launch.preflight import Node, Preflight, rounds, slow, unreachable

# Two ranks per node.
NODES = [Node(f"node{n}", (2 * n, 2 * n + 1), ("CPU", "CPU")) for n in range(4)]


def run_preflight(folder: Path, per_node: int, bad: int | None, fault: str) -> list[str]:
    """The lines of a preflight, or the sentence that ended it, where rank `bad` has a fault."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    store = dist.FileStore(str(folder / "met"), world_size)
    # NCCL aside, what a node's own setting breaks: gloo finds no such interface, or its address.
    os.environ["GLOO_SOCKET_IFNAME"] = "nosuch0" if rank == bad and fault == "network" else "lo"
    try:
        made = Preflight(
            store, rank, world_size, rank // per_node, torch.device("cpu"), limit=3 if bad else 60
        )
        if rank == bad and fault == "silence":
            time.sleep(12)  # longer than anyone waits for it
        return made.run()
    except UserError as error:
        return [str(error)]


def run_with_devices(folder: Path) -> str:
    """The sentence that ends a preflight of three ranks, of which one has another device."""
    rank = dist.get_rank()
    store = dist.FileStore(str(folder / "met"), 3)
    made = Preflight(store, rank, 3, rank, torch.device("cpu"), limit=60)
    node = made.nodes[1]
    made.nodes[1] = replace(node, devices=("CUDA error: no device",))
    try:
        return "\n".join(made.run())
    except UserError as error:
        return str(error)


def run_on(ranks: int, folder: Path, *case: object) -> list[list[str]]:
    return run_ranks(ranks, run_preflight, folder / "ranks", folder, *case)


def test_healthy_nodes_are_measured(tmp_path: Path) -> None:
    found = run_on(4, tmp_path, 2, None, "")
    assert all(len(lines) >= 2 for lines in found)
    for n in range(2):
        line = found[0][n]
        assert f"(ranks {2 * n} to {2 * n + 1}), CPU: matrix product " in line
        assert all(f"gloo {where} " in line for where in ("within", "between", "all"))


@pytest.mark.parametrize(
    ("ranks", "per_node", "bad", "sentence"),
    [
        (2, 1, 1, r"preflight: reach no other node over gloo: \S+ \(rank 1\): .*nosuch0"),
        (4, 1, 2, r"preflight: reach no other node over gloo: \S+ \(rank 2\): .*nosuch0"),
        (4, 2, 3, r"preflight: gloo fails within the node: \S+ \(ranks 2 to 3\): "),
    ],
)
def test_a_node_that_cannot_be_reached_is_named_on_all_ranks(
    ranks: int, per_node: int, bad: int, sentence: str, tmp_path: Path
) -> None:
    found = run_on(ranks, tmp_path, per_node, bad, "network")
    assert len({line for (line,) in found}) == 1
    assert re.match(sentence, found[0][0])
    assert found[0][0].count("(rank") == 1  # those that waited for it are not named


def test_a_rank_that_says_nothing_is_named_and_nobody_waits_for_it(tmp_path: Path) -> None:
    found = run_on(3, tmp_path, 1, 1, "silence")
    for rank in (0, 2):
        assert re.match(r"preflight: the device fails: \S+ \(rank 1\): no report; ", found[rank][0])


def test_a_node_with_another_device_is_named(tmp_path: Path) -> None:
    for found in run_ranks(3, run_with_devices, tmp_path / "ranks", tmp_path):
        assert re.match(
            r"preflight: the others have CPU: \S+ \(rank 1\): CUDA error: no device; repair", found
        )


@pytest.mark.parametrize("nodes", range(1, 12))
def test_pairs_of_a_round_share_no_node_and_no_pair_comes_twice(nodes: int) -> None:
    chosen = rounds(nodes)
    assert len(chosen) == min(3, nodes - 1 + nodes % 2)
    for pairs in chosen:
        in_pairs = [n for pair in pairs for n in pair]
        assert len(in_pairs) == len(set(in_pairs)) >= nodes - 1
        assert set(in_pairs) <= set(range(nodes))
    pairs = [pair for one in chosen for pair in one]
    assert len(pairs) == len(set(pairs))


def test_a_node_is_named_if_it_fails_with_every_partner() -> None:
    works = {pair: 5 not in pair for pairs in rounds(8) for pair in pairs}
    assert unreachable(works) == ([5], [])
    # One link between two nodes, each of which reaches others.
    (broken, *_), *_ = rounds(8)
    assert unreachable(dict.fromkeys(works, True) | {broken: False}) == ([], [broken])
    # Of two nodes alone nobody can say which one it is.
    assert unreachable({(0, 1): False}) == ([0, 1], [])


def test_a_node_is_slow_beside_the_median_of_all() -> None:
    fast: list[float | None] = [0.010, 0.011, 0.009, 0.012]
    assert slow(NODES, {"gloo between": fast}) == []
    (line,) = slow(NODES, {"gloo between": fast, "matrix product": [0.002, 0.002, 0.009, 0.002]})
    assert line.startswith("node2 (ranks 4 to 5) is slow: matrix product takes 4.5 times the ")
    assert slow(NODES[:2], {"gloo between": [0.01, 0.1]}) == []  # no median of two
    assert slow(NODES, {"gloo between": [None, 0.1, 0.01, None]}) == []
