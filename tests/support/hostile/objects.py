"""The objects of a hostile tenant as JSON texts: VMs, VMIs, NADs, annotations of pods, and request bodies. Pure.

Each function returns one of many variants, chosen by a random source, so that a seed repeats them. What the tenant does
with them is the subject of :mod:`tests.support.hostile.tenant`, which is next.
"""

import json
import random
from functools import cache
from typing import Any

from lab.tools import PAUSE_IMAGE
from schemas.kubernetes.kubevirt import NODE_LABEL
from schemas.kubernetes.networks import NETWORKS
from schemas.kubernetes.objects import CREATED_BY_LABEL
from tests.support.hostile.values import ADDRESSES, DOCUMENTS, MACS, NAMES, NUMBERS, STATES

BRIDGE = "hotnic-br1"
"""The bridge of the lab's sample network: what the tenant attaches is beside what others attach."""
SILENT_SOCKET = "/run/hotnic/silent.sock"
"""A socket on which nobody answers, as seen by plugins: the DHCP client waits for it."""
INTERFACES = 500
LARGE = 100_000
TYPED = 0.75
"""Share of the specs that the API server accepts."""
VMI_DEPTHS = (50, 5000)
"""Levels that the lab's node can read, or that the API server refuses: otherwise nobody would remove the finalizer."""
_NEST = '"@nest@"'
_BINDINGS = ("bridge", "masquerade", "sriov", "binding", "passt", "exploding")

SMALL, HALF, SLOW = "small", "half", "slow"
"""NADs that are proper, and whose addresses are exhausted; whose second plugin fails; whose plugin never ends."""


def document(rng: random.Random) -> bytes:
    """Return a hostile document; a large one is rare, because it costs the lab's API server most."""
    found = rng.choice(list(DOCUMENTS.values()))
    return found if len(found) < LARGE or rng.random() < 0.1 else b"{}"


def text_of(document: Any, rng: random.Random, depths: tuple[int, ...] = (65, 100, 5000)) -> bytes:
    """Return a document as JSON; what :func:`nested` returned in it becomes a value of so many levels."""
    depth = rng.choice(depths)
    return json.dumps(document).replace(_NEST, "[" * depth + "]" * depth).encode()


def nested() -> str:
    """Return a placeholder of a value of many levels."""
    return _NEST.strip('"')


@cache
def nads() -> dict[str, str]:
    """Return the configurations of the tenant's networks by name."""

    def bridge(subnet: str, **more: Any) -> dict[str, Any]:
        ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}]]}
        return {"cniVersion": "1.0.0", "type": "bridge", "bridge": BRIDGE, "ipam": ipam, **more}

    proper = bridge("10.66.0.0/24")
    fails = {"type": "tuning", "sysctl": {"net.ipv4.conf.no/such.key": "1"}}
    return {
        SMALL: json.dumps({**bridge("10.67.0.0/29"), "name": "hostile-small"}),
        HALF: json.dumps({"cniVersion": "1.0.0", "name": "hostile-half", "plugins": [proper, fails]}),
        SLOW: json.dumps(
            {**proper, "name": "hostile-slow", "ipam": {"type": "dhcp", "daemonSocketPath": SILENT_SOCKET}}
        ),
        "chain": json.dumps({"cniVersion": "1.0.0", "name": "hostile-chain", "plugins": [{"type": "tuning"}] * 300}),
        "shim": json.dumps({**proper, "type": "hotnic-multus"}),
        "multus": json.dumps({"cniVersion": "1.0.0", "plugins": [proper, {"type": "multus-shim"}]}),
        "path": json.dumps({**proper, "type": "../../../bin/sh"}),
        "nul": json.dumps({**proper, "name": "a\0b"}),
        "scope": json.dumps({**proper, "name": "a;K8S_POD_NAMESPACE=default"}),
        "prefix": json.dumps(bridge("10.68.0.0/33", name="hostile-prefix")),
        "mtu": json.dumps({**proper, "name": "hostile-mtu", "mtu": -7}),
        "name": json.dumps({**proper, "name": "../../networks/bridge-net"}),
        "addresses": json.dumps({**proper, "name": "hostile-static", "ipam": {"type": "static", "addresses": [{}]}}),
        "version": json.dumps({**proper, "cniVersion": "9.9.9"}),
        "huge": json.dumps({**proper, "name": "hostile-huge", "x": "x" * 500_000}),
        "deep": '{"type":"bridge","x":' + "[" * 900 + "]" * 900 + "}",
        "many": json.dumps({**proper, "name": "hostile-many", **{f"k{n}": n for n in range(20_000)}}),
        "empty": " ",
    }


def nad(name: str, config: str, namespace: str) -> dict[str, Any]:
    """Return a NetworkAttachmentDefinition."""
    meta = {"name": name, "namespace": namespace}
    return {"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": meta} | {
        "spec": {"config": config}
    }


def mutated_config(rng: random.Random) -> str:
    """Return a configuration that is none."""
    if rng.random() < 0.5:
        return document(rng).decode(errors="replace")
    config = rng.choice(list(nads().values()))
    at = rng.randrange(len(config))
    return config[:at] + rng.choice(("\x1b[2J", "9" * 400, "{", "", "null", "\x7f")) + config[at + rng.randrange(9) :]


def interface(rng: random.Random, name: Any, *, typed: bool) -> dict[str, Any]:
    """Return an interface of a VM with impossible values.

    :param typed: whether each has the type that the schema of KubeVirt wants, so that the API server accepts it.
    """

    def one_of(*values: Any, kind: type) -> Any:
        return rng.choice([value for value in values if isinstance(value, kind) or not typed])

    made: dict[str, Any] = {
        "name": str(name) if typed else name,
        "macAddress": one_of(*MACS, kind=str),
        "state": one_of(*STATES, kind=str),
        "acpiIndex": one_of(*NUMBERS, kind=int),
        "pciAddress": one_of("0000:01:00.0", "", "zz", *STATES, kind=str),
    }
    for binding in rng.sample(_BINDINGS, rng.choice((0, 1, 1, 2))):
        made[binding] = one_of({"name": "x"}, [], 7, kind=dict)
    if not typed:
        made[rng.choice(("model", "bootOrder", "dhcpOptions", "tag", "ports"))] = rng.choice((*NUMBERS, nested()))
    return made


def _spec(rng: random.Random, names: list[Any], networks: list[str]) -> dict[str, Any]:
    typed = rng.random() < TYPED
    items = [interface(rng, name, typed=typed) for name in names]

    def network(name: Any) -> dict[str, Any]:
        return {
            "name": str(name) if typed else name,
            "multus": {"networkName": rng.choice((*networks, "default/bridge-net", "no/where", ""))},
        }

    return {
        # The lab starts no guest for it.
        "domain": {"memory": {"guest": "lots"}, "devices": {"interfaces": items}},
        "networks": [network(name) for name in names],
    }


def vm_spec(rng: random.Random) -> dict[str, Any]:
    """Return the spec of a VMI, or of a VM's template."""
    networks = list(nads())
    match rng.randrange(8):
        case 0:
            made = _spec(rng, [f"nic{n}" for n in range(rng.choice((20, 100, INTERFACES)))], networks)
            for one in made["domain"]["devices"]["interfaces"]:
                one |= {"bridge": {}, "state": rng.choice(("up", "absent"))}
        case 1:
            made = _spec(rng, ["blue"] * 3, networks)
        case 2:
            made = _spec(rng, ["blue"], networks) | {"x": nested()}
        case 3 if rng.random() > TYPED:
            made = {"domain": {"devices": rng.choice((None, [], 7, {"interfaces": {}})), "memory": {"guest": "lots"}}}
        case _:
            made = _spec(rng, rng.sample(NAMES, 5), networks)
    return made


def vm(rng: random.Random, name: str, namespace: str) -> bytes:
    """Return a VM that does not run."""
    return text_of(
        {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachine",
            "metadata": {"name": name, "namespace": namespace, "annotations": annotations(rng)},
            "spec": {"running": False, "template": {"spec": vm_spec(rng)}},
        },
        rng,
    )


def vmi(rng: random.Random, name: str, namespace: str) -> bytes:
    """Return a VMI without a VM."""
    meta = {"name": name, "namespace": namespace, "annotations": annotations(rng)}
    document = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": meta}
    return text_of({**document, "spec": vm_spec(rng)}, rng, VMI_DEPTHS)


def vmi_change(rng: random.Random, node: str) -> bytes:
    """Return a merge patch of a VMI that makes it look as if it ran on the node."""
    names, macs = ([str(one) for one in values] for values in (NAMES, MACS))
    entries = [{"name": rng.choice(names), "mac": rng.choice(macs), "infoSource": "domain"} for _ in range(3)]
    status = {
        "phase": "Running",
        "nodeName": node,
        "interfaces": rng.choice((entries, entries * 20, entries * 200, None, [nested()])),
        "migrationState": rng.choice((None, None, {}, {"targetNode": node})),
    }
    meta = {"labels": {NODE_LABEL: node}, "annotations": annotations(rng)}
    return text_of({"metadata": meta, "spec": vm_spec(rng), "status": status}, rng, VMI_DEPTHS)


def annotations(rng: random.Random) -> dict[str, str]:
    """Return annotations that hotnic reads, of which most are none of its own."""
    value = document(rng)[:100_000].decode(errors="replace")
    record = {"podUID": "u", "sandboxID": "../..", "interface": "blue", "mac": rng.choice(MACS), "mtu": -1}
    operation = {"id": "i" * rng.choice((1, 900)), "kind": "unplug", "interface": rng.choice(NAMES), "traceparent": 7}
    keys = ("hotnic.io/operation.a", "hotnic.io/pod-nic.a", "hotnic.io/nic-slots", "hotnic.io/unplug.a")
    return {key: rng.choice((value, json.dumps(record), json.dumps(operation))) for key in rng.sample(keys, 2)}


def networks_annotation(rng: random.Random, namespace: str) -> str:
    """Return a networks annotation."""

    def element(number: int) -> dict[str, Any]:
        made: dict[str, Any] = {"name": rng.choice(list(nads())), "namespace": namespace, "interface": f"h{number}"}
        for key, values in {
            "mac": MACS,
            "ips": [[one] for one in ADDRESSES],
            "cni-args": [{"a": nested()}, {"IP": "1;CNI_COMMAND=DEL"}, 7],
            "interface": [*NAMES, "eth0", "lo"],
            "bandwidth": NUMBERS,
            "default-route": [[one] for one in ADDRESSES],
            "infiniband-guid": MACS,
        }.items():
            if rng.random() < 0.12:
                made[key] = rng.choice(values)
        return made

    match rng.randrange(6):
        case 0:
            return document(rng)[:200_000].decode(errors="replace")
        case 1:
            return ",".join(f"{namespace}/{name}@h{n}" for n, name in enumerate((SMALL, HALF, "path", "nul", "scope")))
        case 2:
            return "[]"
        case 3:
            return json.dumps([{"name": SLOW, "namespace": namespace, "interface": "s0"}])
        case 4:
            return text_of([element(n) for n in range(rng.choice((5, INTERFACES)))], rng).decode()
        case _:
            return text_of([element(n) for n in range(3)], rng).decode()


def pod(name: str, namespace: str, networks: str | None = None, vmi_uid: str | None = None) -> dict[str, Any]:
    """Return a pod; with the UID of a VMI it claims to be a launcher pod."""
    meta: dict[str, Any] = {"name": name, "namespace": namespace}
    if networks is not None:
        meta["annotations"] = {NETWORKS: networks}
    if vmi_uid is not None:
        meta["labels"] = {CREATED_BY_LABEL: vmi_uid}
    spec = {"terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "image": PAUSE_IMAGE}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def request_body(rng: random.Random) -> tuple[bytes, str]:
    """Return the body of an ``addinterface`` request and its content type."""
    bomb = b"a: &a [x,x,x,x,x,x,x,x]\n" + b"".join(
        b"%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n" % (c + 1, c + 1, *([c] * 8)) for c in range(ord("a"), ord("y"))
    )
    proper = json.dumps({"name": rng.choice(NAMES), "networkAttachmentDefinitionName": rng.choice(list(nads()))})
    bodies = (
        *(document(rng) for _ in range(9)),
        bomb,
        b"#" * 70_000,
        b"!!python/object/apply:os.system [id]",
        proper.encode(),
    )
    kinds = ("application/json", "application/yaml", "text/html", "application/x-protobuf", "a/b; charset=utf-7")
    return rng.choice(bodies), rng.choice(kinds)
