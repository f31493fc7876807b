#!/usr/bin/env python3
"""Feed every edge with mutated inputs for a given time: ``fuzz.py SECONDS [EDGE…]``.

An edge (``tests/support/edges.py``) is a decoder of data from outside. It may accept an input or raise its own error.
Any other exception, an input that takes longer than a second of CPU time, memory that grows, and a process that dies
are findings: they are printed with the input, and the exit code is 1. A found input belongs into the edge's seeds.

Where atheris is installed, it chooses what to change: an input that reaches new code is kept as a seed, also for later
runs, in ``.cache/fuzz``. Elsewhere the seeds are those of the edge. ``HOTNIC_TEST_SEED=N`` repeats a run from the same
seeds.
"""

import contextlib
import hashlib
import io
import json
import os
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

try:
    import atheris
except ImportError:  # no wheel for this platform
    atheris = None

if TYPE_CHECKING:
    from tests.support.edges import FedEdge

KEPT = ROOT / ".cache" / "fuzz"
"""Seeds that were found, in a folder for each edge."""
MAX_CPU = 1.0
"""Seconds for one input."""
MAX_GROWTH = 10 * 1024
"""KiB by which the largest memory may grow after the first tenth of an edge's time."""
MAX_SIZE = 64 * 1024
_TOKENS = [
    *(b"[" * 40, b"]" * 40, b'{"a":' * 300, b"[" * 1200, b"9" * 5000, b"1e999", b"-0", b"null", b"true", b'""', b"{}"),
    *(
        b"\\u0000",
        b"\\ud800",
        b"\\u001b[2J",
        b"\x00",
        b"\xff\xff",
        b"\xc0\x80",
        b"%;A=b",
        b"fe80::1%x",
        b"0x10",
        b"NaN",
    ),
    *(b"&a ", b"*a", b"<<: *a\n", b"- ", b"? ", b"!!int ", b"<!DOCTYPE a>", b"&amp;", b",", b":", b'"', b"x" * 4000),
]


OTHERS = [b"{}"]
"""What mutation inserts parts of: the seeds of all edges, once they are loaded."""


def load_edges() -> "dict[str, FedEdge]":
    """Return the edges, instrumented where atheris is installed: that takes seconds."""
    instrumented = atheris.instrument_imports(include=["schemas", "services"]) if atheris else contextlib.nullcontext()
    # It names each module on standard error.
    with contextlib.redirect_stderr(io.StringIO()), instrumented:
        from tests.support.edges import EDGES
    OTHERS.extend(seed for edge in EDGES.values() for seed in edge.seeds)
    return EDGES


def mutate(seed: bytes, other: bytes, rng: random.Random) -> bytes:
    """Return an input that is a seed with some changes."""
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        match rng.randrange(6):
            case 0:
                data[at:at] = rng.choice(_TOKENS)
            case 1:
                data[at:end] = rng.choice(_TOKENS)
            case 2:
                del data[at : min(end, at + rng.randrange(1, 20))]
            case 3:
                data[at:at] = data[at:end] * rng.choice((1, 2, 50))
            case 4 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case _:
                data[at:end] = other[: rng.randrange(len(other) + 1)]
        del data[MAX_SIZE:]
    return bytes(data)


class Feeder:
    """Feeds an edge for some time; stops early if there is a finding.

    :ivar count: how many inputs the edge was fed.
    :ivar finding: empty if there is none.
    :ivar over: whether to stop.
    """

    def __init__(self, name: str, edge: "FedEdge", seconds: float) -> None:
        self._name = name
        self._edge = edge
        self._began = time.monotonic()
        self._seconds = seconds
        self._base = 0
        self.count = 0
        self.finding = ""
        self.over = False

    def feed(self, data: bytes) -> None:
        """Feed one input."""
        started = time.process_time()
        try:
            self._edge.feed(data)
        except self._edge.error:
            pass
        except Exception:
            self._find(f"{traceback.format_exc()}{data!r}")
        self.count += 1
        if (took := time.process_time() - started) > MAX_CPU:
            self._find(f"{took:.1f} s of CPU time: {data!r}")
        passed = time.monotonic() - self._began
        if not self._base and passed > self._seconds / 10:
            self._base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if passed > self._seconds:
            self.over = True
            if (grown := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self._base) > MAX_GROWTH:
                self._find(f"memory grew by {grown} KiB")

    def _find(self, text: str) -> None:
        self.finding, self.over = self.finding or f"{self._name}: {text}", True


Engine: TypeAlias = Callable[["FedEdge", Callable[[bytes], None], int, Path], None]
"""Feeds inputs for an edge, from a number and a folder of kept seeds, until the process ends."""


def feed_random(edge: "FedEdge", feed: Callable[[bytes], None], number: int, _kept: Path) -> None:
    """Change the edge's seeds at random."""
    rng = random.Random(number)
    while True:
        feed(mutate(rng.choice(edge.seeds), rng.choice(OTHERS), rng))


def feed_guided(edge: "FedEdge", feed: Callable[[bytes], None], number: int, kept: Path) -> None:
    """Let atheris choose the seed, and change it in its way or ours; what reaches new code becomes a seed."""
    kept.mkdir(parents=True, exist_ok=True)
    for seed in edge.seeds:
        (kept / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)

    def change(data: bytes, limit: int, number: int) -> bytes:
        if number % 4:
            return bytes(atheris.Mutate(data, limit))
        rng = random.Random(number)
        return mutate(data, rng.choice(OTHERS), rng)[:limit]

    # libFuzzer's own words; at the end of a process that dies they say why.
    os.dup2(os.open(f"{kept}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), sys.stderr.fileno())
    # Long inputs only after short ones find nothing new: they take longer.
    options = [f"-seed={number}", f"-max_len={MAX_SIZE}", "-len_control=100", "-timeout=60", "-verbosity=0"]
    atheris.Setup(["fuzz", *options, f"-artifact_prefix={kept}-", str(kept)], feed, custom_mutator=change)
    atheris.Fuzz()


ENGINE: Engine = feed_guided if atheris else feed_random


def fuzz(name: str, edge: "FedEdge", seconds: float, number: int, engine: Engine, kept: Path) -> tuple[int, str]:
    """Return how many inputs an edge was fed, and the finding; empty if there is none.

    The edge runs in a process of its own, which an input may kill.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        feeder = Feeder(name, edge, seconds)

        def feed(data: bytes) -> None:
            feeder.feed(data)
            if feeder.over:
                os.write(writer, json.dumps([feeder.count, feeder.finding[:20_000]]).encode())
                os._exit(0)

        try:
            engine(edge, feed, number, kept)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    os.close(writer)
    with open(reader, "rb") as answers:
        answer = answers.read()
    _, status = os.waitpid(child, 0)
    if not answer:
        return 0, f"{name}: the process died with status {status}; of atheris see {kept}.log and {kept}-*"
    count, finding = json.loads(answer)
    return count, finding


def main() -> int:
    """Fuzz the edges in turn; return 1 if there is a finding, otherwise 0."""
    edges = load_edges()
    if len(sys.argv) < 2 or not sys.argv[1].isdigit() or set(sys.argv[2:]) - edges.keys():
        print(f"usage: fuzz.py SECONDS [EDGE...]; edges: {' '.join(edges)}", file=sys.stderr)
        return 2
    number = int(os.environ.get("HOTNIC_TEST_SEED") or random.SystemRandom().randrange(1, 2**31))
    print(
        f"atheris chooses the seeds, and keeps new ones in {KEPT}" if atheris else "no atheris here: random changes",
        flush=True,
    )
    names, total, findings = sys.argv[2:] or list(edges), 0, 0
    for name in names:
        count, finding = fuzz(name, edges[name], float(sys.argv[1]), number, ENGINE, KEPT / name)
        total += count
        findings += bool(finding)
        print(f"{name:15} {count:9} inputs  {finding or 'ok'}", flush=True)
    print(f"{total} inputs, {findings} findings, HOTNIC_TEST_SEED={number}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
