"""Played webhooks of neighbours, each a :attr:`.node_kube.FakeKube.mutate`: kubemacpool's and ipam-extensions'.

They do what the real ones do to a patch of hotnic, and nothing else.
"""

import json
from typing import Any

from schemas.kubernetes.networks import NETWORKS

PREFIX = "02:aa:aa:00:00:"


class MacPool:
    """kubemacpool's: it gives each interface of a VM's template a MAC that has none, at a patch of the interfaces.

    VMIs have no such webhook.

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


def claim_addresses(plural: str, _old: dict[str, Any], new: dict[str, Any]) -> None:
    """Name the IPAMClaim of each element of a launcher pod, as ipam-extensions does for networks with persistent IPs.

    Like the Go program it writes all elements anew.
    """
    if plural != "pods":
        return
    annotations = new["metadata"]["annotations"]
    elements = json.loads(annotations.get(NETWORKS) or "[]")
    for element in elements:
        element["ipam-claim-reference"] = f"vm1.{element['name']}"
    annotations[NETWORKS] = json.dumps(elements, separators=(",", ":"))
