"""What a call has to know before anything is decided: the pod, and the CNI configurations of the networks it asks for.

Reads, changes nothing. Where a network's configuration is found is :mod:`services.multus.catalogue`'s.
Next: :mod:`services.multus.plan`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from schemas import cni
from schemas.kube import PODS, Pod
from schemas.names import is_ordinal
from schemas.networks import DEFAULT_NETWORK, NETWORKS, NetworkSelectionElement, parse_networks
from services.common.kube.client import Kube
from services.common.kube.errors import KubeError, NotFound, Unavailable
from services.multus import conflist
from services.multus.call import Call, PodId, attributes_of, runtime_base, runtime_of
from services.multus.catalogue import Catalogue, Found
from services.multus.conflist import Attributes, Network
from services.multus.devices import Devices
from services.multus.errors import CniError
from services.multus.plan import Wanted
from services.multus.pod import check_pod
from services.multus.records import Owner
from services.multus.settings import Config

POD_PATIENCE: Final = 2.5
"""Seconds in which a pod that the API does not know (yet) is asked for again."""
API_PATIENCE: Final = 15.0
"""Seconds in which an API server that does not answer is asked again."""
PAUSE: Final = 0.25
READINESS_PATIENCE: Final = 45.0
"""Seconds in which the file is waited for by which the primary network says that it is ready."""


class Observe:
    """The looks of multus at the outside."""

    def __init__(
        self,
        kube: Kube,
        config: Config,
        *,
        pod_patience: float = POD_PATIENCE,
        readiness_patience: float = READINESS_PATIENCE,
    ) -> None:
        self._kube = kube
        self._config = config
        self._pod_patience = pod_patience
        self._readiness_patience = readiness_patience
        self.catalogue = Catalogue(kube, config)

    async def readiness_file(self) -> None:
        """Wait for the file by which the primary network says that it is ready.

        :raises CniError: code 50, it does not come.
        """
        file = self._config.readiness_file
        until = time.monotonic() + self._readiness_patience
        while file is not None and not file.exists():
            if time.monotonic() > until:
                message = f"readiness indicator file {file} is not there: the primary network is not ready"
                raise CniError(cni.Code.PLUGIN_NOT_AVAILABLE, message)
            await asyncio.sleep(PAUSE)

    async def pod(self, asked: PodId) -> Pod:
        """The pod, live; one that the API does not know yet is waited for a moment.

        :raises CniError: it is gone, is another one, or the API does not answer.
        """
        started = time.monotonic()
        while True:
            try:
                pod = await self._kube.get(PODS, asked.namespace, asked.name)
            except (NotFound, Unavailable) as error:
                patience = self._pod_patience if isinstance(error, NotFound) else API_PATIENCE
                if time.monotonic() - started > patience:
                    code = cni.Code.UNKNOWN_CONTAINER if isinstance(error, NotFound) else cni.Code.TRY_AGAIN_LATER
                    raise CniError(code, f"cannot get pod {asked}: {error.message}") from error
                await asyncio.sleep(PAUSE)
            except KubeError as error:
                raise CniError(cni.Code.TRY_AGAIN_LATER, f"cannot get pod {asked}: {error.message}") from error
            else:
                check_pod(pod, asked)
                return pod

    async def wanted(self, call: Call, pod: Pod) -> list[Wanted]:
        """Everything that a new sandbox of this pod gets, in order: cluster network, defaults, annotation, auxiliary.

        :raises CniError: a network is not to be found or not allowed, or asks for what it cannot have.
        """
        devices = Devices(self._config.pod_resources_socket, pod_id(pod))
        found = await self._primaries(call, pod, devices)
        for look in self._others(call, pod, devices):
            found.append(await look())
        auxiliary = self.catalogue.auxiliary(call)
        if auxiliary is not None:
            found.append(_wanted(auxiliary, Owner.AUXILIARY, Attributes(runtime_base(call.document))))
        return [replace(one, ifname=one.ifname or f"net{index}") for index, one in enumerate(found)]

    async def traces(self, call: Call) -> list[Wanted]:
        """What a sandbox that no record knows may have got, as far as the pod still tells; no devices are asked for.

        :raises CniError: not even the cluster network can be told.
        """
        pod = await self._pod_if_there(call)
        if pod is None:
            primaries = await self.catalogue.primaries(call)
            found: list[Wanted | None] = [_wanted(one, Owner.CLUSTER, call.attributes) for one in primaries]
        else:
            found = [*await self._primaries(call, pod, None)]
            for look in self._others(call, pod, None):
                try:
                    found.append(await look())
                except CniError:
                    found.append(None)  # it keeps its number
        named = enumerate(found)
        return [replace(one, ifname=one.ifname or (f"net{i}" if i else call.ifname)) for i, one in named if one]

    async def allowed(self, call: Call) -> None:
        """Namespace isolation for what is plugged at run time, which upstream's controller does not look after.

        :raises CniError: code 7, the pod may not use the network that its annotation names for this link; or the pod
            cannot be had.
        """
        if not self._config.isolation or call.pod is None:
            return
        pod = await self.pod(call.pod)
        for element in elements_of(pod, NETWORKS):
            named = element.requested_interface
            if named == call.ifname or (named is None and is_ordinal(call.ifname)):
                self._namespace(pod, element)

    async def _pod_if_there(self, call: Call) -> Pod | None:
        if call.pod is None:
            return None
        try:
            pod = await self._kube.get(PODS, call.pod.namespace, call.pod.name)
            check_pod(pod, call.pod)
        except (KubeError, CniError):
            return None
        return pod

    async def cluster(self, call: Call) -> Network:
        """The cluster network, without a pod's override.

        :raises CniError: there is none.
        """
        return (await self.catalogue.primaries(call))[0].network

    async def _primaries(self, call: Call, pod: Pod, devices: Devices | None) -> list[Wanted]:
        given = Attributes(runtime_of(call.document))
        override = elements_of(pod, DEFAULT_NETWORK)
        if len(override) > 1:
            raise CniError(cni.Code.INVALID_CONFIG, f"annotation {DEFAULT_NETWORK} names not exactly one network")
        if override:
            namespace = override[0].namespace or self._config.multus_namespace
            wanted = await self._selected(override[0], namespace, Owner.CLUSTER, given.runtime, devices)
            return [replace(wanted, ifname=call.ifname)]
        primary, *others = await self.catalogue.primaries(call)
        master = replace(await self._with_device(primary, Owner.CLUSTER, given, devices), ifname=call.ifname)
        return [master, *(_wanted(one, Owner.DEFAULT, given) for one in others)]

    def _others(self, call: Call, pod: Pod, devices: Devices | None) -> list[Callable[[], Awaitable[Wanted]]]:
        """The looks for the default networks and those of the annotation, in order."""
        base = runtime_base(call.document)
        system = pod.metadata.namespace in self._config.system_namespaces
        defaults = [] if system else [partial(self._default, name, base) for name in self._config.default_networks]
        elements = elements_of(pod, NETWORKS)
        return [*defaults, *(partial(self._of_annotation, pod, element, base, devices) for element in elements)]

    async def _default(self, name: str, base: Mapping[str, Any]) -> Wanted:
        return _wanted(await self.catalogue.named(name), Owner.DEFAULT, Attributes(base))

    async def _of_annotation(
        self, pod: Pod, element: NetworkSelectionElement, base: Mapping[str, Any], devices: Devices | None
    ) -> Wanted:
        return await self._selected(element, self._namespace(pod, element), Owner.NETWORKS, base, devices)

    def _namespace(self, pod: Pod, element: NetworkSelectionElement) -> str:
        """Where a network of the annotation is, if the pod may use it."""
        own = pod.metadata.namespace
        namespace = element.namespace or own
        if self._config.isolation and namespace not in {own, *self._config.global_namespaces}:
            message = f"namespace isolation: pod {pod_id(pod)} may not use networks of namespace {namespace}"
            raise CniError(cni.Code.INVALID_CONFIG, message)
        return namespace

    async def _selected(
        self,
        element: NetworkSelectionElement,
        namespace: str,
        owner: Owner,
        base: Mapping[str, Any],
        devices: Devices | None,
    ) -> Wanted:
        found = await self.catalogue.nad(namespace, element.name)
        asked = attributes_of(element)
        attributes = replace(asked, runtime={**base, **asked.runtime})
        wanted = await self._with_device(found, owner, attributes, devices)
        gateways = None if element.default_route is None else tuple(element.default_route)
        return replace(wanted, ifname=element.requested_interface or "", gateways=gateways)

    async def _with_device(self, found: Found, owner: Owner, attributes: Attributes, devices: Devices | None) -> Wanted:
        wanted = _wanted(found, owner, attributes)
        if found.resource is None or devices is None:
            return wanted
        device = await devices.take(found.resource)
        if device is None:
            device = attributes.runtime.get("deviceID")
            if device is None:
                message = f"network {found.display} needs a device of {found.resource}: the pod was given no more of it"
                raise CniError(cni.Code.INVALID_CONFIG, message)
        attributes = replace(attributes, runtime={**attributes.runtime, "deviceID": device})
        return replace(
            wanted,
            network=conflist.with_device(found.network, device),
            attributes=attributes,
            identity=found.network,
            device=(found.resource, device),
        )


def elements_of(pod: Pod, annotation: str) -> list[NetworkSelectionElement]:
    """The networks that an annotation asks for.

    :raises CniError: it is malformed.
    """
    try:
        return parse_networks(pod.metadata.annotations.get(annotation))
    except ValueError as error:
        raise CniError(cni.Code.INVALID_CONFIG, f"annotation {annotation}: {error}") from error


def pod_id(pod: Pod) -> PodId:
    """A pod's identity as the API server has it."""
    return PodId(pod.metadata.namespace, pod.metadata.name, pod.metadata.uid)


def _wanted(found: Found, owner: Owner, attributes: Attributes) -> Wanted:
    return Wanted("", found.network, found.display, owner, attributes)
