"""What a tenant can leave behind in a lab: on the node, in the bus, and in the processes of the roles.

Two snapshots, before the tenant came and after it has left, are compared. Figures that vary by themselves (memory, file
descriptors) are compared with a tolerance, all others exactly.
"""

import asyncio
import time
from dataclasses import dataclass

from nats.js.errors import NoKeysError

from lab.layout import ROLES
from lab.namespaces import control
from schemas.bus.hotplug_status import BUCKET
from tests.support.bus.client import nats_client
from tests.support.hostile.tenant import NAMESPACE
from tests.support.lab.node_state import NodeState, node_state
from tests.support.lab.running import Lab

MORE_DESCRIPTORS = 12
"""File descriptors that a role may have more than before: its connections to the API server come and go."""

_ROLE = """
printf '%s %s %s' "$(ls /proc/$0/fd | wc -l)" "$(grep VmRSS /proc/$0/status | tr -dc 0-9)" \
  "$(cat /proc/$0/task/*/children | wc -w)"
"""


@dataclass(frozen=True)
class RoleProcess:
    """A role's process.

    :ivar descriptors: number of its open file descriptors.
    :ivar mib: its resident memory in MiB.
    :ivar children: number of its child processes.
    """

    pid: int
    ready: bool
    descriptors: int
    mib: float
    children: int


@dataclass(frozen=True)
class Snapshot:
    """Everything that may be left.

    :ivar guests: names of the folders of guests.
    :ivar values: keys of the hot-plug status bucket that name the tenant's namespace.
    """

    node: NodeState
    guests: frozenset[str]
    values: frozenset[str]
    roles: dict[str, RoleProcess]


async def take(lab: Lab) -> Snapshot:
    """Take a snapshot."""
    node = await asyncio.to_thread(node_state, lab)
    guests = frozenset(path.name for path in lab.layout.guests.iterdir())
    return Snapshot(node, guests, await _values(lab), await asyncio.to_thread(_roles, lab))


async def nothing_left(lab: Lab, before: Snapshot, timeout: float = 90.0) -> Snapshot:
    """Wait until nothing is left of what came after a snapshot; return the last one.

    :raises AssertionError: something is still there in the end.
    """
    deadline = time.monotonic() + timeout
    while True:
        now = await take(lab)
        found = differences(before, now)
        if not found:
            return now
        assert time.monotonic() < deadline, "left behind: " + "; ".join(found)
        await asyncio.sleep(0.5)


def differences(before: Snapshot, now: Snapshot) -> list[str]:
    """Return what is left, and which roles do not serve or are not those of before."""
    found = [
        f"{kind} {sorted(left)}"
        for kind, left in (
            ("network namespaces", now.node.links.keys() - before.node.links.keys()),
            ("links", _links(now.node) - _links(before.node)),
            ("host links", now.node.veths - before.node.veths),
            ("leases", now.node.leases - before.node.leases),
            ("results and records", _files(now.node) - _files(before.node)),
            ("guests", now.guests - before.guests),
            ("values", now.values),
        )
        if left
    ]
    for name, role in now.roles.items():
        earlier = before.roles[name]
        if role.pid != earlier.pid or not role.ready:
            found.append(f"{name} has restarted or does not serve: {role}")
        elif role.descriptors > earlier.descriptors + MORE_DESCRIPTORS or role.children > earlier.children:
            found.append(f"{name}: {role}, before {earlier}")
    return found


def _links(node: NodeState) -> set[str]:
    return {f"{name}/{link}" for name, links in node.links.items() for link in links}


def _files(node: NodeState) -> set[str]:
    # Of a network that was ever used, host-local keeps a lock and the last address.
    return {file for file in node.files if "/networks/" not in file}


async def _values(lab: Lab) -> frozenset[str]:
    async with nats_client(lab.unrestricted_nats) as client:
        try:
            # Without the markers of deleted keys, which the controller removes from time to time.
            keys = await (await client.jetstream().key_value(BUCKET)).keys()
        except NoKeysError:
            return frozenset()
    return frozenset(key for key in keys if key.startswith(f"{NAMESPACE}."))


def _roles(lab: Lab) -> dict[str, RoleProcess]:
    (*_, status) = control.request(lab.layout.control_socket, {"verb": "status"}, 90.0)
    found = {}
    for one in status["components"]:
        if one["name"] in ROLES:
            descriptors, kib, children = lab.run_inside("sh", "-c", _ROLE, str(one["pid"])).split()
            found[one["name"]] = RoleProcess(
                one["pid"], bool(one.get("ready")), int(descriptors), int(kib) / 1024, int(children)
            )
    return found
