"""Measurements of the machine and of span files, for benchmarks; times in milliseconds."""

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.lab.running import Span

Marks = Sequence[tuple[str, str, str]]
"""Measured steps: label, service, and prefix of the span's name."""

PLUG_HOPS: Marks = (
    ("request", "hotnic-api", "kube patch virtualmachineinstances"),
    ("annotate", "hotnic-controller", "kube patch pods"),
    ("attach to the pod", "hotnic-networks", "kube patch pods/status"),
    ("set up the pod network", "hotnic-handler", "netlink setup"),
    ("attach to the guest", "hotnic-handler", "qmp device_add"),
)
"""The hops of a plug, each with the span whose end completes it."""

UNPLUG_HOPS: Marks = (
    ("request", "hotnic-api", "kube patch virtualmachineinstances"),
    ("request the unplug", "hotnic-handler", "qmp device_del"),
    ("unplug by the guest", "hotnic-handler", "guest unplug"),
    ("tear down the pod network", "hotnic-handler", "netlink teardown"),
    ("write released", "hotnic-handler", "kube patch virtualmachineinstances"),
    ("annotate", "hotnic-controller", "kube patch pods"),
    ("CNI DEL", "hotnic-multus", "cni DEL"),
)
"""The hops of an unplug, from the request to the end of CNI DEL."""

PLUG_PARTS: Marks = (
    ("publish requested", "hotnic-api", "send hotplug.requested"),
    ("NAD", "hotnic-networks", "kube get network-attachment-definitions"),
    ("/delegate", "hotnic-networks", "POST /delegate"),
    ("CNI plugin", "hotnic-multus", "cni ADD"),
    ("network-status", "hotnic-networks", "kube patch pods/status"),
    ("netlink", "hotnic-handler", "netlink setup"),
    ("netdev_add", "hotnic-handler", "qmp netdev_add"),
    ("device_add", "hotnic-handler", "qmp device_add"),
)
"""Spans inside a hop of a plug that get a line of their own."""

UNPLUG_PARTS: Marks = (
    ("netdev_del", "hotnic-handler", "qmp netdev_del"),
    ("netlink", "hotnic-handler", "netlink teardown"),
    ("/delegate", "hotnic-networks", "POST /delegate"),
    ("CNI plugin", "hotnic-multus", "cni DEL"),
)
"""Spans inside a hop of an unplug that get a line of their own."""


def first(spans: Sequence[Span], service: str, name: str) -> Span | None:
    """Return the earliest span of a service whose name has this prefix."""
    found = [s for s in spans if s["service"] == service and s["name"].startswith(name)]
    return min(found, key=lambda s: int(s["startTimeUnixNano"]), default=None)


def end_of(span: Span) -> float:
    """Return the end of a span in milliseconds since the epoch."""
    return int(span["endTimeUnixNano"]) / 1e6


def hops(spans: Sequence[Span], began: float, marks: Marks) -> dict[str, float]:
    """Return the duration of each hop of one operation.

    :param began: time of the request in seconds since the epoch.
    """
    result: dict[str, float] = {}
    at = began * 1000
    for name, service, span_name in marks:
        span = first(spans, service, span_name)
        if span is not None:
            result[name] = end_of(span) - at
            at = end_of(span)
    return result


def parts(spans: Sequence[Span], marks: Marks) -> dict[str, float]:
    """Return the durations of spans."""
    found = {name: first(spans, service, span_name) for name, service, span_name in marks}
    return {
        name: end_of(span) - int(span["startTimeUnixNano"]) / 1e6 for name, span in found.items() if span is not None
    }


def medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the median of each column, over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: statistics.median(row[name] for row in rows if name in row) for name in names}


def summary(rows: Sequence[dict[str, Any]], vms: int, idle: float) -> dict[str, Any]:
    """Return the result of operations that were measured one by one.

    :param rows: ``ms``, ``hops`` and ``parts`` of each operation.
    :param idle: share of idle CPU time.
    """
    times = [row["ms"] for row in rows]
    return {
        "operations": len(rows),
        "vms": vms,
        "cpu_idle": round(idle, 2),
        "p50_ms": round(percentile(times, 50), 1),
        "p90_ms": round(percentile(times, 90), 1),
        "max_ms": round(max(times), 1),
        "hops_ms": {name: round(value, 1) for name, value in medians([row["hops"] for row in rows]).items()},
        "parts_ms": {name: round(value, 1) for name, value in medians([row["parts"] for row in rows]).items()},
    }


def show(title: str, result: dict[str, Any]) -> None:
    """Print a result of :func:`summary`."""
    print(
        f"\n{title}: p50 {result['p50_ms']} ms, p90 {result['p90_ms']} ms, max {result['max_ms']} ms "
        f"({result['operations']} on {result['vms']} VMs, CPU idle {result['cpu_idle']:.0%})"
    )
    whole = sum(result["hops_ms"].values())
    for name, value in result["hops_ms"].items():
        print(f"  {name:<26}{value:7.1f} ms  {value / whole:4.0%}")
    print("inside:")
    for name, value in result["parts_ms"].items():
        print(f"  {name:<26}{value:7.1f} ms")


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile by linear interpolation."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def rss(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def memory(pid: int) -> dict[str, float]:
    """Return the memory of a process in MiB: resident, its share of it, and what it alone has."""
    found = dict.fromkeys(("Rss", "Pss", "Private_Clean", "Private_Dirty"), 0.0)
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        if name.rstrip(":") in found:
            found[name.rstrip(":")] = int(value) / 1024
    alone = found["Private_Clean"] + found["Private_Dirty"]
    return {"rss": round(found["Rss"], 1), "pss": round(found["Pss"], 1), "uss": round(alone, 1)}


def import_floor(module: str) -> float:
    """Return the resident memory of an interpreter that has only imported a module, in MiB."""
    code = f"import {module}, re; print(re.search('VmRSS:\\\\s+(\\\\d+)', open('/proc/self/status').read())[1])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def processes(text: str) -> Iterator[tuple[Path, list[bytes]]]:
    """Yield the folder in /proc and the command of each process whose command line or environment has a text."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if os.fsencode(text) in b"\0".join((*command, environment)):
            yield folder, command


def pids(argument: str) -> dict[str, int]:
    """Return the ids of processes by their module (``-m services.ROLE``).

    :param argument: text that environment or command line of a process must contain.
    """
    found: dict[str, int] = {}
    for folder, command in processes(argument):
        if b"-m" in command:
            module = command[command.index(b"-m") + 1].decode()
            found[module.removeprefix("services.")] = int(folder.name)
    return found


def cpu_time(pid: int) -> float:
    """Return the CPU time of a process and of its reaped children, in milliseconds."""
    # The name of the process is in parentheses and may contain spaces and parentheses.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) * 1000 / os.sysconf("SC_CLK_TCK")


class CpuIdle:
    """Share of CPU time that was idle since the creation of this object."""

    def __init__(self) -> None:
        self._before = self._read()

    @staticmethod
    def _read() -> tuple[int, int]:
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        return fields[3] + fields[4], sum(fields)

    def share(self) -> float:
        """Return idle time divided by total time."""
        idle, total = self._read()
        return (idle - self._before[0]) / max(1, total - self._before[1])
