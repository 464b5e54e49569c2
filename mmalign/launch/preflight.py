"""Preflight of a job: before training, all nodes show that they compute and reach each other.

    each rank alone   a matrix product on its device
    within each node  an all-reduce among its ranks
    pairs of nodes    an all-reduce among the ranks of both; a node has another partner in every round
    all ranks         an all-reduce

All-reduces run over gloo and, on GPUs, over NCCL, because training uses both. Every rank makes a test in a
thread and reports its seconds or its error to torchrun's key-value store. Rank 0 collects the reports, and
every rank gets all of them. No group of all ranks is formed before the last test: one node that cannot be
reached would prevent it, and the error would not say which.
"""

import json
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from threading import Thread

import torch
from torch.distributed import Store

from mmalign.core import distributed
from mmalign.core.console import say
from mmalign.core.errors import UserError, one_line

LIMIT = 120.0
"""Seconds of one test. NCCL's first connection between nodes takes half a minute on some networks."""
ROUNDS = 3
SLOW = 2.0
"""A node is slow from this multiple of the median on."""
_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}  # float32, of an all-reduce
_SIDE = {"cpu": 512, "cuda": 8192}  # of the matrices


@dataclass(frozen=True)
class Node:
    host: str
    ranks: tuple[int, ...]
    devices: tuple[str, ...]  # of its ranks, or why one has none

    def __str__(self) -> str:
        first, last = self.ranks[0], self.ranks[-1]
        return f"{self.host} (rank{f' {first}' if first == last else f's {first} to {last}'})"


@dataclass(frozen=True)
class Report:
    """Of one rank and one test: seconds, or an error; neither if the rank had no part in it."""

    seconds: float | None = None
    error: str | None = None


def preflight() -> None:
    """Test all ranks that torchrun started; without torchrun nothing.

    Raises:
        UserError: names the nodes that fail; on every rank.
    """
    if "RANK" not in os.environ:
        return
    store, rank, world_size = distributed.meet()
    node = int(os.environ.get("GROUP_RANK", "0"))
    lines = Preflight(store, rank, world_size, node, distributed.device(), LIMIT).run()
    for line in lines if rank == 0 else ():  # without a group, every rank is its own rank 0
        say(f"preflight: {line}")


class Preflight:
    """The tests of one rank.

    Attributes:
        nodes: all of them, in the order of torchrun; known once all ranks have reported their host.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        node: int,
        device: torch.device,
        limit: float,
    ) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._device, self._limit = device, limit
        self._waited = f"no answer within {limit:.0f} s"
        hosts = self._share("host", json.dumps([node, platform.node(), _name_of(device)]))
        if silent := [n for n, text in enumerate(hosts) if not text]:
            raise UserError(
                f"preflight: ranks {silent} do not answer; see their output, and start again"
            )
        told = [json.loads(text) for text in hosts]
        numbers = sorted({number for number, _, _ in told})
        self.nodes = []
        for number in numbers:
            ranks = tuple(n for n, one in enumerate(told) if one[0] == number)
            devices = tuple(told[n][2] for n in ranks)
            self.nodes.append(Node(told[ranks[0]][1], ranks, devices))
        self._mine = numbers.index(node)

    def run(self) -> list[str]:
        """Lines that say how fast the nodes are, and which are slow; UserError: names those that fail."""
        devices = Counter(name for node in self.nodes for name in node.devices)
        (usual, _), *others = devices.most_common()
        if others:
            odd = {n: set(one.devices) - {usual} for n, one in enumerate(self.nodes)}
            found = {n: ", ".join(sorted(names)) for n, names in odd.items() if names}
            self._refuse(f"the others have {usual}", found)
        alone = self._test("alone", lambda _: _multiply(self._device))
        self._refuse_failed("the device fails", alone)
        seconds = {"matrix product": self._by_node(alone)}
        everyone = range(len(self.nodes))
        backends = {"gloo": torch.device("cpu")}
        if self._device.type == "cuda":
            backends["NCCL"] = self._device
        for name, device in backends.items():
            within = self._test(f"{name} within", self._all_reduce([self._mine], device))
            self._refuse_failed(f"{name} fails within the node", within)
            between = self._test_pairs(name, device)
            together = self._test(f"{name} all", self._all_reduce(everyone, device))
            self._refuse_failed(f"{name} fails among all ranks but not in pairs", together)
            seconds |= {
                f"{name} within": self._by_node(within),
                f"{name} between": between,
                f"{name} all": self._by_node(together),
            }
        return [*describe(self.nodes, seconds), *slow(self.nodes, seconds)]

    def _test_pairs(self, name: str, device: torch.device) -> list[float | None]:
        # Of each node, the seconds with its best partner.
        works: dict[tuple[int, int], bool] = {}
        best: list[float | None] = [None] * len(self.nodes)
        errors: dict[int, str] = {}
        for number, pairs in enumerate(rounds(len(self.nodes))):
            mine = next((pair for pair in pairs if self._mine in pair), ())
            reports = self._test(f"{name} pairs {number}", self._all_reduce(mine, device))
            found, failed = self._by_node(reports), self._errors(reports)
            works |= {pair: not failed.keys() & set(pair) for pair in pairs}
            best = [
                min((one for one in both if one is not None), default=None)
                for both in zip(best, found, strict=True)
            ]
            errors |= failed
        bad, broken = unreachable(works)
        if bad:
            of_bad = {n: errors[n] for n in bad}
            # Of two nodes neither reaches another one: the one that only waited is not named.
            own = {n: error for n, error in of_bad.items() if error != self._waited}
            self._refuse(f"reach no other node over {name}", own or of_bad)
        if broken:
            both = "; ".join(f"{self.nodes[a]} and {self.nodes[b]}" for a, b in broken)
            reason = errors.get(broken[0][0], "") or errors.get(broken[0][1], "")
            raise UserError(f"preflight: {both} do not reach each other over {name} ({reason})")
        return best

    def _refuse_failed(self, what: str, reports: list[Report]) -> None:
        if errors := self._errors(reports):
            self._refuse(what, errors)

    def _refuse(self, what: str, errors: dict[int, str]) -> None:
        names = "; ".join(f"{self.nodes[n]}: {error}" for n, error in sorted(errors.items()))
        raise UserError(
            f"preflight: {what}: {names}; repair them or leave them out of the job, and start again"
        )

    def _errors(self, reports: list[Report]) -> dict[int, str]:
        # Node -> the first error of its ranks.
        found: dict[int, str] = {}
        for n, node in enumerate(self.nodes):
            errors = [reports[rank].error for rank in node.ranks]
            if error := next((one for one in errors if one is not None), None):
                found[n] = error
        return found

    def _by_node(self, reports: list[Report]) -> list[float | None]:
        # The seconds of the slowest rank of each node.
        return [
            max((s for rank in node.ranks if (s := reports[rank].seconds)), default=None)
            for node in self.nodes
        ]

    def _all_reduce(
        self, nodes: Sequence[int], device: torch.device
    ) -> Callable[[str], float] | None:
        # The test of an all-reduce among the ranks of these nodes; None: there is nothing to reduce.
        ranks = [rank for n in nodes for rank in self.nodes[n].ranks]
        if len(ranks) < 2:
            return None

        def work(name: str) -> float:
            # A store of its own: while a thread waits for a key, its client answers nobody else. The time-out
            # of the group is never reached: NCCL would end the process, which then could not report.
            group = distributed.test_group(
                self._store.clone(),
                f"{name} {ranks[0]}",
                ranks.index(self._rank),
                len(ranks),
                device,
                timedelta(days=1),
            )
            seconds = _time_all_reduce(group, ranks.index(self._rank), len(ranks), device)
            group.shutdown()
            return seconds

        return work

    def _test(self, name: str, work: Callable[[str], float] | None) -> list[Report]:
        """The reports of all ranks; `work` takes the name and returns seconds, None: no part in it."""
        done: list[Report] = []

        def run() -> None:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)  # is a setting of the thread
            try:
                done.append(Report(seconds=work(name)) if work is not None else Report())
            except Exception as error:  # whatever it is, it goes into the report
                done.append(Report(error=one_line(error)))

        thread = Thread(target=run, daemon=True)  # of one that hangs nobody waits for the end
        thread.start()
        thread.join(self._limit)
        mine = done[0] if done else Report(error=self._waited)
        texts = self._share(name, json.dumps(asdict(mine)))
        return [Report(**json.loads(text)) if text else Report(error="no report") for text in texts]

    def _share(self, name: str, text: str) -> list[str]:
        # What all ranks set under this name, on all ranks; empty: nothing in time.
        key = f"preflight/{name}"
        self._store.set(f"{key}/{self._rank}", text)
        if self._rank == 0:
            # All ranks began this test at about the same time.
            until = time.monotonic() + 1.1 * self._limit + 2
            found = [""] * self._world_size
            for rank in range(self._world_size):
                own = f"{key}/{rank}"
                while not (is_there := self._store.check([own])) and time.monotonic() < until:
                    time.sleep(0.01)
                if is_there:
                    found[rank] = self._store.get(own).decode()
            self._store.set(key, json.dumps(found))
        try:
            self._store.wait([key], timedelta(seconds=2 * self._limit + 60))
            shared: list[str] = json.loads(self._store.get(key))
        except RuntimeError as error:
            raise UserError(f"preflight: rank 0 does not answer ({one_line(error)})") from None
        return shared


def rounds(nodes: int, most: int = ROUNDS) -> list[list[tuple[int, int]]]:
    """Rounds of pairs of the numbers below `nodes`; no pair occurs twice (the circle method)."""
    # With an odd number one node rests in each round: the partner of the one past the end.
    size = nodes + nodes % 2
    found = []
    for turn in range(min(most, size - 1)):
        circle = [0, *((n + turn) % (size - 1) + 1 for n in range(size - 1))]
        pairs = [sorted((circle[n], circle[-1 - n])) for n in range(size // 2)]
        found.append([(a, b) for a, b in pairs if b < nodes])
    return found


def unreachable(
    works: dict[tuple[int, int], bool],
) -> tuple[list[int], list[tuple[int, int]]]:
    """The nodes that fail with every partner, and the pairs that fail without such a node."""
    tried = {n for pair in works for n in pair}
    reached = {n for pair, is_good in works.items() if is_good for n in pair}
    bad = sorted(tried - reached)
    broken = [pair for pair, is_good in works.items() if not is_good and not set(pair) & set(bad)]
    return bad, broken


def describe(nodes: Sequence[Node], seconds: dict[str, list[float | None]]) -> list[str]:
    """One line per node: the seconds of each test in which it had a part."""
    lines = []
    for n, node in enumerate(nodes):
        parts = [
            f"{name} {1000 * value:.1f} ms"
            for name, of_nodes in seconds.items()
            if (value := of_nodes[n]) is not None
        ]
        lines.append(f"{node}, {node.devices[0]}: {', '.join(parts)}")
    return lines


def slow(nodes: Sequence[Node], seconds: dict[str, list[float | None]]) -> list[str]:
    """One line per node and test in which it needs a multiple of the median of all nodes."""
    lines = []
    for name, of_nodes in seconds.items():
        values = [value for value in of_nodes if value is not None]
        if len(values) < 3:  # of two nodes nobody can say which one is slow
            continue
        median = statistics.median(values)
        for n, value in enumerate(of_nodes):
            if value is not None and value > SLOW * median:
                factor = value / median
                lines.append(
                    f"{nodes[n]} is slow: {name} takes {factor:.1f} times the median of the nodes, and "
                    "training runs at the speed of the slowest"
                )
    return lines


def _name_of(device: torch.device) -> str:
    if device.type == "cpu":
        return "CPU"
    try:
        return torch.cuda.get_device_name(device)
    except (RuntimeError, AssertionError) as error:  # of a GPU that is not there, or fails
        return one_line(error)


def _multiply(device: torch.device) -> float:
    side = _SIDE[device.type]
    # Ones: every element of the product is the side, exactly.
    matrix = torch.ones(side, side, device=device)
    best = float("inf")
    for _ in range(3):
        begun = time.perf_counter()
        product = matrix @ matrix
        is_right = bool((product == side).all())  # waits for the device
        best = min(best, time.perf_counter() - begun)
        if not is_right:
            raise RuntimeError("a matrix product is wrong")
    return best


def _time_all_reduce(group: object, rank: int, size: int, device: torch.device) -> float:
    allreduce: Callable[..., object] = group.allreduce  # type: ignore[attr-defined]
    best = float("inf")
    for _ in range(3):  # the first one connects
        rows = torch.full((_ELEMENTS[device.type],), rank + 1.0, device=device)
        begun = time.perf_counter()
        allreduce([rows]).wait()  # type: ignore[attr-defined]
        is_right = bool((rows == size * (size + 1) / 2).all())
        best = min(best, time.perf_counter() - begun)
        if not is_right:
            raise RuntimeError("the sum is wrong")
    return best
