"""Whatever can grow while a role runs is a store of docs/observability.md, or a reason says why it cannot."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
ROLES = ("common", "controller", "handler", "networks", "multus", "api")
CONTAINERS = {"dict", "set", "list", "deque", "OrderedDict", "Counter", "defaultdict", "WeakValueDictionary", "Queue"}
ROW = re.compile(r"^\| (`[a-z<>`, -]+`) \| [a-z, ]+ \| (\d*) ?\|", re.MULTILINE)

BY_CODE = "one entry for each of something that the code names"
BY_OBJECT = "one entry for each VM, interface or device that exists; removed with it"
BY_RUN = "ends with the run, request or connection"

CANNOT_GROW = {
    "api.hotplug_status.shared_watches:SharedWatches._open": "one for each VMI of the open streams",
    "common.bus.nats.consumers.pull:PullConsumer._filters": BY_CODE,
    "common.bus.nats.jetstream:JetStreamBus._buckets": BY_CODE,
    "common.bus.nats.jetstream:JetStreamBus._tasks": BY_CODE,
    "common.bus.nats.request_server:RequestServer._running": "further requests are dropped at MAX_RUNNING",
    "common.bus.nats.stored.notices:Notices._followers": BY_RUN,
    "common.bus.nats.stored.notices:Notices._subscribed": BY_CODE,
    "common.cri.grpc_call:_Response._headers": BY_RUN,
    "common.guest.libvirt_domain:LibvirtDomain._subscribers": BY_CODE,
    "common.guest.libvirt_domain:_Connection.callbacks": BY_CODE,
    "common.bus.nats.session:Session._interrupted": BY_CODE,
    "common.bus.nats.session:Session._logged_denials": "maxlen",
    "common.guest.qmp:QmpGuest._buses": BY_OBJECT,
    "common.guest.qmp:QmpGuest._known": BY_OBJECT,
    "common.guest.qmp:QmpGuest._up": BY_OBJECT,
    "common.http.server:StatusError.headers": BY_RUN,
    "common.kube.client:Kube._decoders": BY_CODE,
    "common.kube.denials:Denials._found": BY_CODE,
    "common.reconcile.queue:Reconciler._entries": "hotnic_queue_depth and hotnic_in_flight",
    "common.reconcile.queue:Reconciler._tasks": "hotnic_in_flight",
    "common.runtime.fair_queue:FairQueue._held": "one entry for each slot at most",
    "common.runtime.fair_queue:_Lane._waiting": "hotnic_queue_depth, or the store of what waits",
    "common.runtime.health:Readiness._conditions": BY_CODE,
    "common.runtime.health:Readiness.notes": BY_CODE,
    "common.runtime.health:Readiness.parts": "one entry for each role of the process",
    "common.runtime.tasks:Tasks._tasks": BY_CODE,
    "common.telemetry.setup:Telemetry.parts": "one entry for each role of the process",
    "common.telemetry.stores:Stores._watched": "one entry for each store",
    "controller.projector:Tally._labels": BY_OBJECT,
    "controller.projector:Tally.total": BY_CODE,
    "controller.role:Controller._timers": BY_OBJECT,
    "controller.role:Controller._vmi_names": BY_OBJECT,
    "controller.shared_macs:SharedMacWarner._warned": BY_OBJECT,
    "handler.addresses.responder:Responder._solicitations": BY_OBJECT,
    "handler.addresses.service:AddressServers._servers": BY_OBJECT,
    "handler.addresses.service:AddressServers.declined": BY_OBJECT,
    "handler.agent_poller:AgentPoller._new": "cleared at MAX_NICS",
    "handler.run:Run._errors": BY_RUN,
    "handler.sessions:GuestSession.plugged_devices": BY_OBJECT,
    "handler.sessions:GuestSession.unplugs": BY_OBJECT,
    "networks.reporter:Reporter._tasks": BY_RUN,
    "networks.role:Networks._signatures": BY_OBJECT,
    "api.server:Api._locks": BY_RUN,
    "api.serving_certificate.reconcile:ServingCertificate._left_alone": BY_CODE,
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for role in ROLES:
        for path in sorted((ROOT / "services" / role).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT / "services").with_suffix("").parts)
            yield name, ast.parse(path.read_text())


def grows(value: ast.expr | None) -> bool:
    """Whether an expression makes a container that can grow."""
    match value:
        case ast.Dict(keys=[]) | ast.List(elts=[]):
            return True
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name in CONTAINERS
    return False


def growing(tree: ast.Module) -> Iterator[str]:
    """The attributes of classes that report no store."""
    for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        if "STORES.watch(" in ast.unparse(cls):
            continue
        for node in ast.walk(cls):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if isinstance(node, ast.Assign | ast.AnnAssign) and grows(node.value):
                yield from (f"{cls.name}.{one.attr}" for one in targets if isinstance(one, ast.Attribute))


def test_what_can_grow_is_a_store() -> None:
    found = {f"{name}:{attribute}" for name, tree in modules() for attribute in growing(tree)}
    assert found == CANNOT_GROW.keys()


def stores() -> Iterator[tuple[str, int | None]]:
    """The stores of the code, and their limits as far as they are constants."""
    for name, tree in modules():
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            match ast.unparse(call.func), call.args:
                case "STORES.watch", [store, _, _, *limits]:
                    pass
                case "Bounded", [store, *limits]:
                    pass
                case _:
                    continue
            if isinstance(store, ast.Name):
                continue
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "<resource>" for part in parts(store))
            names = [limit.id for limit in limits if isinstance(limit, ast.Name) and limit.id.isupper()]
            yield text, getattr(importlib.import_module(f"services.{name}"), names[0]) if names else None


def parts(store: ast.expr) -> list[ast.expr]:
    return store.values if isinstance(store, ast.JoinedStr) else [store]


def test_the_page_lists_every_store_with_its_limit() -> None:
    page = (ROOT / "docs" / "observability.md").read_text()
    listed = {name: int(limit or 0) for names, limit in ROW.findall(page) for name in re.findall(r"`([^`]+)`", names)}
    found = dict(stores())
    assert listed.keys() == found.keys()
    assert {name: listed[name] for name, limit in found.items() if limit is not None} == {
        name: limit for name, limit in found.items() if limit is not None
    }
