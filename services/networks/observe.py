"""What is known of one pod before it is decided what to do: the pod, fresh enough, and the record of its sandbox.

The record is asked for only where it can change the plan; sandbox and networks of a change are looked up in
:mod:`services.networks.lookup`, once there is one to make. Next: :mod:`services.networks.plan`.
"""

from typing import NamedTuple

from opentelemetry import context as otel

from schemas.kube import PODS, Pod
from services.common.cri.sandbox import Sandbox
from services.common.kube.errors import KubeError, NotFound
from services.common.reconcile import Attempt, Retry
from services.networks.current import HOT_PLUGGED, Known
from services.networks.failure import Failure
from services.networks.lookup import sandbox_of
from services.networks.plan import Isolation, Observed, asks_for_record
from services.networks.tools import Tools


class Look(NamedTuple):
    """What was seen.

    :ivar sandbox: of the pod, where its record was asked for.
    :ivar no_record: why the record could not be had although it matters; a plan by the annotations alone is safe, but
        may leave something undone.
    """

    seen: Observed
    sandbox: Sandbox | None = None
    no_record: Failure | None = None


async def observe(tools: Tools, isolation: Isolation, namespace: str, name: str, attempt: Attempt) -> Look | None:
    """The pod as it is, ``None`` when it is gone or runs on another node (any more).

    :raises Retry: the pod had to be read live and could not be.
    """
    heard = next((cause.context for cause in reversed(attempt.causes) if cause.context is not None), None)
    token = otel.attach(heard) if heard is not None else None
    try:
        return await _observe(tools, isolation, namespace, name)
    except KubeError as error:
        raise Retry("KubeUnavailable", f"pod {namespace}/{name} cannot be read: {error.message}") from error
    finally:
        if token is not None:
            otel.detach(token)


async def _observe(tools: Tools, isolation: Isolation, namespace: str, name: str) -> Look | None:
    pod = await tools.pods.read(namespace, name)
    if pod is None or pod.spec.node_name != tools.node:
        return None
    seen = Observed(pod, tools.node, _remembered(tools, pod), isolation)
    if not asks_for_record(seen, tools.memory.of(pod.metadata.uid).compared):
        return Look(seen)
    try:
        sandbox = await sandbox_of(tools, pod, remembered=True)
        record = await tools.multus.record(sandbox)
    except Failure as failure:
        return Look(seen, no_record=failure)
    known = Known(record, seen.known.unwritten, seen.known.undone)
    if any(one.owner == HOT_PLUGGED for one in known.attachments):
        # The record is newer than a cached pod, which would make it seem to hold what nobody wants.
        try:
            pod = await tools.kube.get(PODS, namespace, name)
        except NotFound:
            return None
    return Look(Observed(pod, tools.node, known, isolation), sandbox)


def _remembered(tools: Tools, pod: Pod) -> Known:
    memory = tools.memory.of(pod.metadata.uid)
    unwritten = tuple((network, link) for _, network, link in memory.unrecorded)
    return Known(None, unwritten, frozenset(memory.undone))
