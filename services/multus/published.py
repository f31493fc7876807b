"""A record as ``GET /sandboxes/<id>`` shows it: what the networks controller compares a pod's annotations with. Pure.

Next: :mod:`services.multus.calls`.
"""

import msgspec

from schemas import multus
from services.multus.conflist import Attributes
from services.multus.records import Owner, Sandbox, State


def published(sandbox: Sandbox) -> multus.SandboxRecord:
    """A record as ``GET /sandboxes/<id>`` shows it."""
    return multus.SandboxRecord(
        sandbox_id=sandbox.sandbox_id,
        pod_uid=sandbox.pod_uid,
        attachments=[
            multus.RecordedAttachment(
                interface=one.ifname,
                network=one.network,
                owner=one.owner.value,
                hot_plugged=one.owner is Owner.DELEGATE,
                config_digest=one.fingerprint,
                mac=one.mac,
                ifindex=one.ifindex,
                kind=one.kind,
                added=one.state is State.ADDED,
                requested=_requested(one.attributes()),
            )
            for one in sandbox.attachments
        ],
    )


def _requested(attributes: Attributes) -> multus.InterfaceAttributes:
    return multus.InterfaceAttributes(
        cni_args=dict(attributes.cni_args) or None,
        ips=attributes.ips or msgspec.UNSET,
        mac=attributes.mac or msgspec.UNSET,
    )
