"""Every edge as a function of bytes: what comes from outside, and the one class of error that it may raise.

``tests/unit/edges`` feeds it hostile values, and ``scripts/test/fuzz`` mutated ones. An edge that returns a value has
accepted it; any exception but its own is a defect.
"""

import json
from collections.abc import Callable
from ipaddress import IPv4Interface
from typing import Any, NamedTuple

from schemas.bus.hotplug_status import decode_entry
from schemas.cri import runtime_pb2 as pb
from schemas.inputs import Edge, find_member, rejecting, split_elements
from schemas.kubernetes.networks import parse_network_status, parse_networks
from schemas.kubernetes.objects import NADS, PODS, VMIS, VMS, Resource
from schemas.kubernetes.operations import read_nic_slots, read_operation, read_pod_nic
from services.api.request import BadBody, decode_add, decode_remove
from services.common.bus.envelope import UnusableMessage, decode_message
from services.common.cri.container import parse_pid
from services.common.cri.errors import CriError
from services.common.cri.sandbox import parse_sandbox
from services.common.domain.nic import parse_nics
from services.common.guest.agent import parse_interfaces
from services.common.guest.domain_xml import parse_domain
from services.common.guest.port import GuestNotReachable
from services.common.guest.qmp import parse_event
from services.common.kube.client import Kube
from services.common.kube.errors import BadApiResponse, KubeError, classify
from services.common.kube.listing import decode_page
from services.handler.addresses.offer import Ipv4Offer, Offer
from services.handler.addresses.packets.frames import MalformedPacket
from services.handler.addresses.resolv import parse_resolv_conf
from services.handler.addresses.responder import Responder

_KUBE = Kube(None)  # type: ignore[arg-type]  # decodes without a connection
_RESPONDER = Responder(
    Offer(bytes(6), bytes(6), 1500, ipv4=Ipv4Offer(IPv4Interface("10.0.0.1/32").ip, IPv4Interface("10.0.0.2/24")))
)


class FedEdge(NamedTuple):
    """One edge.

    :ivar feed: handles what came in.
    :ivar error: the edge's own error.
    :ivar seeds: proper inputs.
    """

    feed: Callable[[bytes], object]
    error: type[Exception] | tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]


def _kube(resource: Resource[Any]) -> Callable[[bytes], object]:
    return lambda data: _KUBE.decode(resource, data)


def _sandbox(data: bytes) -> object:
    status = pb.PodSandboxStatus(id="s", state=pb.SANDBOX_READY)
    return parse_sandbox(pb.PodSandboxStatusResponse(status=status, info={"info": data.decode(errors="replace")}))


def _container(data: bytes) -> object:
    status = pb.ContainerStatus(id="c", state=pb.CONTAINER_RUNNING)
    return parse_pid(pb.ContainerStatusResponse(status=status, info={"info": data.decode(errors="replace")}))


def _annotations(data: bytes) -> object:
    text = data.decode(errors="surrogateescape")
    annotations = {"hotnic.io/operation.a": text, "hotnic.io/pod-nic.a": text, "hotnic.io/nic-slots": text}
    return (
        read_operation(annotations, "blue"),
        read_pod_nic(annotations, "hotnic.io/pod-nic.a"),
        read_nic_slots(annotations),
    )


def _split(data: bytes) -> object:
    return split_elements(find_member(data, "items") or b"[]")


def _qmp_event(data: bytes) -> object:
    with rejecting(Edge.DOMAIN):
        # As the library decodes it.
        return parse_event(json.loads(data))


_META = b'"metadata":{"name":"a","namespace":"default","uid":"u","resourceVersion":"1","annotations":{"a":"b"}}'
_SPEC = (
    b'"spec":{"domain":{"devices":{"interfaces":[{"name":"blue","bridge":{},"macAddress":"02:00:00:00:00:01"}]}},'
    b'"networks":[{"name":"blue","multus":{"networkName":"net1"}}]}'
)
_SUBJECT = "hotnic.v1.default.vm1.requested"

EDGES: dict[str, FedEdge] = {
    "kube-vmi": FedEdge(_kube(VMIS), BadApiResponse, (b"{%s,%s}" % (_META, _SPEC),)),
    "kube-vm": FedEdge(_kube(VMS), BadApiResponse, (b'{%s,"spec":{"template":{%s}}}' % (_META, _SPEC),)),
    "kube-pod": FedEdge(_kube(PODS), BadApiResponse, (b'{%s,"status":{"phase":"Running"}}' % _META,)),
    "kube-nad": FedEdge(_kube(NADS), BadApiResponse, (b'{%s,"spec":{"config":"{}"}}' % _META,)),
    "kube-list": FedEdge(
        lambda data: decode_page("pods", 200, data), BadApiResponse, (b'{"metadata":{},"items":[{%s}]}' % _META,)
    ),
    "kube-split": FedEdge(_split, ValueError, (b'{"items":[{%s},{}]}' % _META,)),
    "kube-error": FedEdge(lambda data: classify(500, data, {}), KubeError, (b'{"kind":"Status","code":409}',)),
    "nics": FedEdge(
        lambda data: parse_nics(_KUBE.decode(VMIS, data), None),
        (BadApiResponse, ValueError),
        (b"{%s,%s}" % (_META, _SPEC),),
    ),
    "api-add": FedEdge(
        decode_add,
        BadBody,
        (
            b'{"networkAttachmentDefinitionName":"net1","name":"blue"}',
            b"name: blue\nnetworkAttachmentDefinitionName: net1\n",
        ),
    ),
    "api-remove": FedEdge(decode_remove, BadBody, (b'{"name":"blue"}', b"name: blue\n")),
    "annotations": FedEdge(
        _annotations, (), (b'{"id":"i","kind":"plug","interface":"blue"}', b'{"free":1,"nics":2,"podUID":"u"}')
    ),
    "networks": FedEdge(
        lambda data: parse_networks(data.decode(errors="surrogateescape")),
        ValueError,
        (b'[{"name":"net1","interface":"net1","cni-args":{"a":1}}]', b"ns/net1@net1"),
    ),
    "network-status": FedEdge(
        lambda data: parse_network_status(data.decode(errors="surrogateescape")),
        ValueError,
        (b'[{"name":"net1","ips":["10.0.0.1"],"device-info":{}}]',),
    ),
    "bus": FedEdge(lambda data: decode_message(_SUBJECT, {}, data), UnusableMessage, (b'{"stage":"requested"}',)),
    "kv": FedEdge(decode_entry, (), (b'{"vmi_uid":"u"}',)),
    "cri-sandbox": FedEdge(_sandbox, CriError, (b'{"pid":7,"runtimeSpec":{"linux":{"namespaces":[]}}}',)),
    "cri-container": FedEdge(_container, CriError, (b'{"pid":7}',)),
    "agent": FedEdge(
        parse_interfaces,
        ValueError,
        (b'[{"name":"eth0","hardware-address":"02:00:00:00:00:01","ip-addresses":[{"ip-address":"10.0.0.1"}]}]',),
    ),
    "libvirt": FedEdge(
        lambda data: parse_domain(data.decode(errors="replace"), None),
        GuestNotReachable,
        (b'<domain id="1"><devices><interface><alias name="ua-a"/><mac address="02"/></interface></devices></domain>',),
    ),
    "qmp-event": FedEdge(_qmp_event, ValueError, (b'{"event":"DEVICE_DELETED","data":{"device":"ua-a"}}',)),
    "packet": FedEdge(_RESPONDER.reply_to_guest, MalformedPacket, (bytes(12) + b"\x08\x00\x45" + bytes(300),)),
    "resolv": FedEdge(
        lambda data: parse_resolv_conf(data.decode(errors="replace")), (), (b"nameserver 10.0.0.1\nsearch a b\n",)
    ),
}
