"""Bodies on the multus daemon's unix socket: ``/cni`` and ``/delegate``.

Source: multus-cni v4 ``pkg/server/api``. Wire-compatible both ways;
the trace travels in the W3C header ``traceparent``. ``GET /sandboxes/<id>`` is this project's own: upstream's daemon
answers it with 404, as ours does for a sandbox that it does not know.
"""

import base64
from typing import Any

import msgspec

from schemas.cni import CniResult

SOCKET_NAME = "multus.sock"
CNI_PATH = "/cni"
DELEGATE_PATH = "/delegate"
HEALTH_PATH = "/healthz"
READY_PATH = "/readyz"
SANDBOXES_PATH = "/sandboxes"
MAX_BODY_BYTES = 4 * 1024 * 1024


class InterfaceAttributes(msgspec.Struct, frozen=True):
    """What of a selection element ``/delegate`` carries. ``cni-args`` is ``null`` when unset, as upstream sends it."""

    cni_args: dict[str, Any] | None = msgspec.field(default=None, name="cni-args")
    ips: list[str] | msgspec.UnsetType | None = msgspec.UNSET
    mac: str | msgspec.UnsetType = msgspec.UNSET


class CniRequest(msgspec.Struct, frozen=True):
    """A CNI call: environment, configuration (base64 of the raw CNI JSON) and, on ``/delegate``, attributes."""

    env: dict[str, str] = {}
    config: str | msgspec.UnsetType | None = msgspec.UNSET
    interface_attributes: InterfaceAttributes | msgspec.UnsetType | None = msgspec.field(
        default=msgspec.UNSET, name="interfaceAttributes"
    )

    def config_bytes(self) -> bytes:
        """The CNI configuration; empty when none was sent.

        :raises ValueError: it is not standard base64.
        """
        return base64.b64decode(self.config, validate=True) if isinstance(self.config, str) else b""


class DelegateResponse(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to ADD; every other verb answers with an empty body."""

    result: CniResult | None = msgspec.field(default=None, name="Result")


class RecordedAttachment(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One attachment as the daemon's record of a sandbox has it.

    :ivar owner: by what it came: ``cluster``, ``default`` (``defaultNetworks``), ``auxiliary`` (the chain of that
        name), ``networks`` (annotation at sandbox creation), ``delegate`` (hot-plug).
    :ivar config_digest: of CNI configuration and attributes; equal for two requests for the same attachment.
    :ivar ifindex: of the link in the sandbox; ``0`` when it made none, or while it is being made.
    :ivar added: ``False`` while its ADD runs, or after one that was cut off.
    :ivar requested: what was asked beside the configuration, as ``interfaceAttributes`` carries it.
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
    """The answer to ``GET /sandboxes/<id>``: what the daemon has attached to a sandbox, in the order it was made."""

    sandbox_id: str = msgspec.field(name="sandboxID")
    pod_uid: str = msgspec.field(name="podUID")
    attachments: list[RecordedAttachment] = []


def delegate_request(
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
) -> CniRequest:
    """The request that the dynamic networks controller sends: exactly five ``CNI_*`` keys."""
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
    )
