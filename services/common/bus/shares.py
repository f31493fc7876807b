"""How many messages of one node a consumer handles and dead-letters, so that no node crowds out the others. Pure.

NATS has no limit for what a client publishes in a second. A node may publish on subjects of its own node only, so the
subject says whose share a message is taken from. What a message beyond the share said is found by watch and resync. To
skip a message takes time, too: :class:`services.common.bus.nats.consumers.pull.ConsumerBehind` limits how much.
Next: :mod:`services.common.bus.middleware`, which skips such messages.
"""

import time
from collections.abc import Callable

import msgspec

from schemas.bus.encoding import NO_NODE
from schemas.bus.permissions import NODE_ROLES
from schemas.stages import TABLE
from services.common.flowcontrol.allowance import Allowance
from services.common.telemetry.stores import Bounded

MAX_EVENTS = 1_000
"""Events of a node at once. Its roles publish two or three of a plug: a plug of each of 250 VMs at once."""
EVENTS_PER_SECOND = 100
"""Events of a node in the long run. A controller handles some thousands a second."""
MAX_DEAD_LETTERS = 100
"""Dead letters of a node at once; a publish waits behind them, and the outbox has room for 1,000 messages."""
DEAD_LETTERS_PER_SECOND = 1
MAX_NODES = 8192
"""Nodes that are remembered; a forgotten one has its whole share again."""
LOG_INTERVAL = 60.0
"""Seconds between two lines of the log about a node, or about a consumer that is behind."""
_OF_CLUSTER = frozenset(str(row.stage) for row in TABLE if not NODE_ROLES.intersection(row.publishers))
"""Stages that no node may publish, as NATS' permissions say."""


class _Share(msgspec.Struct):
    events: Allowance
    dead_letters: Allowance
    logged: float = float("-inf")


class NodeShares:
    """The shares of the nodes at one consumer.

    :param clock: seconds of a clock that only goes forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._shares: Bounded[str, _Share] = Bounded("bus-nodes", MAX_NODES)

    def take_event(self, subject: str) -> bool:
        """Take a message from its node's share; return ``False`` if nothing is left of that.

        What roles of the cluster publish has no limit: the node in it is that of a VM's status, which users write.
        """
        node = node_of(subject)
        if node == NO_NODE or stage_of(subject) in _OF_CLUSTER:
            return True
        return self._take(self._share(node).events, MAX_EVENTS)

    def take_dead_letter(self, subject: str) -> bool:
        """Take the dead letter of a message from its node's share; return ``False`` if nothing is left of that."""
        return self._take(self._share(node_of(subject)).dead_letters, MAX_DEAD_LETTERS)

    def may_log(self, subject: str) -> bool:
        """Return whether to log what happened to a message beyond its node's share: once a minute for each node."""
        share, now = self._share(node_of(subject)), self._clock()
        if now < share.logged + LOG_INTERVAL:
            return False
        share.logged = now
        return True

    def _take(self, allowance: Allowance, limit: int) -> bool:
        now = self._clock()
        if allowance.used(now) + 1 > limit:
            return False
        allowance.use(now)
        return True

    def _share(self, node: str) -> _Share:
        share = self._shares.get(node)
        if share is None:
            share = _Share(Allowance(1 / EVENTS_PER_SECOND), Allowance(1 / DEAD_LETTERS_PER_SECOND))
        # The one that was used the longest time ago is forgotten first.
        self._shares[node] = share
        return share


def stage_of(subject: str) -> str:
    """Return the stage token of a message's subject; empty if it has none."""
    tokens = subject.split(".", 2)
    return tokens[1] if len(tokens) > 2 else ""


def node_of(subject: str) -> str:
    """Return the node token of a message's subject; ``_`` if it has none, which a node may not publish."""
    tokens = subject.split(".", 3)
    return tokens[2] if len(tokens) > 2 else NO_NODE
