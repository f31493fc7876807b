"""The time that each step of the played KubeVirt takes, and steps that a test holds back.

A held step is left out until it is released, while all others go on. Next: `loops/`, which take the steps.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Literal, TypeAlias

Step: TypeAlias = Literal[
    "vmi-spec",
    "annotation",
    "network-status",
    "multus-status",
    "attach",
    "guest-agent",
    "detach",
    "link-state",
    "template",
    "condition",
    "grace",
    "workload-update",
    "target-pod",
    "hand-over",
    "end-source",
    "boot",
]
"""The steps, in the order of a plug, an unplug and a migration."""


class Pace:
    """Delays steps and holds them back.

    :param delay: returns the seconds before a step.
    :ivar released: called when a step is released.
    """

    def __init__(self, delay: Callable[[Step], float] = lambda _step: 0.0) -> None:
        self._delay = delay
        self._held: set[tuple[Step, str]] = set()
        self.released: Callable[[], None] = lambda: None

    @classmethod
    def spread(cls, longest: float, rng: random.Random) -> Pace:
        """Return a pace with a random delay of at most `longest` seconds before each step."""
        return cls(lambda _step: rng.uniform(0.0, longest))

    def hold(self, step: Step, name: str = "") -> None:
        """Hold a step back, for one interface or VMI, or for all."""
        self._held.add((step, name))

    def release(self, step: Step, name: str = "") -> None:
        """Take the step again, and at once where it is due."""
        self._held.discard((step, name))
        self.released()

    def holds(self, step: Step, name: str) -> bool:
        """Return whether a step is held back for an interface or VMI."""
        return (step, name) in self._held or (step, "") in self._held

    def held(self, step: Step) -> frozenset[str]:
        """Return the names for which a step is held back; the empty name means all."""
        return frozenset(name for held, name in self._held if held == step)

    async def before(self, step: Step) -> None:
        """Wait for the time of a step."""
        if (seconds := self._delay(step)) > 0:
            await asyncio.sleep(seconds)
