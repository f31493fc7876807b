"""A played kubemacpool: the webhook that gives each interface of a VM's template a MAC.

Like kubemacpool's ``mutate-virtualmachines`` it acts on a patch that changes the interfaces, sets ``macAddress`` where
there is none and changes nothing else. VMIs have no such webhook. It is a :attr:`.node_kube.FakeKube.mutate`.
"""

from typing import Any

PREFIX = "02:aa:aa:00:00:"


class MacPool:
    """The webhook.

    :param always: act on every patch of a VM, also on one that leaves the interfaces as they are.
    :ivar assigned: the MACs that it has set, in order.
    """

    def __init__(self, *, always: bool = False) -> None:
        self._always = always
        self.assigned: list[str] = []

    def __call__(self, plural: str, old: dict[str, Any], new: dict[str, Any]) -> None:
        """Set the MACs of a patched VM."""
        if plural != "virtualmachines" or (_interfaces(old) == _interfaces(new) and not self._always):
            return
        for item in _interfaces(new):
            if not item.get("macAddress"):
                self.assigned.append(f"{PREFIX}{len(self.assigned):02x}")
                item["macAddress"] = self.assigned[-1]


def _interfaces(vm: dict[str, Any]) -> list[dict[str, Any]]:
    return vm["spec"]["template"]["spec"]["domain"]["devices"].get("interfaces") or []
