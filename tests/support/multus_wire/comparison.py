"""Compares a response of hotnic's daemon with upstream's recorded one, field by field. Pure.

MACs that the kernel draws count by the order of their appearance. The other side of a pod's link counts only as being
there: a bridge has the MAC of one of its ports, and which one depends on the order of events.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from tests.support.multus_wire.recording import HttpMessage, Json

Fields = dict[str, Any]
"""The values of one response, network-status or list of Events, by the name of the field."""

ABSENT: Final = "(absent)"

REQUESTED: Final = "02:00:00:00:00:"
"""The start of every MAC that a recorded request asks for. All others were drawn."""

_CONTEXT: Final = re.compile(
    "|".join(
        (
            r'ContainerID:"[^"]*" Netns:"[^"]*" IfName:"[^"]*" Args:"[^"]*" Path:"[^"]*" ERRORED: ',
            r"error configuring pod \[[^]]*\] networking: ",
            r'\[[^]]*\]: error adding container to network "[^"]*": ',
            r"Multus: \[[^]]*\]: ",
            r"could not extract the (?:CNI command|kubernetes runtime) args: ",
            r"error loading k8s delegates k8s args: ",
            r"TryLoadPodDelegates: error in getting k8s network for pod: ",
            r"GetNetworkDelegates: failed getting the delegate: ",
            r"getKubernetesDelegate: ",
            r'DelegateAdd: (?:cannot set "[^"]*" interface name to "[^"]*": )?',
            r'Delegate(?:Del|Check): error invoking \w+ - "[^"]*": ',
            r"conflistDel: error in getting result from DelNetworkList: ",
            r"error in getting result from (?:Del|Check)Network: ",
        )
    )
)
_API_SERVERS_WORDS: Final = re.compile(r"(in namespace \([^)]*\)): .*")


def cause(text: str) -> str:
    """Return what an error text of upstream says after the names of its functions, containers and pods."""
    return _API_SERVERS_WORDS.sub(r"\1", _CONTEXT.sub("", text).strip())


class DrawnNames:
    """Replaces MACs that the kernel has drawn by their order of appearance; one for each side of a comparison."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def mac(self, value: str) -> str:
        """Return the number of a MAC, or the MAC itself if it was requested."""
        if value.startswith(REQUESTED):
            return value
        return self._seen.setdefault(value, f"MAC {len(self._seen) + 1}")

    def result(self, document: Json) -> Fields:
        """Return the fields of a CNI result."""
        interfaces = [self._interface(one) for one in document.get("interfaces", ())]
        return dict(_leaves({**document, "interfaces": interfaces}))

    def network_status(self, entries: Sequence[Json]) -> Fields:
        """Return the fields of network-status, whose entries have no order."""
        by_name = {f"{one['name']} {one['interface']}": {**one, "mac": self.mac(one["mac"])} for one in entries}
        return dict(_leaves(by_name))

    def _interface(self, one: Json) -> Json:
        if "sandbox" in one:
            return {**one, "mac": self.mac(one["mac"])} if "mac" in one else one
        drawn = {"name": re.sub(r"^veth\w{8}$", "(veth)", one["name"]), "mac": "(drawn)"}
        return {key: drawn.get(key, value) for key, value in one.items()}


def response_fields(response: HttpMessage | None, names: DrawnNames) -> Fields:
    """Return what counts in a response.

    An error has the fields ``text`` and, if it is a CNI error document, ``code``; any other body is a result.
    """
    if response is None:
        return {"status": "connection closed"}
    kind = response.headers.get("content-type")
    fields: Fields = {"status": response.status, "connection": response.headers.get("connection")}
    if response.status != 200 and kind == "application/json":
        return fields | {"code": response.document["code"], "text": response.document["msg"]}
    fields["content-type"] = kind
    if response.status != 200:
        return fields | {"text": response.body.decode()}
    return fields | (names.result(response.document["Result"]) if response.body else {})


def differences(upstream: Mapping[str, Any], hotnic: Mapping[str, Any]) -> Fields:
    """Return hotnic's value of each field that differs.

    Texts are equal if hotnic's contains the cause that upstream's names. A call that succeeds on one side only has no
    further fields to compare.
    """
    if upstream.get("status") != hotnic.get("status"):
        return {key: hotnic[key] for key in ("status", "code", "text") if key in hotnic}
    found = {
        key: hotnic.get(key, ABSENT)
        for key in sorted(upstream.keys() | hotnic.keys())
        if key != "text" and upstream.get(key, ABSENT) != hotnic.get(key, ABSENT)
    }
    if "code" in hotnic and "code" not in upstream:
        # The content type is that of the form.
        found.pop("content-type", None)
    if "text" in upstream and cause(upstream["text"]) not in cause(hotnic.get("text", "")):
        found["text"] = hotnic.get("text", ABSENT)
    return found


def event_differences(upstream: Sequence[str], hotnic: Sequence[str]) -> Fields:
    """Return the Events that only one side has recorded: ``False`` for upstream's, ``True`` for hotnic's."""
    return {text: text in hotnic for text in sorted({*upstream} ^ {*hotnic})}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if value in ({}, []):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, value
