"""Apply the plan for one pod: CNI calls through multus, then a patch of the pod's annotations, then a report.

Actions run in the order of the plan. A failed action does not stop the others, because each belongs to its own
operation. A failed ADD is rolled back only if one of its plugins ran: upstream's daemon leaves what they made. In any
other case the link name may belong to another attachment, and a DEL would remove that one (ADR 10).
The parts: ``observe`` (sandbox and configuration), ``multus_client``, ``network_config``, ``status`` (annotations),
``reporter``.
"""

import random
from collections.abc import Sequence
from functools import partial

import msgspec

from schemas.kubernetes.networks import NetworkSelectionElement, check_settings
from schemas.kubernetes.objects import Pod
from schemas.kubernetes.operations import Operation
from services.common.cri.sandbox import Sandbox
from services.common.flowcontrol.backoff import jittered
from services.common.kube.cache.cached_reader import CachedReader
from services.common.reconcile import FIRST_BACKOFF, MAX_BACKOFF, Attempt, Retry
from services.common.runtime.context import RoleContext
from services.common.telemetry.propagation import parent_of
from services.common.telemetry.tracer import fail_span
from services.networks import status
from services.networks.multus_client import STILL_IN_USE, AttachmentFailure, MultusClient
from services.networks.network_config import with_runtime_config
from services.networks.observe import PodObserver
from services.networks.plan import messages
from services.networks.plan.actions import Action, Attach, Detach, RecordEvent
from services.networks.plan.attachments import element_digest
from services.networks.pod_cache import PodCache
from services.networks.reporter import Reporter


class _ChangeRefused(Exception):
    """A change cannot be made now, and an Event says why; each resync tries again.

    The settings of an attachment that a guest uses have changed, or there is no configuration to remove one with.
    """


class _Run(msgspec.Struct):
    """The state of one run over the actions for a pod.

    :ivar failed: the actions to retry.
    :ivar defect: the first unexpected error; it stops no other action.
    :ivar refused: whether a change was refused, see :class:`_ChangeRefused`.
    """

    attempt: Attempt
    reporter: Reporter
    failed: list[Retry] = []
    defect: Exception | None = None
    refused: bool = False


class Applier:
    """Applies the actions for a pod. The queue never runs one pod's key twice at the same time.

    :param observer: finds the sandbox and the network's configuration for a change.
    :param pods: the reader of pods, which must expect the versions that patches create.
    :param cache: what this process did for the pods.
    """

    def __init__(
        self,
        context: RoleContext,
        observer: PodObserver,
        multus: MultusClient,
        pods: CachedReader[Pod],
        cache: PodCache,
    ) -> None:
        self._context = context
        self._observer = observer
        self._multus = multus
        self._pods = pods
        self._cache = cache
        self._rng = random.Random()

    async def apply(self, pod: Pod, actions: Sequence[Action], attempt: Attempt, sandbox: Sandbox | None) -> bool:
        """Apply the actions in order.

        :param sandbox: the sandbox of the pod, if its record was read; the actions then need not find it again.
        :return: whether the pod has the desired state, apart from mistakes in its annotations, which only their author
            can correct.
        :raises Retry: some actions failed; the others are done.
        """
        if actions:
            cached = self._cache.of(pod.metadata.uid)
            cached.sandbox = cached.sandbox or sandbox
        run = _Run(attempt, Reporter(self._context, self._cache))
        try:
            await self._apply_in_order(run, pod, actions)
        except status.PodGone:
            self._context.log.info("pod deleted during the run", pod=f"{pod.metadata.namespace}/{pod.metadata.name}")
            return False
        finally:
            await run.reporter.flush()
        if run.failed:
            # The queue has one timer per pod: the earliest retry. The next run plans whatever is still missing.
            after = min(retry.after or 0.0 for retry in run.failed)
            raise Retry(run.failed[0].reason, "; ".join(retry.message for retry in run.failed), after=after)
        if run.defect is not None:
            raise run.defect
        return not run.refused

    async def _apply_in_order(self, run: _Run, pod: Pod, actions: Sequence[Action]) -> None:
        blocked_links = set()
        for action in actions:
            if isinstance(action, RecordEvent):
                run.reporter.record_event(pod, action)
            elif action.link not in blocked_links:
                try:
                    pod = await self._change(run, pod, action)
                except Retry as retry:
                    run.failed.append(retry)
                    # If a link name moves to another network, its attach must wait until the detach succeeds.
                    blocked_links.add(action.link)
                except status.PodGone:
                    raise
                except Exception as error:
                    self._context.log.error("unexpected error of an attachment", link=action.link, exc_info=error)
                    run.defect = run.defect or error
                    blocked_links.add(action.link)

    async def _change(self, run: _Run, pod: Pod, action: Attach | Detach) -> Pod:
        """Change one attachment in the trace of its operation; return the patched pod."""
        cached = self._cache.of(pod.metadata.uid)
        number = cached.failures.get(action.link, 0) + 1
        verb = "attach" if isinstance(action, Attach) else "detach"
        with self._context.telemetry.tracer.start_as_current_span(
            f"networks {verb} {pod.metadata.name}/{action.link}",
            context=parent_of(action.operation.traceparent, run.attempt),
            attributes={
                "hotnic.operation.id": action.operation.id,
                "hotnic.interface": action.operation.interface,
                "hotnic.network": action.network,
                "hotnic.attempt": number,
            },
        ) as span:
            try:
                if isinstance(action, Attach):
                    pod = await self._attach(run.reporter, pod, action, number)
                else:
                    pod = await self._detach(run.reporter, pod, action, number)
            except _ChangeRefused as refused:
                span.set_attribute("hotnic.refused", str(refused))
                run.refused = True
                return pod
            except AttachmentFailure as failure:
                cached.failures[action.link] = number
                fail_span(span, f"{failure.reason}: {failure.message}")
                span.set_attribute("error.type", failure.reason)
                if failure.final and isinstance(action, Attach):
                    # No backoff: a change of the pod or a resync tries again.
                    run.reporter.report_failure(pod, action, failure, number, None)
                    run.refused = True
                    return pod
                retry = self._report_failure(run.reporter, pod, action, failure, number)
            else:
                cached.failures.pop(action.link)
                return pod
        # Outside of the span, which has the failure as its status already.
        raise retry

    async def _attach(self, reporter: Reporter, pod: Pod, action: Attach, number: int) -> Pod:
        cached = self._cache.of(pod.metadata.uid)
        _check_settings(action.element)
        sandbox, plain = await self._observer.find_sandbox_and_config(
            pod, action.namespace, action.element.name, use_cached=not action.replace
        )
        config, ignored = with_runtime_config(plain, action.element)
        # Only now: a NAD that cannot be read must not cost the attachment that exists.
        if action.replace:
            pod = await self._detach_for_replacement(reporter, pod, action, sandbox, plain)
        key = (sandbox.id, action.network, action.link)
        outcome = cached.unwritten_outcomes.get(key)
        if outcome is None:
            outcome = await self._add(pod, action, sandbox, config)
            # Stored until it is written, because a retry must not call ADD again: upstream's daemon refuses it.
            cached.unwritten_outcomes[key] = outcome
            cached.sandbox = sandbox
        pod = await self._patch(pod, partial(status.annotations_with, outcome=outcome))
        del cached.unwritten_outcomes[key]
        reporter.report_attached(pod, action, number, sandbox.id, outcome)
        reporter.report_ignored_settings(pod, action, ignored)
        return pod

    async def _add(self, pod: Pod, action: Attach, sandbox: Sandbox, config: bytes) -> status.AttachOutcome:
        try:
            result = await self._multus.add(pod, sandbox, action.link, config, action.element, network=action.network)
        except AttachmentFailure as failure:
            # The pod may have a new sandbox by now, so the next attempt asks the container runtime.
            self._cache.of(pod.metadata.uid).sandbox = None
            # ADR 10: only then is the link of this name our own, and no other attachment is removed.
            if failure.plugin_failed:
                await self._roll_back_add(pod, action, sandbox, config)
            raise
        return status.attach_outcome(
            pod_uid=pod.metadata.uid,
            sandbox_id=sandbox.id,
            network=action.network,
            link=action.link,
            settings_digest=element_digest(action.element),
            result=result,
        )

    async def _roll_back_add(self, pod: Pod, action: Attach, sandbox: Sandbox, config: bytes) -> None:
        try:
            await self._multus.delete(pod, sandbox, action.link, config)
        except AttachmentFailure as failure:
            self._context.log.warning("rollback of failed ADD failed", link=action.link, error=failure.message)

    async def _detach_for_replacement(
        self, reporter: Reporter, pod: Pod, action: Attach, sandbox: Sandbox, config: bytes
    ) -> Pod:
        """Detach an attachment whose element has other settings now.

        :raises _ChangeRefused: A guest uses it.
        :raises AttachmentFailure: the detach failed for any other reason.
        """
        try:
            await self._multus.delete(pod, sandbox, action.link, config)
        except AttachmentFailure as failure:
            if failure.reason != STILL_IN_USE:
                raise
            message = messages.change_rejected(pod, action.element, action.link, failure.message)
            subject = f"{action.link} {element_digest(action.element)}"
            reporter.record_event(pod, RecordEvent(messages.CHANGE_REJECTED, message, subject))
            raise _ChangeRefused(failure.message) from failure
        return await self._remove_annotations(pod, action.network, action.link, sandbox, None)

    async def _detach(self, reporter: Reporter, pod: Pod, action: Detach, number: int) -> Pod:
        # No cached sandbox: a DEL in a deleted sandbox succeeds and would leave the link in the new one.
        sandbox, config = await self._observer.find_sandbox_and_config(
            pod, action.namespace, action.name, use_cached=False, fallback=b""
        )
        if action.unrecorded and not config:
            message = messages.left_behind(pod, action.network, action.link)
            reporter.record_event(pod, RecordEvent(messages.REMOVE_FAILED, message, action.link))
            raise _ChangeRefused(message)
        await self._multus.delete(pod, sandbox, action.link, config, mac=action.mac)
        pod = await self._remove_annotations(pod, action.network, action.link, sandbox, action.operation)
        reporter.report_detached(pod, action, number, sandbox.id)
        return pod

    async def _remove_annotations(
        self, pod: Pod, network: str, link: str, sandbox: Sandbox, operation: Operation | None
    ) -> Pod:
        """Remove a detached attachment from the pod's annotations, and the unplug operation that requested it."""
        cached = self._cache.of(pod.metadata.uid)
        # Before the patch: if it fails, the entry that remains must not count as an attachment.
        cached.detached_links.add(link)
        cached.unwritten_outcomes.pop((sandbox.id, network, link), None)
        pod = await self._patch(
            pod, partial(status.annotations_without, network=network, link=link, operation=operation)
        )
        cached.detached_links.discard(link)
        return pod

    async def _patch(self, pod: Pod, change: status.Change) -> Pod:
        return await status.patch_annotations(self._context.kube, self._pods, pod, change)

    def _report_failure(
        self,
        reporter: Reporter,
        pod: Pod,
        action: Attach | Detach,
        failure: AttachmentFailure,
        number: int,
    ) -> Retry:
        """Report a failed attempt; return the retry with its backoff."""
        # Computed here, because each link counts its own attempts and the `failed` event has the time (ADR 10).
        after = round(jittered(number, FIRST_BACKOFF, MAX_BACKOFF, self._rng), 3)
        reporter.report_failure(pod, action, failure, number, after)
        return Retry(failure.reason, f"{action.link}: {failure.message}", after=after)


def _check_settings(element: NetworkSelectionElement) -> None:
    """Check the settings of an element: upstream's daemon puts them into ``CNI_ARGS`` as they are.

    :raises AttachmentFailure: ``InvalidSettings``, final.
    """
    try:
        check_settings(mac=element.mac, infiniband_guid=element.infiniband_guid, ips=element.ips or ())
    except ValueError as error:
        raise AttachmentFailure("InvalidSettings", str(error), final=True) from error
