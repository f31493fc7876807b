"""Carries out the plan for one pod: CNI by way of multus, then the pod's annotations; told by ``tell``.

In the order of the plan. An attachment that fails does not hold up the others: each belongs to an operation of its own.
Rolled back is only an ADD whose plugins have run: upstream's daemon leaves what they made, ours has undone it. A DEL of
a name that another attachment holds would take that one away.
The parts: ``lookup`` (sandbox, configuration), ``delegate`` (multus), ``status``, ``write``.
"""

from collections.abc import Sequence

from opentelemetry.trace import Span, StatusCode

from schemas.kube import Pod
from schemas.operations import Operation
from services.common.cri.sandbox import Sandbox
from services.common.reconcile import FIRST_BACKOFF, MAX_BACKOFF, Attempt, Retry
from services.common.telemetry.propagation import parent_of
from services.networks import attachment_settings, messages, status
from services.networks.delegate import STILL_IN_USE
from services.networks.delegate import Pod as CniPod
from services.networks.failure import Failure
from services.networks.lookup import sandbox_and_config
from services.networks.plan import Action, Attach, Detach, Report
from services.networks.reporter import Teller
from services.networks.tools import Tools
from services.networks.write import PodGone, write


class Applier:
    """Applies the actions for one pod; never twice at once for one pod (the queue sees to it)."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    async def apply(self, pod: Pod, actions: Sequence[Action], attempt: Attempt) -> bool:
        """Carry out the actions in order.

        :return: whether the pod is as it should be, but for what only its author can put right.
        :raises Retry: some of them failed; the rest is done.
        """
        run = _Run(self._tools, attempt)
        try:
            await run.carry_out(pod, actions)
        except PodGone:
            self._tools.log.info("pod is gone", pod=f"{pod.metadata.namespace}/{pod.metadata.name}")
            return False
        finally:
            await run.teller.finished()
        if run.failed:
            after = min(retry.after or 0.0 for retry in run.failed)
            raise Retry(run.failed[0].reason, "; ".join(retry.message for retry in run.failed), after=after)
        return not run.refused


class _Refused(Exception):
    """A change has to wait until a guest lets go; it is looked at again at every resync."""


class _Run:
    """One run over the actions for a pod.

    :ivar failed: what is to be tried again. :ivar refused: some change was, see :class:`_Refused`.
    """

    def __init__(self, tools: Tools, attempt: Attempt) -> None:
        self._tools = tools
        self._attempt = attempt
        self.teller = Teller(tools)
        self.failed: list[Retry] = []
        self.refused = False

    async def carry_out(self, pod: Pod, actions: Sequence[Action]) -> None:
        """Carry out the actions in order.

        :raises PodGone: nobody is left to do it for.
        """
        stuck = set()
        for action in actions:
            if isinstance(action, Report):
                self.teller.report(pod, action)
            elif action.link not in stuck:
                try:
                    pod = await self._change(pod, action)
                except Retry as retry:
                    self.failed.append(retry)
                    # Where a link changes its network, the new one cannot come before the old one has gone.
                    stuck.add(action.link)

    async def _change(self, pod: Pod, action: Attach | Detach) -> Pod:
        """One attachment, in the trace of its operation; gives the pod as its patch left it."""
        memory = self._tools.memory.of(pod.metadata.uid)
        number = memory.failures.get(action.link, 0) + 1
        verb = "attach" if isinstance(action, Attach) else "detach"
        with self._tools.telemetry.tracer.start_as_current_span(
            f"networks {verb} {pod.metadata.name}/{action.link}",
            context=parent_of(action.operation.traceparent, self._attempt),
            attributes={
                "hotnic.operation.id": action.operation.id,
                "hotnic.interface": action.operation.interface,
                "hotnic.network": action.network,
                "hotnic.attempt": number,
            },
        ) as span:
            try:
                if isinstance(action, Attach):
                    pod = await self._attach(pod, action, number)
                else:
                    pod = await self._detach(pod, action, number)
            except _Refused as refused:
                span.set_attribute("hotnic.refused", str(refused))
                self.refused = True
                return pod
            except Failure as failure:
                memory.failures[action.link] = number
                retry = self._failed(pod, action, failure, number, span)
            else:
                memory.failures.pop(action.link, None)
                return pod
        raise retry

    async def _attach(self, pod: Pod, action: Attach, number: int) -> Pod:
        tools, memory = self._tools, self._tools.memory.of(pod.metadata.uid)
        sandbox, plain = await sandbox_and_config(
            tools, pod, action.namespace, action.element.name, remembered=not action.anew
        )
        config, unheard = attachment_settings.with_runtime(plain, action.element)
        if action.anew:
            pod = await self._make_room(pod, action, sandbox, plain)
        key = (sandbox.id, action.network, action.link)
        made = memory.unrecorded.get(key)
        if made is None:
            try:
                result = await tools.multus.add(_identity(pod), sandbox, action.link, config, action.element)
            except Failure as failure:
                # The pod may have another sandbox by now; the next attempt asks.
                memory.sandbox = None
                if failure.half_made:
                    await self._roll_back(pod, action, sandbox, config)
                raise
            made = status.outcome(
                pod_uid=pod.metadata.uid,
                sandbox_id=sandbox.id,
                network=action.network,
                link=action.link,
                asked=attachment_settings.of_element(action.element),
                result=result,
            )
            memory.unrecorded[key] = made
            memory.sandbox = sandbox
        outcome = made
        pod = await write(tools, pod, lambda annotations: status.attached(annotations, outcome))
        del memory.unrecorded[key]
        self.teller.attached(pod, action, number, sandbox.id, outcome)
        self.teller.unheard(pod, action, unheard)
        return pod

    async def _roll_back(self, pod: Pod, action: Attach, sandbox: Sandbox, config: bytes) -> None:
        try:
            await self._tools.multus.delete(_identity(pod), sandbox, action.link, config)
        except Failure as failure:
            self._tools.log.warning("a failed ADD is not undone", link=action.link, error=failure.message)

    async def _make_room(self, pod: Pod, action: Attach, sandbox: Sandbox, config: bytes) -> Pod:
        """Undo an attachment that its element wants otherwise by now.

        :raises _Refused: a guest is using it. :raises Failure: of any other kind.
        """
        try:
            await self._tools.multus.delete(_identity(pod), sandbox, action.link, config)
        except Failure as failure:
            if failure.reason != STILL_IN_USE:
                raise
            message = messages.change_rejected(pod, action.element, action.link, failure.message)
            about = f"{action.link} {attachment_settings.of_element(action.element)}"
            self.teller.report(pod, Report(messages.CHANGE_REJECTED, message, about))
            raise _Refused(failure.message) from failure
        return await self._strike(pod, action.network, action.link, sandbox)

    async def _detach(self, pod: Pod, action: Detach, number: int) -> Pod:
        tools = self._tools
        # The sandbox of this very moment: DEL in one that is gone succeeds, and would leave the link in the new one.
        sandbox, config = await sandbox_and_config(
            tools, pod, action.namespace, action.name, remembered=False, gone=b""
        )
        await tools.multus.delete(_identity(pod), sandbox, action.link, config)
        pod = await self._strike(pod, action.network, action.link, sandbox, action.operation)
        self.teller.detached(pod, action, number, sandbox.id)
        return pod

    async def _strike(
        self, pod: Pod, network: str, link: str, sandbox: Sandbox, operation: Operation | None = None
    ) -> Pod:
        """Take an attachment that is undone off the pod, and with it the unplug that asked for that."""
        memory = self._tools.memory.of(pod.metadata.uid)
        memory.undone.add(link)
        memory.unrecorded.pop((sandbox.id, network, link), None)
        pod = await write(self._tools, pod, lambda annotations: status.detached(annotations, network, link, operation))
        memory.undone.discard(link)
        return pod

    def _failed(self, pod: Pod, action: Attach | Detach, failure: Failure, number: int, span: Span) -> Retry:
        """Tell of a failed attempt; gives when to try again."""
        span.set_status(StatusCode.ERROR, f"{failure.reason}: {failure.message}")
        span.set_attribute("error.type", failure.reason)
        step = min(MAX_BACKOFF, FIRST_BACKOFF * 2 ** min(number - 1, 30))
        after = round(max(FIRST_BACKOFF, step * self._tools.rng.uniform(0.5, 1.0)), 3)
        self.teller.failed(pod, action, failure, number, after)
        return Retry(failure.reason, f"{action.link}: {failure.message}", after=after)


def _identity(pod: Pod) -> CniPod:
    return CniPod(namespace=pod.metadata.namespace, name=pod.metadata.name, uid=pod.metadata.uid)
