"""Asking a guest to let go of a card: how long, how often, and what people hear of it meanwhile. Pure.

There is no last time: only the guest can let go. Next: :mod:`services.handler.unplug`, which decides whom to ask.
"""

import msgspec

PATIENCE = 5.0
"""Seconds a guest may take before people hear that it does not let go. A Linux guest takes 0.1 s; one that still boots
takes until its drivers are there."""

FIRST_AGAIN, MAX_AGAIN = 1.0, 30.0
"""Seconds until the guest is asked a second time, doubled with each further one."""

PRESSED = 5.0
"""Seconds for which QEMU itself refuses to repeat a request: a second press of the attention button would cancel the
first."""


class Asked(msgspec.Struct, frozen=True):
    """What the guest was asked to let go of. Times are seconds of a monotonic clock.

    :ivar times: how often. :ivar since: the first request. :ivar due: when to ask again.
    :ivar why: what the domain said to the last request; empty when it took it.
    :ivar refused: the guest itself said that it keeps the card.
    :ivar taken: when the domain last took a request.
    """

    times: int
    since: float
    due: float
    why: str = ""
    refused: bool = False
    taken: float | None = None

    def deadline(self) -> float:
        """When the guest is late."""
        return self.since + PATIENCE

    def late(self, now: float) -> bool:
        """Whether people should hear of it."""
        return self.refused or now >= self.deadline()


def asked_again(before: Asked | None, now: float) -> Asked:
    """The state after one more request."""
    times = before.times + 1 if before else 1
    step: float = min(MAX_AGAIN, FIRST_AGAIN * 2 ** min(times - 1, 30))
    refused, taken = (before.refused, before.taken) if before else (False, None)
    return Asked(times, before.since if before else now, now + step, refused=refused, taken=taken)


def stirred(asked: Asked, now: float) -> Asked:
    """The state after the guest showed that it is up: what it was asked before may have been lost in a reboot.

    A guest that was asked just now shows so while it lets go.
    """
    if now < asked.since + FIRST_AGAIN:
        return asked
    earliest = now if asked.taken is None else max(now, asked.taken + PRESSED)
    return msgspec.structs.replace(asked, due=min(asked.due, earliest))


def next_look(asked: Asked, now: float) -> float:
    """Seconds until something is to be done about a card that stays: asking again, or telling."""
    due = asked.due if asked.late(now) else min(asked.due, asked.deadline())
    return max(0.0, due - now)


def told(interface: str, asked: Asked, now: float) -> str:
    """What people read about a guest that keeps its card."""
    how = "refuses to let go" if asked.refused else f"has not let go for {now - asked.since:.0f} s"
    text = f"the guest {how} of {interface}; it was asked {asked.times} times and is asked again until it does"
    return f"{text} ({asked.why})" if asked.why else text
