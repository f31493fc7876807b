"""One lab from start to stop: starts the processes in order, serves the control socket, stops the processes.

Processes that do not depend on each other start at the same time: API server, nats-server and containerd first; the
roles and the node once the cluster's objects exist (`bootstrap.py`). Progress is reported on a pipe. Afterwards the
supervisor serves the control socket (`requests.py`) until a stop is requested. When a process fails to start, the
supervisor reports the end of its log and stops all others. When the supervisor is killed, its PID namespace ends with
every process in it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.layout import CONTAINERD_SOCKET, HEALTH_PORTS, INSIDE_RUN, NATS_PORT, Layout, split_name
from lab.namespaces import nodes
from lab.namespaces.holder import SupervisorOptions
from lab.supervisor import components, readiness, relay, requests
from lab.supervisor.collector import COLLECTOR_PORT, Collector
from lab.supervisor.processes import Processes, ProcessSpec
from lab.supervisor.progress import StartError, StartProgress
from lab.tools import LabTools

if TYPE_CHECKING:
    from lab.supervisor.kubernetes.control_plane import ControlPlanePrograms
    from lab.supervisor.kubernetes.kubelet import NodePrograms


class Supervisor:
    """One lab, from start to stop."""

    def __init__(self, options: SupervisorOptions, progress: StartProgress) -> None:
        self.options = options
        self.layout = Layout(Path(options.dir))
        identity = self.layout.identity()
        if identity is None:
            raise StartError(f"{self.layout.identity_file} is missing")
        self.parameters = components.LabParameters(
            self.layout,
            identity,
            LabTools.find(),
            options.apiserver_fd,
            options.guests,
            Collector.parse(options.otlp) if options.otlp else None,
            *kubernetes_programs(options),
            options.kubevirt,
            options.nodes,
        )
        self.nodes: dict[int, nodes.NodeNamespaces] = {}
        """The namespaces of the further nodes, by number."""
        self.processes = Processes()
        self.stopping = asyncio.Event()
        self.up = False
        self._progress = progress
        self._relays: list[asyncio.Server] = []

    async def run(self) -> int:
        """Start the lab, serve requests until a stop is requested, stop the lab; return the exit code."""
        loop = asyncio.get_running_loop()
        # Process 1 of a PID namespace ignores signals for which it has no handler.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        # The control socket is served from the start, so that `lab down` can interrupt a start.
        control = await requests.serve(INSIDE_RUN / "control.sock", requests.Requests(self).answer)
        relays = self._relays
        relays.append(await relay.serve_inwards(socket.socket(fileno=self.options.nats_fd), NATS_PORT))
        if (port := self.parameters.cluster.relayed_port) is not None:
            relays.append(await relay.serve_inwards(socket.socket(fileno=self.options.apiserver_fd), port))
        if self.parameters.collector is not None:
            relays.append(await relay.serve_collector(self.parameters.collector, self.options.outside_fd))
        try:
            if await self._started_before_stop():
                self.up = True
                self._progress.report(done=True, ok=True)
                self._progress.close()
                await self.stopping.wait()
            return 0
        except StartError as error:
            self._progress.report(done=True, ok=False, error=str(error))
            return 1
        finally:
            # A role exports its last spans while it stops.
            await self.stop_all()
            for server in (*relays, control):
                server.close()
            self.processes.close()

    async def _started_before_stop(self) -> bool:
        """Start the lab unless a stop is requested meanwhile; return whether everything has started.

        :raises StartError: as `_start`.
        """
        starting = asyncio.ensure_future(self._start())
        stopping = asyncio.ensure_future(self.stopping.wait())
        racing: set[asyncio.Future[Any]] = {starting, stopping}
        try:
            await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
            return starting.done()
        finally:
            for future in racing:
                future.cancel()
            await asyncio.gather(*racing, return_exceptions=True)

    async def _start(self) -> None:
        """Start everything, within the deadline of `hotnic lab up`.

        :raises StartError: a process failed, or the deadline passed.
        """
        try:
            async with asyncio.timeout(self.options.deadline - self._progress.elapsed):
                await self._start_in_order()
        except TimeoutError as error:
            waiting = ", ".join(await self._not_ready())
            raise StartError(
                f"not everything was ready after {self.options.deadline:g} s: {waiting or 'the sample VM'}"
            ) from error
        except Exception as error:
            # Any failure is handled alike: report it, stop the processes that run, exit.
            cause = first_leaf(error)
            raise StartError(str(cause) or type(cause).__name__) from error

    async def _start_in_order(self) -> None:
        progress = self._progress
        if self.parameters.nodes > 1:
            await progress.run_step("further nodes", self._create_nodes())
        components.write_configuration(self.parameters)
        # These need no credentials, so they start while those are issued.
        for component in self.parameters.runtimes:
            self.launch(component)
        async with asyncio.TaskGroup() as group:
            for component in self.parameters.runtimes:
                group.create_task(progress.run_step(f"{component} and pause image", self._containerd(component)))
            await self._issue_credentials()
            self.launch("nats")
            group.create_task(progress.run_step("nats-server", self.wait_ready("nats")))
            group.create_task(self._cluster())
        if not self.options.bare:
            # Imported here because the import takes longer than containerd's start, which can go on meanwhile.
            from lab.supervisor import bootstrap

            await progress.run_step("sample network and VM", bootstrap.create_samples(self.layout.kubeconfig))

    async def _create_nodes(self) -> None:
        """Create the namespaces of the further nodes, whose processes reach API server and NATS as the first's do."""
        ports = [self.parameters.identity.apiserver_port, NATS_PORT]
        if self.parameters.collector is not None:
            ports.append(COLLECTOR_PORT)
        for node in range(2, self.parameters.nodes + 1):
            created = self.nodes[node] = await nodes.create(Layout(self.layout.dir, node), ports)
            for port, listener in zip(ports, created.listeners, strict=True):
                self._relays.append(await relay.serve_inwards(listener, port))

    async def _containerd(self, component: str) -> None:
        await self.wait_ready(component)
        tools, node = self.parameters.tools, self.parameters.node
        ctr, log = node.ctr if node else tools.ctr, self.layout.log(component)
        spec = components.import_pause_image(tools, ctr, log, os.environ, node=split_name(component)[1])
        await self.processes.run(self._placed(spec), timeout=60)

    async def _issue_credentials(self) -> None:
        # Imported here because cryptography would delay the start of containerd.
        from lab.supervisor.credentials import bus, certificates

        before = self._progress.elapsed
        cluster, endpoint = self.parameters.cluster, self.parameters.cluster.endpoint
        certificates.issue(self.layout, endpoint, self.parameters.roles)
        # Pods of a kubelet reach NATS at the address of the node.
        addresses = [cluster.api_host] if self.parameters.node else []
        place = bus.in_namespaces(self.layout)
        bus.issue(self.layout, place, self.parameters.roles, addresses=addresses, unrestricted=True)
        if self.parameters.kubevirt:
            certificates.issue_for_kubevirt(self.layout, endpoint)
        if self.parameters.kubernetes is not None:
            from lab.supervisor.kubernetes import control_plane

            control_plane.prepare(self.layout.apiserver, endpoint)
            if self.parameters.node is not None:
                await self._prepare_node()
        self._progress.report(step="credentials", ms=round((self._progress.elapsed - before) * 1000))

    async def _cluster(self) -> None:
        progress, cluster = self._progress, self.parameters.cluster
        # The played KubeVirt is next to the API server, because the CRDs are those of its version.
        for component in (*cluster.components, *self.parameters.played):
            self.launch(component)
            await progress.run_step(component, self.wait_ready(component))

        from lab.supervisor import bootstrap

        # A lab without roles is one to install hotnic in: an installer creates its own objects.
        roles = [role for role in self.parameters.roles if role not in self.options.without]
        if not roles:
            await progress.run_step("CRDs", bootstrap.create_only_definitions(self.layout.kubeconfig))
        else:
            beside = roles if self.parameters.kubevirt else None
            created = bootstrap.create_objects(self.layout, cluster.api_host, beside=beside)
            await progress.run_step("namespaces, CRDs, API registration", created)
        if self.parameters.kubernetes is not None and roles:
            await progress.run_step("rights and tokens of the roles", self._grant(self.parameters.kubernetes.helm))
        selected = [*self.parameters.kubelet, *roles, *self.parameters.node_processes]
        for component in selected:
            self.launch(component)
        async with asyncio.TaskGroup() as group:
            for component in selected:
                group.create_task(progress.run_step(component, self.wait_ready(component)))
        if self.parameters.kubernetes is not None and "api" in selected:
            # kube-apiserver answers 503 for it until its own check of the api role has succeeded.
            from lab.supervisor.kubernetes import control_plane

            port = self.parameters.identity.apiserver_port
            reached = control_plane.wait_for_aggregated_api(self.layout.apiserver, port)
            await progress.run_step("aggregated API", reached)
        for role in self.options.without:
            progress.report(by_hand=role, command=components.manual_command(self.parameters, role))

    async def _prepare_node(self) -> None:
        from lab.apiserver.identity.pki import SERVICE_ADDRESS
        from lab.supervisor.kubernetes import kubelet
        from lab.supervisor.kubernetes.control_plane import NODE_ADDRESS

        identity = self.parameters.identity
        kubelet.prepare(self.layout, self.parameters.cluster.endpoint, identity.cgroup)
        # No kube-proxy: this is how pods reach the API server, and NATS at the node's address.
        for address, port in (
            ((SERVICE_ADDRESS, 443), identity.apiserver_port),
            ((NODE_ADDRESS, NATS_PORT), NATS_PORT),
        ):
            self._relays.append(await relay.serve_inwards(socket.create_server(address), port))

    async def _grant(self, helm: Path) -> None:
        from lab.supervisor.kubernetes import access

        rendered = self.layout.config / "chart.yaml"
        environ = components.base_environment(self.parameters.tools, os.environ)
        choice = "beside-kubevirt" if self.parameters.kubevirt else "everything"
        await self.processes.run(access.rendering(helm, access.CHART, rendered, environ, choice=choice), timeout=60)
        await access.grant(self.layout, rendered, self.parameters.cluster.endpoint, self.parameters.roles)

    def launch(self, component: str) -> None:
        """Start the process of `component`."""
        self.processes.start(self._placed(components.process_spec(self.parameters, component, os.environ)))

    def _placed(self, spec: ProcessSpec) -> ProcessSpec:
        """Return how to run a process in the namespaces of its node."""
        node = self.nodes.get(split_name(spec.name)[1])
        return spec if node is None else replace(spec, argv=(*node.enter, *spec.argv))

    def health(self, component: str) -> int | readiness.NodeServer:
        """Return where the process of a role, or of `node`, serves /readyz."""
        process, number = split_name(component)
        node, port = self.nodes.get(number), HEALTH_PORTS[process]
        return port if node is None else readiness.NodeServer(port, node.network)

    async def wait_ready(self, component: str) -> None:
        """Return once `component` is ready.

        :raises EarlyExitError: its process ended first.
        """
        process, number = split_name(component)
        match process:
            case _ if component in self.parameters.cluster.components:
                probe = self.parameters.cluster.wait_ready(component)
            case "nats":
                probe = readiness.wait_for_port(NATS_PORT)
            case "kubevirt":
                from lab.supervisor import bootstrap

                probe = bootstrap.wait_for_kubevirt(self.layout.kubeconfig)
            case "kubelet":
                probe = self._kubelet_ready()
            case "containerd":
                node = self.nodes.get(number)
                probe = readiness.wait_for_socket(node.path(CONTAINERD_SOCKET) if node else CONTAINERD_SOCKET)
            case _:
                probe = readiness.wait_for_readyz(self.health(component))
        await readiness.wait_unless_exited(self.processes.children[component], probe)

    async def _kubelet_ready(self) -> None:
        from lab.supervisor.kubernetes import kubelet

        await readiness.wait_for_port(kubelet.HEALTH_PORT)
        # multus writes the CNI configuration without which the Node is not Ready.
        if "multus" not in self.options.without:
            await kubelet.wait_for_node(self.layout.apiserver, self.parameters.identity.apiserver_port)

    async def wait_ready_within(self, component: str, seconds: float) -> None:
        """Return once `component` is ready.

        :raises EarlyExitError: its process ended first.
        :raises TimeoutError: it is not ready after `seconds`.
        """
        async with asyncio.timeout(seconds):
            await self.wait_ready(component)

    async def _not_ready(self) -> list[str]:
        answers = []
        for component in (*self.parameters.roles, *self.parameters.node_processes):
            if component in self.processes.children:
                status, reason = await readiness.http_get(self.health(component), "/readyz")
                if status != 200:
                    answers.append(f"{component} ({reason or status})")
        return answers

    async def stop_all(self, on_stopped: Callable[[str, float], None] = lambda _name, _seconds: None) -> None:
        """Stop every process: roles and node first, then the processes that they depend on.

        :param on_stopped: called with the name of each stopped process and the seconds that its stop took.
        """

        async def stop(component: str) -> None:
            if component in self.processes.children:
                on_stopped(component, await self.processes.stop(component))

        for together in self.parameters.stop_groups:
            await asyncio.gather(*(stop(component) for component in together))


def kubernetes_programs(options: SupervisorOptions) -> tuple[ControlPlanePrograms | None, NodePrograms | None]:
    """Return the programs of Kubernetes and those of a node with a kubelet, as far as the lab has them.

    :raises ToolsMissingError: one of them is not built.
    """
    version = options.kubernetes
    if version is None:
        return None, None
    from lab.supervisor.kubernetes.control_plane import ControlPlanePrograms
    from lab.supervisor.kubernetes.kubelet import NodePrograms

    return ControlPlanePrograms.find(version), NodePrograms.find(version) if options.kubelet else None


def first_leaf(group: BaseException) -> BaseException:
    """Return the first leaf of an exception group."""
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


async def supervise(options: SupervisorOptions, progress: StartProgress) -> int:
    """Run one lab; return the exit code."""
    return await Supervisor(options, progress).run()
