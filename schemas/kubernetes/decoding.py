"""Decode VMs and VMIs, into which their users may write anything: bounded, and never in place of nothing.

A small object is decoded at once. Any other is decoded field by field: what hotnic does not read is not looked at, and
a field that is malformed or over a limit is left out. The object is rejected then: its spec is a :class:`RejectedSpec`,
which no plan can read, so that nothing is done for it. Without it, a cache would keep an earlier version of the object
or count it as deleted. Next: :mod:`services.common.kube.cache.reflector`, the largest cache of such objects.
"""

from functools import cache
from typing import Any, Generic, NoReturn, TypeVar, cast

import msgspec

from schemas.inputs import Edge, InputDecoder, RejectedInput, RejectReason, count_values, find_member, reject, rejecting
from schemas.kubernetes.limits import MAX_PART_BYTES, MAX_PART_VALUES, MAX_STATUS_VALUES
from schemas.kubernetes.objects import ObjectMeta, VirtualMachine, VirtualMachineInstance, VmiSpec, VmTemplate

T = TypeVar("T")

_EMPTY = msgspec.Raw(b"")
_MAX_VALUES = {"status.interfaces": MAX_STATUS_VALUES}
"""Limits of fields with another one than :data:`MAX_PART_VALUES`."""


class RejectedSpec(VmiSpec, frozen=True):
    """The spec of an object that is rejected: reading its interfaces or networks raises the reason.

    :ivar reason: which field is wrong, and why.
    """

    reason: str = ""

    def interface_items(self) -> NoReturn:
        """Raise the reason.

        :raises ValueError: always.
        """
        raise ValueError(self.reason)

    def network_items(self) -> NoReturn:
        """Raise the reason.

        :raises ValueError: always.
        """
        raise ValueError(self.reason)


class ObjectDecoder(Generic[T]):
    """A decoder of VMs or VMIs, in place of an :class:`schemas.inputs.InputDecoder`.

    :param kind: :class:`VirtualMachine` or :class:`VirtualMachineInstance`.
    """

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._whole = InputDecoder(Edge.KUBE, kind, max_bytes=MAX_PART_BYTES)

    def decode(self, data: bytes | str | msgspec.Raw) -> T:
        """Decode an object. One with a field that is malformed or too large has a :class:`RejectedSpec`.

        :raises RejectedInput: it has no metadata, or is no JSON.
        """
        raw = data.encode() if isinstance(data, str) else bytes(data)
        # Those in strings are counted, too, which is enough to find the objects that are small.
        if len(raw) <= MAX_PART_BYTES and sum(map(raw.count, (b"{", b"[", b","))) <= MAX_PART_VALUES:
            try:
                return self._whole.decode_shallow(raw)
            except (RejectedInput, RecursionError):
                return self._decode_parts(raw)
        return self._decode_parts(raw)

    def _decode_parts(self, raw: bytes) -> T:
        problems: list[str] = []
        try:
            value: T = _decode_parts(msgspec.Raw(raw), self._kind, "", problems)
        except RecursionError:
            return reject_object(self._kind, raw, "nested too deeply", "metadata")
        return _with_rejected_spec(value, problems[0]) if problems else value


def make_decoder(kind: type[T]) -> InputDecoder[T] | ObjectDecoder[T]:
    """Return the decoder of a kind of object."""
    return ObjectDecoder(kind) if kind in (VirtualMachine, VirtualMachineInstance) else InputDecoder(Edge.KUBE, kind)


def reject_object(kind: type[T], data: bytes, why: str, *path: str) -> T:
    """Return a rejected object of which only the metadata is read, without recursion.

    :param why: why nothing else can be read.
    :param path: where in the document the metadata are.
    :raises RejectedInput: it has no metadata, or an object of this kind cannot be rejected.
    """
    error = reject(Edge.KUBE, RejectReason.TOO_DEEP, why)
    if kind not in (VirtualMachine, VirtualMachineInstance):
        raise error
    with rejecting(Edge.KUBE):
        found = _decode_parts(msgspec.Raw(find_member(data, *path) or b"null"), ObjectMeta, "metadata.", [])
    return _with_rejected_spec(cast("T", cast("Any", kind)(metadata=found)), str(error))


def rejection_of(found: object) -> str:
    """Return why an object is rejected; empty if it is not."""
    spec = None
    if isinstance(found, VirtualMachine):
        spec = found.spec.template.spec
    elif isinstance(found, VirtualMachineInstance):
        spec = found.spec
    return spec.reason if isinstance(spec, RejectedSpec) else ""


def _with_rejected_spec(found: T, reason: str) -> T:
    """Return an object without its interfaces and networks, which may be those of another field's problem."""
    value: Any = found
    spec: Any = RejectedSpec(reason=reason)
    if isinstance(found, VirtualMachine):
        spec = msgspec.structs.replace(found.spec, template=VmTemplate(spec))
    return cast("T", msgspec.structs.replace(value, spec=spec))


def _decode_parts(raw: msgspec.Raw, kind: Any, path: str, problems: list[str]) -> Any:
    """Decode a struct field by field.

    :param path: what precedes the names of its fields, such as ``spec.``.
    :param problems: gets what is wrong with the fields that are left out.
    :raises RecursionError: it is nested too deeply even to pass over its fields.
    :raises RejectedInput: it is no object.
    """
    fields = {}
    found = _shallow_decoder(kind).decode_shallow(raw)
    for field in msgspec.structs.fields(kind):
        part: msgspec.Raw = getattr(found, field.name)
        where = f"{path}{field.encode_name}"
        if not bytes(part):
            continue
        try:
            if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
                fields[field.name] = _decode_parts(part, field.type, f"{where}.", problems)
            else:
                fields[field.name] = _decode_part(part, field.type, where)
        except RejectedInput as error:
            problems.append(f"{where}: {error}")
    return kind(**fields)


def _decode_part(raw: msgspec.Raw, kind: Any, where: str) -> Any:
    """Decode a field.

    :raises RejectedInput: it is malformed or too large.
    """
    data, limit = bytes(raw), _MAX_VALUES.get(where, MAX_PART_VALUES)
    # Without those of a short field, whose values are as few.
    if len(data) > limit and (count := count_values(data)) > limit:
        raise reject(Edge.KUBE, RejectReason.TOO_MANY, f"{count} values; the limit is {limit}")
    return _part_decoder(kind).decode(data)


@cache
def _part_decoder(kind: Any) -> InputDecoder[Any]:
    return InputDecoder(Edge.KUBE, kind, max_bytes=MAX_PART_BYTES)


@cache
def _shallow_decoder(kind: Any) -> InputDecoder[Any]:
    """Return a decoder that finds the fields of a struct and decodes none of them."""
    fields = [
        (field.name, msgspec.Raw, msgspec.field(default=_EMPTY, name=field.encode_name))
        for field in msgspec.structs.fields(kind)
    ]
    return InputDecoder(Edge.KUBE, msgspec.defstruct(f"Shallow{kind.__name__}", fields, frozen=True))
