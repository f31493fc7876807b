"""What this process remembers of the pods on its node. Nothing of it is truth: a restart only costs a few calls.

Forgotten with the pod. Next: :mod:`services.networks.apply`.
"""

import msgspec

from services.common.cri.sandbox import Sandbox
from services.networks.status import Outcome


class PodMemory(msgspec.Struct):
    """One pod, by UID.

    :ivar sandbox: as the runtime told the last ADD; dropped when an ADD in it fails.
    :ivar sandbox_id: of the sandbox that everything below is about.
    :ivar unrecorded: made, but not yet written on the pod: the next attempt writes instead of adding again (upstream's
        daemon refuses a second ADD). By sandbox id, network and link.
    :ivar undone: links detached and not yet struck from the pod.
    :ivar compared: the networks annotation that agrees with the sandbox's record; ``None``: none was looked at yet.
    :ivar failures: attempts that failed in a row, by link.
    :ivar reported: Events that have been sent once.
    """

    sandbox: Sandbox | None = None
    sandbox_id: str = ""
    unrecorded: dict[tuple[str, str, str], Outcome] = {}
    undone: set[str] = set()
    compared: str | None = None
    failures: dict[str, int] = {}
    reported: set[tuple[str, ...]] = set()

    def runs_in(self, sandbox_id: str) -> None:
        """Note the pod's sandbox; what was made, undone or compared in an earlier one went with it."""
        if self.sandbox_id not in ("", sandbox_id):
            self.unrecorded = {key: made for key, made in self.unrecorded.items() if key[0] == sandbox_id}
            self.undone.clear()
            self.compared = None
        self.sandbox_id = sandbox_id


class Memory:
    """All pods of the node."""

    def __init__(self) -> None:
        self._pods: dict[str, PodMemory] = {}

    def of(self, uid: str) -> PodMemory:
        """The memory of a pod, made when there is none."""
        return self._pods.setdefault(uid, PodMemory())

    def keep_only(self, uids: set[str]) -> None:
        """Forget every pod but these."""
        for uid in self._pods.keys() - uids:
            del self._pods[uid]

    def __len__(self) -> int:
        return len(self._pods)
