"""The state that NICs have on a lab's node: links, IPAM leases and multus records, read with the node's own tools."""

import json
from dataclasses import dataclass

from lab.layout import NODE_NAME
from schemas.names import bridge, bridged_nic, pod_interface, tap
from tests.support.lab.running import Lab

_SCRIPT = """
for name in $(ls /run/netns); do printf '%s ' "$name"; ip -n "$name" -j link | tr -d '\\n'; echo; done
printf '* '; ip -j link show type veth | tr -d '\\n'; echo
printf 'files '; find /var/lib/cni -type f | tr '\\n' ' '; echo
printf 'records '; cat /var/lib/cni/multus/sandboxes/*.json | tr -d '\\n'; echo
"""


@dataclass(frozen=True)
class NodeState:
    """A snapshot of the node.

    :ivar links: names, by network namespace.
    :ivar veths: names of the host ends.
    :ivar leases: addresses that host-local has leased.
    :ivar files: state files of all CNI plugins.
    :ivar records: the text of all multus records.
    """

    links: dict[str, frozenset[str]]
    veths: frozenset[str]
    leases: frozenset[str]
    files: frozenset[str]
    records: str

    def namespace_of(self, interface: str) -> str:
        """Return the network namespace of the pod that has the tap of an interface."""
        (name,) = [name for name, links in self.links.items() if tap(interface) in links]
        return name

    def state_of(self, interface: str) -> list[str]:
        """Return descriptions of everything on the node that belongs to an interface."""
        names = {pod_interface(interface), bridge(interface), tap(interface), bridged_nic(interface)}
        found = [f"{link} in {name}" for name, links in self.links.items() for link in sorted(links & names)]
        found += [f"file {file}" for file in sorted(self.files) if pod_interface(interface) in file]
        return found + (["record of multus"] if f'"{pod_interface(interface)}"' in self.records else [])


def node_state(lab: Lab, node: str = NODE_NAME) -> NodeState:
    """Read the state of a node."""
    links: dict[str, frozenset[str]] = {}
    veths, files, records = frozenset[str](), frozenset[str](), ""
    for line in lab.run_inside("sh", "-c", _SCRIPT, node=node).splitlines():
        key, _, text = line.partition(" ")
        if key == "files":
            files = frozenset(text.split())
        elif key == "records":
            records = text
        else:
            names = frozenset(link["ifname"] for link in json.loads(text or "[]") if "ifname" in link)
            if key == "*":
                veths = names
            else:
                links[key] = names
    leases = frozenset(file.rpartition("/")[2] for file in files if "/networks/" in file)
    return NodeState(links, veths, frozenset(name for name in leases if name[:1].isdigit()), files, records)


def attachments(lab: Lab) -> dict[str, set[str]]:
    """Return the state of attachments on the node: host veths, leases by address, records and results by file."""
    links = json.loads(lab.run_inside("ip", "-j", "link", "show", "type", "veth") or "[]")
    files = lab.run_inside("find", "/var/lib/cni", "-type", "f").split()
    leases = {file.rpartition("/")[2] for file in files if "/networks/" in file}
    return {
        "veth": {link["ifname"] for link in links},
        "lease": {name for name in leases if name.startswith("10.")},
        "record": {file for file in files if "/multus/sandboxes/" in file and file.endswith(".json")},
        "result": {file for file in files if "/results/" in file},
    }
