"""Two sides of a comparison that plug in turns, in one run: a slow minute of the machine is a minute of both.

The order of the sides changes with each turn, so that neither is always the later one.
"""

import asyncio
import os
import random
import statistics
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.bench.measure import CpuIdle, percentile
from tests.support.lab.timed_plugs import TimedPlugs

TURNS = int(os.environ.get("HOTNIC_BENCH_TURNS", "10"))
PLUGS = int(os.environ.get("HOTNIC_BENCH_PLUGS", "10"))
"""Plugs of each side in one turn."""
WARM_UP = 2
"""Plugs before each turn that do not count."""
PAUSE = 0.2
"""Seconds between two operations."""
SAMPLES = 2000
"""Resamples from which the interval of a ratio is taken."""
GOAL = 1.05
"""With against without: issue 16 allows 5 % of the plug's p50."""


async def _nothing() -> None:
    return


@dataclass
class Side:
    """One side.

    :ivar enter: makes the cluster that of this side; called before each turn.
    :ivar beside: returns milliseconds of something smaller that is measured once for each plug, by name.
    :ivar plugs: the milliseconds of the plugs, by turn.
    """

    timed: TimedPlugs
    enter: Callable[[], Awaitable[None]] = _nothing
    beside: Mapping[str, Callable[[], Awaitable[float]]] = field(default_factory=dict)
    plugs: list[list[float]] = field(default_factory=list)
    unplugs: list[float] = field(default_factory=list)
    floor: dict[str, list[float]] = field(default_factory=dict)

    async def turn(self, number: int) -> None:
        """Plug and unplug :data:`PLUGS` times."""
        await self.enter()
        measured: list[float] = []
        for count in range(WARM_UP + PLUGS):
            # A name of its own: the attachment of the one before may still be going.
            name = f"bench-{number}-{count}"
            plug = await self.timed.plug(name)
            await asyncio.sleep(PAUSE)
            unplug = await self.timed.unplug(name)
            await asyncio.sleep(PAUSE)
            if count >= WARM_UP:
                measured.append(plug)
                self.unplugs.append(unplug)
                for what, measure in self.beside.items():
                    self.floor.setdefault(what, []).append(await measure())
        self.plugs.append(measured)

    def all_plugs(self) -> list[float]:
        """Return the milliseconds of all plugs."""
        return [plug for turn in self.plugs for plug in turn]


async def compare(with_it: Side, without: Side) -> dict[str, Any]:
    """Let both sides plug in turns; return the figures."""
    idle = CpuIdle()
    for number in range(TURNS):
        sides = (with_it, without) if number % 2 == 0 else (without, with_it)
        for side in sides:
            await side.turn(number)
    plugs = with_it.all_plugs(), without.all_plugs()
    low, high = ratio_interval(*plugs)
    result: dict[str, Any] = {
        "turns": TURNS,
        "plugs_of_a_turn": PLUGS,
        "cpu_idle": round(idle.share(), 2),
        "plug_p50_ratio": round(ratio(*plugs), 3),
        "plug_p50_ratio_95_percent": [round(low, 3), round(high, 3)],
        "unplug_p50_ratio": round(ratio(with_it.unplugs, without.unplugs), 3),
        "goal": GOAL,
    }
    for name, side in (("with", with_it), ("without", without)):
        result[name] = {
            "plug": figures(side.all_plugs()),
            "unplug": figures(side.unplugs),
            "plug_p50_ms_by_turn": [round(statistics.median(turn), 1) for turn in side.plugs],
            **{what: figures(times) for what, times in side.floor.items()},
        }
    return result


def figures(times: list[float]) -> dict[str, float]:
    """Return the spread of some durations."""
    shares = {f"p{share}_ms": round(percentile(times, share), 2) for share in (25, 50, 75, 95)}
    return {"count": len(times), **shares, "max_ms": round(max(times), 2)}


def ratio(one: list[float], other: list[float]) -> float:
    """Return the ratio of two medians."""
    return statistics.median(one) / statistics.median(other)


def ratio_interval(one: list[float], other: list[float]) -> tuple[float, float]:
    """Return the interval in which 95 of 100 ratios of resampled medians are: what chance alone does to the ratio."""
    rng = random.Random(1)
    found = sorted(ratio(rng.choices(one, k=len(one)), rng.choices(other, k=len(other))) for _ in range(SAMPLES))
    return found[SAMPLES // 40], found[-SAMPLES // 40]


def show(title: str, result: dict[str, Any]) -> None:
    """Print the result of :func:`compare` as a table."""
    low, high = result["plug_p50_ratio_95_percent"]
    print(
        f"\n{title}: {result['turns']} turns of {result['plugs_of_a_turn']} plugs each, CPU idle "
        f"{result['cpu_idle']:.0%}\n{'':<34}{'p25':>9}{'p50':>9}{'p75':>9}{'p95':>9}{'max':>9}  ms"
    )
    for what in [what for what, found in result["with"].items() if isinstance(found, dict)]:
        for name in ("with", "without"):
            one = result[name][what]
            row = "".join(f"{one[key]:9.1f}" for key in ("p25_ms", "p50_ms", "p75_ms", "p95_ms", "max_ms"))
            print(f"  {f'{what}, {name}':<32}{row}  ({one['count']})")
    for name in ("with", "without"):
        print(f"  p50 of each turn, {name:<9}", *(f"{value:7.1f}" for value in result[name]["plug_p50_ms_by_turn"]))
    print(
        f"  with / without: plug {result['plug_p50_ratio']} (95 %: {low} to {high}; goal: at most {GOAL}), "
        f"unplug {result['unplug_p50_ratio']}"
    )
