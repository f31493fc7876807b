#!/usr/bin/env python3
"""Feed every edge with mutated inputs for a given time: ``fuzz.py SECONDS [EDGE…]``.

An edge (``tests/support/edges.py``) is a decoder of data from outside. It may accept an input or raise its own error.
Any other exception, an input that takes longer than a second of CPU time, and memory that grows are findings: they are
printed with the input, and the exit code is 1. A found input belongs into the edge's seeds. ``HOTNIC_TEST_SEED=N``
repeats a run.
"""

import os
import random
import resource
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.edges import EDGES, FedEdge

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


def fuzz(name: str, edge: FedEdge, seconds: float, rng: random.Random) -> tuple[int, str]:
    """Return how many inputs an edge was fed, and the finding; empty if there is none."""
    corpus = [seed for tested in EDGES.values() for seed in tested.seeds]
    began, count, base = time.monotonic(), 0, 0
    while (passed := time.monotonic() - began) < seconds:
        if not base and passed > seconds / 10:
            base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        data = mutate(rng.choice(edge.seeds), rng.choice(corpus), rng)
        started = time.process_time()
        try:
            edge.feed(data)
        except edge.error:
            pass
        except Exception:
            return count, f"{name}: {traceback.format_exc()}{data!r}"
        count += 1
        if (took := time.process_time() - started) > MAX_CPU:
            return count, f"{name}: {took:.1f} s of CPU time: {data!r}"
    if base and (grown := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) > MAX_GROWTH:
        return count, f"{name}: memory grew by {grown} KiB"
    return count, ""


def main() -> int:
    """Fuzz the edges in turn; return 1 if there is a finding, otherwise 0."""
    if len(sys.argv) < 2 or not sys.argv[1].isdigit() or set(sys.argv[2:]) - EDGES.keys():
        print(f"usage: fuzz.py SECONDS [EDGE...]; edges: {' '.join(EDGES)}", file=sys.stderr)
        return 2
    number = int(os.environ.get("HOTNIC_TEST_SEED") or random.SystemRandom().randrange(2**32))
    names, total, findings = sys.argv[2:] or list(EDGES), 0, 0
    for name in names:
        count, finding = fuzz(name, EDGES[name], float(sys.argv[1]), random.Random(f"{number} {name}"))
        total += count
        findings += bool(finding)
        print(f"{name:15} {count:9} inputs  {finding[:20_000] or 'ok'}", flush=True)
    print(f"{total} inputs, {findings} findings, HOTNIC_TEST_SEED={number}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
