"""CPU time of the processes of a lab and of the machine: what an operation costs, and which process it costs that."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import processes

PLUGINS = "CNI plugins"
"""Everything that multus has started and reaped."""
REST = "rest"
"""What is in no process of the lab, and what has ended meanwhile: the kernel's own threads, containers, shims."""


@dataclass(frozen=True)
class CpuTimes:
    """Milliseconds of CPU until now.

    :ivar machine: of all processors, without what was idle.
    :ivar processes: by name.
    """

    machine: float
    processes: Mapping[str, float]

    @classmethod
    def read(cls, directory: Path) -> "CpuTimes":
        """Return the times of the processes whose command line or environment names the directory of a lab."""
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        found = {"this bench": _of_process(Path("/proc/self"))[0]}
        for folder, command in processes(str(directory)):
            if int(folder.name) == os.getpid():
                continue
            try:
                own, reaped = _of_process(folder)
            except OSError:
                continue
            name = _name(command)
            found[name] = found.get(name, 0.0) + own
            if name == "multus":
                found[PLUGINS] = found.get(PLUGINS, 0.0) + reaped
        return cls(_milliseconds(sum(fields) - fields[3] - fields[4]), found)

    def since(self, before: "CpuTimes", operations: int) -> dict[str, float]:
        """Return the milliseconds of one operation, by process, the most expensive first; what took none is left out.

        :param operations: how many there were.
        """
        now = self.processes
        spent = {name: now[name] - earlier for name, earlier in before.processes.items() if name in now}
        spent[REST] = self.machine - before.machine - sum(spent.values())
        one = {name: round(value / operations, 1) for name, value in spent.items()}
        return dict(sorted(((name, value) for name, value in one.items() if value), key=lambda item: -item[1]))


def rate_without(spent: Mapping[str, float], names: tuple[str, ...]) -> float:
    """Return the operations a second that the machine could do if these processes took no CPU time at all."""
    others = sum(value for name, value in spent.items() if name not in names)
    return (os.cpu_count() or 1) * 1000 / others


def _of_process(folder: Path) -> tuple[float, float]:
    """Return the time of a process, and that of its reaped children."""
    # The name of the process is in parentheses and may contain spaces and parentheses.
    fields = [int(field) for field in (folder / "stat").read_text().rpartition(")")[2].split()[11:15]]
    return _milliseconds(fields[0] + fields[1]), _milliseconds(fields[2] + fields[3])


def _milliseconds(ticks: int) -> float:
    return ticks * 1000 / os.sysconf("SC_CLK_TCK")


def _name(command: list[bytes]) -> str:
    """Return the module that an interpreter runs, without its package, or else the name of the program."""
    program = os.fsdecode(command[0]).rpartition("/")[2]
    if program.startswith("python") and b"-m" in command:
        return os.fsdecode(command[command.index(b"-m") + 1]).removeprefix("services.")
    return program
