"""An in-memory cache of what this process did for the pods of its node.

The role is correct without it: losing the cache in a restart costs a few calls. An entry is removed with its pod.
Next: :mod:`services.networks.apply`.
"""

import msgspec

from services.common.cri.sandbox import Sandbox
from services.common.telemetry.stores import STORES, Bounded
from services.networks.status import AttachOutcome

MAX_REPORTED = 256
"""Warnings that are remembered as recorded, of one pod. Beyond that one may be recorded again, which does no harm."""
MAX_FAILURES = 256
"""Links of one pod whose failed attempts are counted. The pod's annotation may name others without end."""


class CachedPod(msgspec.Struct):
    """The cache entry of one pod.

    :ivar sandbox: the sandbox of the last successful ADD; dropped when an ADD in it fails.
    :ivar sandbox_id: id of the sandbox that the following fields refer to.
    :ivar unwritten_outcomes: outcomes of ADDs that succeeded and are not yet written to the pod, by sandbox id, network
        and link. The next attempt only writes them, because upstream's daemon refuses a second ADD.
    :ivar detached_links: links that were detached and are still listed in network-status.
    :ivar compared: the networks annotation that was last compared with the sandbox's record; ``None`` if none was.
    :ivar failures: number of consecutive failed attempts, by link.
    :ivar reported: digests of the Events that need recording only once.
    """

    sandbox: Sandbox | None = None
    sandbox_id: str = ""
    unwritten_outcomes: dict[tuple[str, str, str], AttachOutcome] = {}
    detached_links: set[str] = set()
    compared: str | None = None
    failures: Bounded[str, int] = msgspec.field(default_factory=lambda: Bounded("failures-of-pod", MAX_FAILURES))
    reported: Bounded[bytes, None] = msgspec.field(default_factory=lambda: Bounded("warnings-of-pod", MAX_REPORTED))

    def set_sandbox(self, sandbox_id: str) -> None:
        """Set the pod's sandbox and drop what refers to an earlier one, whose netns and links no longer exist."""
        if self.sandbox_id not in ("", sandbox_id):
            self.unwritten_outcomes = {
                key: outcome for key, outcome in self.unwritten_outcomes.items() if key[0] == sandbox_id
            }
            self.detached_links.clear()
            self.compared = None
        self.sandbox_id = sandbox_id


class PodCache:
    """The cache entries of the node's pods, by pod UID."""

    def __init__(self) -> None:
        self._pods: dict[str, CachedPod] = {}
        STORES.watch("pods-changed", self, len)

    def of(self, uid: str) -> CachedPod:
        """Return the entry of a pod; it is created if there is none."""
        found = self._pods.get(uid)
        if found is None:
            found = self._pods[uid] = CachedPod()
        return found

    def retain_only(self, uids: set[str]) -> None:
        """Remove the entries of all other pods."""
        for uid in self._pods.keys() - uids:
            del self._pods[uid]

    def __len__(self) -> int:
        return len(self._pods)
