"""Read the state that the role works with: a pod, the multus daemon's record of its sandbox, the sandbox, a network.

The annotations of the pod are parsed here, once. The record is requested only if it can change the plan. The sandbox
and the CNI configuration of a network are read when there is an attachment to change.
Next: :mod:`services.networks.plan`.
"""

import asyncio

import msgspec
from opentelemetry import context as otel

from schemas.kubernetes.mirror_pods import is_mirror_pod
from schemas.kubernetes.objects import NADS, PODS, Pod
from services.common.cri.client import CriClient
from services.common.cri.errors import CriError, SandboxMissing
from services.common.cri.sandbox import Sandbox
from services.common.domain.plugin_types import AllowedPlugins
from services.common.kube.cache.cached_reader import CachedReader
from services.common.kube.errors import KubeError, NotFound
from services.common.reconcile import Attempt, Retry
from services.common.runtime.context import RoleContext
from services.networks.multus_client import AttachmentFailure, MultusClient
from services.networks.network_config import cni_config
from services.networks.plan import needs_sandbox_record
from services.networks.plan.actions import NamespaceIsolation, Observed
from services.networks.plan.attachments import MalformedAnnotation, parse_attachments
from services.networks.pod_cache import PodCache


class Observation(msgspec.Struct, frozen=True):
    """The input of the plan, and what the caller needs to apply the plan.

    :ivar observed: the input of the plan.
    :ivar sandbox: the sandbox of the pod, if its record was requested.
    :ivar record_failure: why the record could not be read although it could change the plan. A plan from the
        annotations alone is safe but may be incomplete, so the key is retried after it.
    """

    observed: Observed
    sandbox: Sandbox | None
    record_failure: Retry | None


class PodObserver:
    """Reads what the role works with.

    :param pods: reads a pod from the cache if it is up to date, otherwise from the API server.
    :param cache: what this process did for the pods.
    :param isolation: namespace isolation, beside a daemon that does not enforce it.
    :param allowed_plugins: the plugins that networks may name.
    """

    def __init__(
        self,
        context: RoleContext,
        pods: CachedReader[Pod],
        cri: CriClient,
        multus: MultusClient,
        cache: PodCache,
        isolation: NamespaceIsolation,
        allowed_plugins: AllowedPlugins,
    ) -> None:
        self._context = context
        self._pods = pods
        self._cri = cri
        self._multus = multus
        self._cache = cache
        self._isolation = isolation
        self._allowed_plugins = allowed_plugins

    async def observe(self, namespace: str, name: str, attempt: Attempt) -> Observation | None:
        """Return the observed pod; ``None`` if it does not exist or runs on another node.

        :raises Retry: a live read of the pod failed.
        """
        # The spans of the reads belong to the trace of the message that triggered this run.
        context = next((cause.context for cause in reversed(attempt.causes) if cause.context is not None), None)
        token = otel.attach(context) if context is not None else None
        try:
            return await self._observe(namespace, name)
        except KubeError as error:
            raise Retry("KubeUnavailable", f"cannot read pod {namespace}/{name}: {error.message}") from error
        finally:
            if token is not None:
                otel.detach(token)

    async def _observe(self, namespace: str, name: str) -> Observation | None:
        node = self._context.node
        pod = await self._pods.read(namespace, name)
        if pod is None or pod.spec.node_name != node:
            return None
        cached = self._cache.of(pod.metadata.uid)
        unwritten = [(network, link) for _, network, link in cached.unwritten_outcomes]
        attachments = parse_attachments(
            pod,
            record=None,
            unwritten=unwritten,
            detached_links=frozenset(cached.detached_links),
            earlier=cached.compared,
        )
        observed = Observed(pod, node, attachments, self._isolation)
        if isinstance(attachments, MalformedAnnotation) or not needs_sandbox_record(observed, cached.compared):
            return Observation(observed, None, None)
        try:
            sandbox = await self._find_sandbox(pod, use_cached=True)
            record = await self._multus.record(sandbox)
        except AttachmentFailure as failure:
            return Observation(observed, None, Retry(failure.reason, failure.message))
        attachments = msgspec.structs.replace(attachments, record=record)
        if not attachments.hot_plugged_in_record:
            return Observation(Observed(pod, node, attachments, self._isolation), sandbox, None)
        # The record is newer than a cached pod. Compared with the old annotation, an attachment that was requested
        # since would look unwanted, so the pod is read live.
        try:
            pod = await self._context.kube.get(PODS, namespace, name)
        except NotFound:
            return None
        live = parse_attachments(
            pod,
            record=record,
            unwritten=attachments.unwritten,
            detached_links=attachments.detached_links,
            earlier=cached.compared,
        )
        return Observation(Observed(pod, node, live, self._isolation), sandbox, None)

    async def find_sandbox_and_config(
        self, pod: Pod, namespace: str, nad: str, *, use_cached: bool, fallback: bytes | None = None
    ) -> tuple[Sandbox, bytes]:
        """Return the pod's sandbox and the CNI configuration of a network, read concurrently.

        :param use_cached: whether to use the sandbox of the last successful ADD without a call to the runtime.
        :param fallback: returned as the configuration if the NAD does not exist or has no valid one, or if the network
            has no namespace because only the daemon's record names it.
        :raises AttachmentFailure: the sandbox or the configuration cannot be read.
        """
        sandbox, config = await asyncio.gather(
            self._find_sandbox(pod, use_cached=use_cached),
            self._read_config(namespace, nad, fallback),
            # Without it, the first error would be raised while the other read still runs.
            return_exceptions=True,
        )
        if isinstance(sandbox, BaseException):
            raise sandbox
        if isinstance(config, BaseException):
            raise config
        return sandbox, config

    async def _find_sandbox(self, pod: Pod, *, use_cached: bool) -> Sandbox:
        """Return the sandbox that runs the pod.

        The result is not cached here: only a successful ADD proves that the sandbox is the right one.

        :raises AttachmentFailure: ``SandboxMissing`` or ``CriUnavailable``.
        """
        meta, cached = pod.metadata, self._cache.of(pod.metadata.uid)
        if use_cached and cached.sandbox is not None:
            return cached.sandbox
        # The container runtime labels a static pod's sandbox with another UID than the mirror pod has.
        static = (meta.namespace, meta.name) if is_mirror_pod(pod) else None
        try:
            # With the earlier result, the runtime lists its sandboxes but need not report the status again.
            sandbox = await self._cri.find_sandbox(meta.uid, static=static, earlier=cached.sandbox)
        except CriError as error:
            cached.sandbox = None
            reason = "SandboxMissing" if isinstance(error, SandboxMissing) else "CriUnavailable"
            raise AttachmentFailure(reason, str(error)) from error
        cached.set_sandbox(sandbox.id)
        return sandbox

    async def _read_config(self, namespace: str, nad: str, fallback: bytes | None) -> bytes:
        """Return the CNI configuration of a network from a live read of its NAD.

        :param fallback: as in :meth:`find_sandbox_and_config`.
        :raises AttachmentFailure: ``NetworkNotFound``, ``InvalidNetwork`` or ``KubeUnavailable``.
        """
        network = f"network {namespace}/{nad}"
        if fallback is not None and not namespace:
            return fallback
        try:
            found = await self._context.kube.get(NADS, namespace, nad)
            return cni_config(found, self._allowed_plugins, by_name=self._multus.serves_records)
        except AttachmentFailure:
            # The daemon's record has the configuration of the ADD, whatever the NAD says now.
            if fallback is not None:
                return fallback
            raise
        except NotFound as error:
            if fallback is not None:
                return fallback
            raise AttachmentFailure("NetworkNotFound", f"{network} not found: {error.message}") from error
        except KubeError as error:
            raise AttachmentFailure("KubeUnavailable", f"cannot read {network}: {error.message}") from error
