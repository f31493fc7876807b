"""Every edge as a function of bytes: what comes from outside, and the one class of error that it may raise.

``tests/unit/edges`` feeds it hostile values, and ``scripts/test/fuzz`` mutated ones. An edge that returns a value has
accepted it; any exception but its own is a defect.
"""

import base64
import contextlib
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface
from typing import Any, NamedTuple

import msgspec

from schemas import cni
from schemas.bus.consumers import decode_answer
from schemas.bus.consumers import decode_request as decode_consumer_request
from schemas.bus.hotplug_status import decode_entry
from schemas.cri import runtime_pb2 as pb
from schemas.inputs import Edge, RejectedInput, find_member, rejecting, split_elements
from schemas.kubernetes.networks import Bandwidth, NetworkSelectionElement, parse_network_status, parse_networks
from schemas.kubernetes.objects import NADS, PODS, VMIS, VMS, NadSpec, NetworkAttachmentDefinition, ObjectMeta, Resource
from schemas.kubernetes.operations import read_nic_slots, read_operation, read_pod_nic
from services.api.bus_auth.review import decode_review
from services.api.bus_auth.tokens import decode_request, read_token
from services.api.front_proxy import parse as parse_front_proxy
from services.api.plan.checks import find_nad_obstacle
from services.api.request import BadBody, decode_add, decode_remove
from services.common.bus.envelope import UnusableMessage, decode_message
from services.common.cri.container import parse_pid
from services.common.cri.errors import CriError
from services.common.cri.sandbox import parse_sandbox
from services.common.domain.nic import parse_nics
from services.common.domain.plugin_types import AllowedPlugins
from services.common.guest import qmp_answers
from services.common.guest.agent import parse_interfaces
from services.common.guest.domain_xml import parse_domain
from services.common.guest.port import GuestNotReachable
from services.common.guest.qmp_client import QmpMessage
from services.common.kube.client import Kube
from services.common.kube.errors import BadApiResponse, KubeError, classify
from services.common.kube.listing import decode_page
from services.handler.addresses.dhcp import dhcp4
from services.handler.addresses.offer import Ipv4Offer, Offer
from services.handler.addresses.packets.frames import Datagram, MalformedPacket, build_frame
from services.handler.addresses.resolv import parse_resolv_conf
from services.handler.addresses.responder import Responder
from services.multus.cni import conflist, results
from services.multus.cni.call import MalformedError, decode
from services.multus.cni.device_info import decode_description
from services.multus.cni.errors import CniError, decode_error
from services.multus.config import daemon_config
from services.networks.multus_client import AttachmentFailure, attachment_failure, decode_record, decode_result
from services.networks.network_config import cni_config, with_runtime_config
from tests.support.bus.auth_tokens import RequestingServer, make_token

_AUTH_REQUEST = RequestingServer().request(make_token())
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
        return qmp_answers.parse_event(QmpMessage(data))


def _qmp_answers(data: bytes) -> object:
    answer = QmpMessage(data).get("return", msgspec.Raw(b"null"))
    # What no command's answer is has the same error as what is no answer.
    for parse in (qmp_answers.parse_text, qmp_answers.count_cpus, qmp_answers.active_devices):
        with contextlib.suppress(RejectedInput):
            return parse(answer)  # type: ignore[arg-type]
    return qmp_answers.parse_devices(answer), qmp_answers.bus_numbers(answer, {"rp1"})  # type: ignore[arg-type]


def _multus_call(data: bytes) -> object:
    call = decode(data)
    return call.config_object, conflist.parse(call.config, edge=Edge.MULTUS)


def _configuration(data: bytes) -> object:
    network = conflist.with_device(conflist.parse(data, edge=Edge.FILE), "0000:01:00.0")
    attributes = conflist.AttachmentAttributes({"mac": "02:00:00:00:00:01"}, {"a": 1})
    # The record keeps the text, from which DEL starts.
    recorded = conflist.parse_recorded(network.text)
    return conflist.plugin_stdin(recorded, 0, attributes), conflist.fingerprint(recorded, attributes)


def _nad(data: bytes) -> object:
    spec = NadSpec(config=data.decode(errors="surrogateescape"))
    nad = NetworkAttachmentDefinition(ObjectMeta(name="net1", namespace="default"), spec)
    element = NetworkSelectionElement("net1", bandwidth=Bandwidth(ingress_rate=1))
    return with_runtime_config(cni_config(nad, AllowedPlugins(None), by_name=False), element)


def _nad_at_the_api(data: bytes) -> object:
    spec = NadSpec(config=data.decode(errors="surrogateescape"))
    return find_nad_obstacle(NetworkAttachmentDefinition(spec=spec), running=True)


def _plugin_error(data: bytes) -> object:
    error = decode_error(data, _CONFIG)
    return error.encode() if error is not None else None


def _front_proxy(data: bytes) -> object:
    names = data.decode(errors="surrogateescape")
    return parse_front_proxy({"requestheader-client-ca-file": "ca", "requestheader-allowed-names": names})


_META = b'"metadata":{"name":"a","namespace":"default","uid":"u","resourceVersion":"1","annotations":{"a":"b"}}'
_SPEC = (
    b'"spec":{"domain":{"devices":{"interfaces":[{"name":"blue","bridge":{},"macAddress":"02:00:00:00:00:01"}]}},'
    b'"networks":[{"name":"blue","multus":{"networkName":"net1"}}]}'
)
_CONFIG = (
    b'{"cniVersion":"1.0.0","name":"a","type":"bridge","capabilities":{"bandwidth":true,"mac":true},'
    b'"args":{"cni":{"a":1}},"runtimeConfig":{"mac":"02:00:00:00:00:01"}}'
)
_RESULT = (
    b'{"cniVersion":"1.0.0","interfaces":[{"name":"net1","mac":"02:00:00:00:00:01","sandbox":"/run/netns/a"}],'
    b'"ips":[{"address":"10.0.0.2/24","gateway":"10.0.0.1","interface":0}],"routes":[{"dst":"0.0.0.0/0"}],"dns":null}'
)
_CALL = msgspec.json.encode(
    {
        "env": {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": "abc",
            "CNI_NETNS": "/run/netns/a",
            "CNI_IFNAME": "net1",
            "CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=p;K8S_POD_UID=u",
        },
        "config": base64.b64encode(_CONFIG).decode(),
        "interfaceAttributes": {"cni-args": {"a": [1]}, "ips": ["10.0.0.2/24"], "mac": "02:00:00:00:00:01"},
        "network": "default/net1",
    }
)
_DISCOVER = build_frame(
    Datagram(
        source_mac=bytes(6),
        destination_mac=b"\xff" * 6,
        source=IPv4Address("0.0.0.0"),
        destination=IPv4Address("255.255.255.255"),
        source_port=68,
        destination_port=67,
        payload=dhcp4.encode(
            dhcp4.Dhcp4Message(1, 7, bytes(6), options={dhcp4.Dhcp4Option.MESSAGE_TYPE: bytes([1])}),
        ),
    )
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
    "bus-consumer-request": FedEdge(
        decode_consumer_request, RejectedInput, (b'{"since":"2026-11-30T03:00:00Z"}', b'{"since":null}')
    ),
    "bus-consumer-answer": FedEdge(decode_answer, RejectedInput, (b'{"error":"x"}', b"{}")),
    "bus-auth-request": FedEdge(decode_request, RejectedInput, (_AUTH_REQUEST,)),
    "service-account-token": FedEdge(
        lambda data: read_token(data.decode(errors="replace")), RejectedInput, (make_token().encode(),)
    ),
    "token-review": FedEdge(
        decode_review,
        RejectedInput,
        (b'{"status":{"authenticated":true,"user":{"username":"u","extra":{"a":["b"]}},"audiences":["hotnic-nats"]}}',),
    ),
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
    "qmp-answers": FedEdge(
        _qmp_answers,
        RejectedInput,
        (
            b'{"return":"/machine","id":"a"}',
            b'{"return":[{"name":"ua-a","type":"child<a>","promiscuous":true,"unicast-table":[]}]}',
            b'{"return":[{"devices":[{"qdev_id":"rp1","pci_bridge":{"bus":{"secondary":1}}}],"name":"a","type":"b"}]}',
        ),
    ),
    "multus-call": FedEdge(_multus_call, (MalformedError, CniError), (_CALL,)),
    "multus-result": FedEdge(decode_result, AttachmentFailure, (b'{"Result":%s}' % _RESULT,)),
    "multus-record": FedEdge(decode_record, AttachmentFailure, (b'{"sandboxID":"s","podUID":"u","attachments":[]}',)),
    "multus-error": FedEdge(
        lambda data: attachment_failure(cni.CniCommand.ADD, 400, data), (), (b'{"code":7,"msg":"refused"}', b"refused")
    ),
    "nad": FedEdge(_nad, AttachmentFailure, (_CONFIG, b'{"name":"a","plugins":[%s]}' % _CONFIG)),
    "nad-at-the-api": FedEdge(_nad_at_the_api, (), (_CONFIG,)),
    "cni-configuration": FedEdge(_configuration, CniError, (b'{"name":"a","plugins":[%s]}' % _CONFIG,)),
    "cni-result": FedEdge(
        lambda data: results.down_convert(results.decode(data, "bridge", "1.0.0", _CONFIG), "0.4.0"),
        CniError,
        (_RESULT, b'{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24"}}'),
    ),
    "cni-error": FedEdge(_plugin_error, (), (b'{"code":100,"msg":"refused","details":"x"}',)),
    "daemon-config": FedEdge(daemon_config.parse, ValueError, (b'{"chrootDir":"/hostroot","delegates":[{}]}',)),
    "device-info": FedEdge(decode_description, ValueError, (b'{"type":"pci","pci":{"pci-address":"0000:01:00.0"}}',)),
    "front-proxy": FedEdge(_front_proxy, ValueError, (b'["front-proxy-client"]',)),
    "packet": FedEdge(_RESPONDER.reply_to_guest, MalformedPacket, (_DISCOVER,)),
    "resolv": FedEdge(
        lambda data: parse_resolv_conf(data.decode(errors="replace")), (), (b"nameserver 10.0.0.1\nsearch a b\n",)
    ),
}
