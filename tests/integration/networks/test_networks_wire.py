"""The role beside upstream's multus daemon: its requests against those of upstream's controller, and every answer.

The daemon answers what upstream's has answered, byte by byte; the role gets the same edits of the pod's annotation as
upstream's controller. Each difference stands in the table. The daemon's side is in
``tests/integration/multus/test_multus_wire.py``.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from schemas.bus.events import Failed
from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS
from tests.support.kube.node_kube import EVENTS, PODS
from tests.support.multus_wire.daemon import RecordedDaemon, call_of, serving_recorded
from tests.support.multus_wire.recording import V4_3_0, HttpMessage, Json, WireExchange, WireStep, response_of
from tests.support.node.fake_cri import FakeSandbox, containerd_info
from tests.support.node.networks_node import NODE, Node, running_node

POD: Final = "pod-a"


@dataclass(frozen=True)
class Edit:
    """An edit of the annotation, what the role does otherwise than upstream's controller, and why.

    :ivar links: the links in network-status at the end, without those of the pod's creation.
    :ivar not_sent: requests that only upstream's controller sends.
    :ivar sent: requests that only the role sends.
    :ivar listed: links that only the role lists in network-status.
    :ivar not_told: Events that only upstream's controller records.
    :ivar told: Events that only the role records.
    """

    step: str
    why: str
    links: str
    not_sent: list[str] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)
    not_told: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)


def failed(verb: str, link: str, network: str) -> str:
    """Return an Event about a failure."""
    words = f"adding interface {link} to" if verb == "add" else f"removing interface {link} from"
    reason = f"Failed{words.split()[0].title()}Interface"
    return f"Warning {reason}: pod [default/pod-a]: failed {words} network: {network}"


def done(verb: str, link: str) -> str:
    """Return an Event about an interface of net-c."""
    words = f"added interface {link} to" if verb == "add" else f"removed interface {link} from"
    return f"Normal {words.split()[0].title()}Interface: pod [default/pod-a]: {words} network: net-c"


DROPPED: Final = "upstream's recorder drops Events once it has recorded many about one pod"
EDITS: Final = [
    Edit("hotplug-two", "", "hp1 hp2"),
    Edit(
        "hotplug-nameless",
        "an element without a name gets the name that it would have had at pod creation; upstream's controller sends "
        "an empty name, which every daemon refuses, tries four times and drops the whole edit",
        "hp1 hp2 net5",
        not_sent=["ADD (nameless) net-c", "DEL (nameless) net-c"],
        sent=["ADD net5 net-c"],
        listed=["net5"],
        not_told=[failed("add", "", "net-c"), failed("remove", "", "net-c")],
        told=[done("add", "net5")],
    ),
    Edit(
        "hotplug-plugin-fails",
        "net5 leaves; a failed rollback goes to the log, the Event about the ADD has the cause",
        "hp1 hp2",
        sent=["DEL net5 net-c"],
        not_told=[failed("remove", "hp3", "net-fail")],
        told=[done("remove", "net5")],
    ),
    Edit("hotplug-after-failure", "", "hp1 hp2 hp3"),
    Edit("hotplug-after-failure-out", "", "hp1 hp2"),
    Edit(
        "hotplug-no-plugin",
        "a failed rollback goes to the log",
        "hp1 hp2",
        not_told=[failed("remove", "hp4", "net-missing")],
    ),
    Edit(
        "hotplug-unknown-nad",
        "upstream's controller is silent about a NAD that does not exist",
        "hp1 hp2",
        told=[failed("add", "hp5", "net-nope")],
    ),
    Edit(
        "hotplug-second-fails",
        "an element does not depend on the others: upstream's controller rolls hp6 back, and lists it all the same",
        "hp1 hp2 hp6 net6",
        not_sent=["ADD (nameless) net-c", "DEL hp6 net-c", "DEL (nameless) net-c"],
        sent=["ADD net6 net-c"],
        listed=["net6"],
        told=[done("add", "hp6"), done("add", "net6")],
    ),
    Edit(
        "hotplug-second-fails-out",
        f"net6 leaves; {DROPPED}",
        "hp1 hp2",
        sent=["DEL net6 net-c"],
        told=[done("remove", "hp6"), done("remove", "net6")],
    ),
    Edit("unplug-one", DROPPED, "hp2", told=[done("remove", "hp1")]),
]

OTHER_HEADERS: Final = {"host", "user-agent", "accept-encoding"}
"""Headers with other values: the socket has no host name, and the clients are others."""
MORE_HEADERS: Final = {"accept", "connection", "traceparent"}


@dataclass
class Beside:
    """The role beside the daemon."""

    node: Node
    daemon: RecordedDaemon

    def annotate(self, networks: str) -> None:
        """Edit the pod's annotation."""
        self.node.kube.annotate(PODS, "default", POD, {NETWORKS: networks})

    def request(self, *links: str) -> None:
        """Request net-c for these links, beside the networks of the pod's creation."""
        plugged = [{"name": "net-c", "interface": link} for link in links]
        self.annotate(json.dumps([*json.loads(V4_3_0.pods[POD]["networks"]), *plugged]))

    def events(self) -> list[str]:
        """Return the Events: type, reason and message."""
        return [f"{one['type']} {one['reason']}: {one['message']}" for one in self.node.kube.of(EVENTS)]

    async def until(self, links: str, events: list[str]) -> None:
        """Wait until network-status lists these links, and until an Event begins with each of these texts."""
        wanted = ["eth0", "net1", "net2", *links.split()]
        await self.node.kube.until(
            lambda: (
                self.node.links(POD) == wanted
                and all(any(one.startswith(text) for one in self.events()) for text in events)
            )
        )


@asynccontextmanager
async def beside_upstream(folder: Path) -> AsyncIterator[Beside]:
    """Run the role for the recorded pod, whose two networks of its creation are attached."""
    socket, pod = folder / "multus.sock", V4_3_0.pods[POD]
    async with serving_recorded(socket) as daemon, running_node(folder, multus_socket=socket) as node:
        for name, config in V4_3_0.nads.items():
            node.nad(name, config)
        netns = containerd_info(pod["netns"])
        node.cri.sandboxes.append(FakeSandbox(pod["sandbox"], pod["uid"], "default", POD, info=netns))
        created = V4_3_0.step("runtime-add")
        annotations = {NETWORKS: created.networks, NETWORK_STATUS: created.network_status}
        meta = {"uid": pod["uid"], "annotations": annotations}
        node.kube.put(PODS, "default", POD, metadata=meta, spec={"nodeName": NODE}, status={"phase": "Running"})
        await node.idle()
        yield Beside(node, daemon)


def recorded_events(step: WireStep) -> set[str]:
    """Return the Events of upstream's controller."""
    parts = (text.partition(" ") for text in step.events)
    return {text for source, _, text in parts if source == "pod-networks-updates"}


async def test_every_edit_sends_upstreams_requests_but_for_the_table(tmp_path: Path) -> None:
    unplugged = V4_3_0.step("hotplug-second-fails-out").networks
    assert unplugged is not None
    assert [edit.step for edit in EDITS] == [
        step.name for step in V4_3_0.steps if step.name.startswith("hotplug-") or step.name == "unplug-one"
    ]
    async with beside_upstream(tmp_path) as beside:
        before: list[str] = []
        told: set[str] = set()
        for edit in EDITS:
            step = V4_3_0.step(edit.step)
            beside.daemon.answer(step.exchanges)
            first = len(beside.daemon.requests)
            beside.annotate(step.networks or unplugged)
            common = {*recorded_events(step)} - told - {*edit.not_told}
            await beside.until(edit.links, [*common, *edit.told])
            sent = {call_of(one): one for one in beside.daemon.requests[first:]}
            # The role repeats what fails until the next edit.
            calls = [call for call in sent if call not in before]
            before = list(sent)
            compare_requests(edit, step.exchanges, {call: sent[call] for call in calls})
            if step.network_status is not None:
                compare_status(edit, step, beside.node.status(POD))
            told |= recorded_events(step)
        # Every Event has its counterpart, or stands in the table.
        counterparts = [*told - {text for edit in EDITS for text in edit.not_told}, *(t for e in EDITS for t in e.told)]
        for event in beside.events():
            assert any(event.startswith(text) for text in counterparts), event
        assert not any(event.startswith(text) for event in beside.events() for e in EDITS for text in e.not_told)
        # The daemon has no records; it is asked for them once.
        assert [one.start for one in beside.daemon.others] == [f"GET /sandboxes/{V4_3_0.pods[POD]['sandbox']} HTTP/1.1"]


def compare_requests(edit: Edit, exchanges: tuple[WireExchange, ...], sent: dict[str, HttpMessage]) -> None:
    upstream = {call_of(exchange.request): exchange.request for exchange in exchanges}
    assert [call for call in upstream if call not in sent] == edit.not_sent, edit.step
    assert [call for call in sent if call not in upstream] == edit.sent, edit.step
    for call, ours in sent.items():
        if call not in upstream:
            continue
        theirs = upstream[call]
        assert ours.start == theirs.start == "POST /delegate HTTP/1.1"
        assert ours.headers.keys() - theirs.headers.keys() == MORE_HEADERS
        assert {key for key in theirs.headers if theirs.headers[key] != ours.headers[key]} == OTHER_HEADERS
        assert ours.headers["traceparent"].startswith("00-")
        config, named = json.loads(ours.cni_config), json.loads(theirs.cni_config)["name"]
        assert config == json.loads(theirs.cni_config)
        # The name of a configuration without one is added; upstream's controller sorts the keys then.
        assert (ours.cni_config == theirs.cni_config) == ("name" in json.loads(V4_3_0.nads[named]))
        bodies = ({**request.document, "config": None} for request in (ours, theirs))
        assert next(bodies) == next(bodies)


def compare_status(edit: Edit, step: WireStep, entries: list[Json]) -> None:
    ours = {one["interface"]: one for one in entries}
    theirs = {one["interface"]: one for one in step.status_entries}
    assert [link for link in ours if link not in theirs] == edit.listed, edit.step
    assert {link: ours[link] for link in theirs} == theirs


async def test_answers_without_a_result_are_retried_without_a_del(tmp_path: Path) -> None:
    """Nothing is known of the link then; the next ADD shows whether it exists."""
    answers = {
        "no body": response_of(V4_3_0.exchange("delegate-del")),
        # Upstream's daemon has panicked.
        "connection closed": V4_3_0.exchange("shim-add-pod-gone").response,
        "no such path": response_of(V4_3_0.exchange("no-such-path")),
        "no such method": response_of(V4_3_0.exchange("put-delegate")),
    }
    async with beside_upstream(tmp_path) as beside:
        for answer in answers.values():
            beside.daemon.next = [answer]
            beside.request("hp1")
            await beside.until("hp1", [])
            beside.request()
            await beside.until("", [])
        assert beside.daemon.calls == ["ADD hp1 net-c", "ADD hp1 net-c", "DEL hp1 net-c"] * len(answers)
        failures = [event.reason for event in beside.node.bus.published if isinstance(event, Failed)]
        expected = ["MultusUnavailable", "MultusUnavailable", "CniFailed", "CniFailed"]
        assert dict(zip(answers, failures, strict=True)) == dict(zip(answers, expected, strict=True))


async def test_refused_del_keeps_the_entry_and_is_retried(tmp_path: Path) -> None:
    refusals = [V4_3_0.exchange(label).response for label in ("delegate-del-plugin-fails", "delegate-del-pod-gone")]
    async with beside_upstream(tmp_path) as beside:
        beside.request("hp1")
        await beside.until("hp1", [])
        beside.daemon.next = [*refusals, None]
        beside.request()
        await beside.until("hp1", [failed("remove", "hp1", "net-c")])
        await beside.until("", [done("remove", "hp1")])
        assert beside.daemon.calls == ["ADD hp1 net-c", *["DEL hp1 net-c"] * 4]
