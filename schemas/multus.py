"""Bodies of the multus daemon's HTTP API on its unix socket: ``/cni``, ``/delegate`` and ``/sandboxes/<id>``.

Source: multus-cni v4 ``pkg/server/api``; requests and responses are compatible in both directions.
The W3C header ``traceparent`` carries the trace. ``GET /sandboxes/<id>`` exists in hotnic only. For an unknown
sandbox hotnic's daemon answers 404 with a CNI error; upstream's daemon answers 404 without one.
Next: :mod:`schemas.kubernetes.options`, the bodies of the api.
"""

import base64
from typing import Any

import msgspec

from schemas.cni import CniResult

SOCKET_NAME = "multus.sock"
SHIM_NAME = "hotnic-multus"
"""File name of the shim, which is the plugin type in the runtime's configuration."""
SHIM_LOG_NAME = "hotnic-multus.json"
"""File name of the shim's log settings, beside the shim."""
PLUGIN_MARK = "HOTNIC_MULTUS_PLUGIN"
"""Environment variable of every plugin that the daemon runs. The runtime did not call a shim that has it."""
CONF_NAME = "00-multus.conf"
"""File name of that configuration, as upstream's; it sorts before the primary network's."""
CNI_PATH = "/cni"
DELEGATE_PATH = "/delegate"
HEALTH_PATH = "/healthz"
READY_PATH = "/readyz"
SANDBOXES_PATH = "/sandboxes"
MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_RECORD_BYTES = 16 * 1024 * 1024
"""Limit of the file with the record of a sandbox, which has the configuration and the result of each attachment."""


class InterfaceAttributes(msgspec.Struct, frozen=True):
    """The fields of a network selection element that ``/delegate`` carries.

    ``cni-args`` is ``null`` when unset, as upstream sends it.
    """

    cni_args: dict[str, Any] | None = msgspec.field(default=None, name="cni-args")
    ips: list[str] | msgspec.UnsetType | None = msgspec.UNSET
    mac: str | msgspec.UnsetType = msgspec.UNSET


class CniRequest(msgspec.Struct, frozen=True):
    """A CNI call.

    :ivar env: the plugin's environment.
    :ivar config: the CNI configuration, base64 of its JSON.
    :ivar interface_attributes: attributes of the attachment; only on ``/delegate``.
    :ivar network: ``namespace/name`` of the attachment's NetworkAttachmentDefinition; only on ``/delegate``, and only
        from hotnic's networks. Upstream's daemon ignores it.
    """

    env: dict[str, str] = {}
    # A byte slice in Go: omitted or null when it is empty.
    config: str | msgspec.UnsetType | None = msgspec.UNSET
    interface_attributes: InterfaceAttributes | msgspec.UnsetType | None = msgspec.field(
        default=msgspec.UNSET, name="interfaceAttributes"
    )
    network: str | msgspec.UnsetType | None = msgspec.UNSET

    def config_bytes(self) -> bytes:
        """Return the CNI configuration; empty when the request has none.

        :raises ValueError: it is not standard base64.
        """
        return base64.b64decode(self.config, validate=True) if isinstance(self.config, str) else b""


class DelegateResponse(msgspec.Struct, frozen=True, omit_defaults=True):
    """The response to ADD; the response to every other command has an empty body."""

    result: CniResult | None = msgspec.field(default=None, name="Result")


class RecordedAttachment(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One attachment in the daemon's record of a sandbox.

    :ivar interface: name of the link in the sandbox.
    :ivar network: name of the network in network-status.
    :ivar owner: origin of the attachment: ``cluster``, ``default`` (``defaultNetworks``), ``auxiliary`` (auxiliary CNI
        chain), ``networks`` (annotation at sandbox creation) or ``delegate`` (hot-plug).
    :ivar hot_plugged: whether ``owner`` is ``delegate``.
    :ivar config_digest: digest of CNI configuration and attributes; equal for two requests for the same attachment.
    :ivar mac: MAC of the link as the plugin left it; ``None`` if it has none.
    :ivar ifindex: index of the link in the sandbox; ``0`` when there is no link, or before ADD has created it.
    :ivar kind: kind of the link (``veth``, …); ``None`` if there is no link.
    :ivar added: ``False`` while ADD runs and after an interrupted ADD.
    :ivar requested: the attributes of the request, as in ``interfaceAttributes``.
    """

    interface: str
    network: str
    owner: str
    hot_plugged: bool
    config_digest: str
    mac: str | None = None
    ifindex: int = 0
    kind: str | None = None
    added: bool = True
    requested: InterfaceAttributes = InterfaceAttributes()


class SandboxRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The response to ``GET /sandboxes/<id>``: the attachments of a sandbox in the order of their ADD."""

    sandbox_id: str = msgspec.field(name="sandboxID")
    pod_uid: str = msgspec.field(name="podUID")
    attachments: list[RecordedAttachment] = []


def build_delegate_request(
    *,
    command: str,
    sandbox_id: str,
    netns: str,
    interface: str,
    pod_namespace: str,
    pod_name: str,
    pod_uid: str,
    config: bytes,
    attributes: InterfaceAttributes | None = None,
    network: str = "",
) -> CniRequest:
    """Return the request that the dynamic networks controller sends.

    Upstream sends exactly these five ``CNI_*`` variables, and so does hotnic.

    :param network: as in :class:`CniRequest`; empty: not sent.
    """
    return CniRequest(
        env={
            "CNI_COMMAND": command.upper(),
            "CNI_CONTAINERID": sandbox_id,
            "CNI_NETNS": netns,
            "CNI_IFNAME": interface,
            "CNI_ARGS": f"K8S_POD_NAMESPACE={pod_namespace};K8S_POD_NAME={pod_name};K8S_POD_UID={pod_uid}",
        },
        config=base64.b64encode(config).decode(),
        interface_attributes=attributes if attributes is not None else msgspec.UNSET,
        network=network or msgspec.UNSET,
    )
