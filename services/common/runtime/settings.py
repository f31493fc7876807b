"""Settings of a role: one frozen struct, read once at start from environment variables.

Field ``listen`` is read from ``HOTNIC_LISTEN``. A field whose metadata has ``extra={"env": NAME}`` uses a common name
such as ``KUBECONFIG`` or ``NATS_URL``. There is no configuration file and no reload: a change needs a restart.
Next: :mod:`services.common.runtime.process`, which loads, prints and passes on the settings.
"""

import os
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, Union

import msgspec

from schemas.bus.encoding import NO_NODE
from services.common.telemetry.redact import REDACTED, redact_addresses, redact_text
from services.common.telemetry.trace_files import MAX_FILES, MIN_FILES

S = TypeVar("S", bound=msgspec.Struct)

PREFIX = "HOTNIC_"


class SettingsError(Exception):
    """A variable with an invalid value, or a required one that is missing.

    :ivar variable: name of the variable.
    :ivar message: what is wrong with it.
    """

    def __init__(self, variable: str, message: str) -> None:
        super().__init__(f"{variable}: {message}")
        self.variable = variable
        self.message = message


class CommonSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of every role."""

    node_name: Annotated[
        str,
        msgspec.Meta(description="Kubernetes node of this process; _ for none", min_length=1, max_length=253),
    ] = NO_NODE
    kubeconfig: Annotated[
        str | None,
        msgspec.Meta(
            description="kubeconfig file(s); unset: ~/.kube/config, else the pod's service account",
            extra={"env": "KUBECONFIG"},
        ),
    ] = None
    nats_url: Annotated[
        str | None,
        msgspec.Meta(
            description="NATS server(s), comma separated; unset: no bus",
            extra={"env": "NATS_URL", "url": True},
        ),
    ] = None
    trace_dir: Annotated[str | None, msgspec.Meta(description="directory for OTLP-JSON trace files; unset: none")] = (
        None
    )
    trace_files: Annotated[
        int, msgspec.Meta(description="trace files of a role on a node that are kept, of 4 MiB each", ge=MIN_FILES)
    ] = MAX_FILES
    health_listen: Annotated[
        tuple[str, ...],
        msgspec.Meta(
            description="comma-separated addresses, HOST:PORT or unix:/PATH, of /healthz, /readyz and /metrics; unset: "
            "not served"
        ),
    ] = ()
    log_format: Annotated[
        Literal["auto", "json", "console"],
        msgspec.Meta(description="json, console, or auto (console on a terminal, json elsewhere)"),
    ] = "auto"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], msgspec.Meta(description="lowest level that is logged")
    ] = "info"


class Variable(msgspec.Struct, frozen=True):
    """The environment variable of a settings field.

    :ivar name: name of the variable.
    :ivar field: name of the field.
    :ivar type: the field's type without its metadata.
    :ivar full_type: the type with its metadata.
    :ivar default: ``msgspec.NODEFAULT`` if the variable is required.
    :ivar secret: whether the value must not be printed.
    :ivar url: whether the value is a URL that may contain a password, or several.
    """

    name: str
    field: str
    type: Any
    full_type: Any
    default: Any
    description: str
    secret: bool
    url: bool

    @property
    def required(self) -> bool:
        """Whether the variable has no default."""
        return self.default is msgspec.NODEFAULT


def variables(cls: type[msgspec.Struct]) -> list[Variable]:
    """Return the variables of a settings struct, in the order of its fields."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found = []
    for field in msgspec.structs.fields(cls):
        full = hints[field.name]
        metas = [arg for arg in full.__metadata__ if isinstance(arg, msgspec.Meta)] if _is_annotated(full) else []
        extra: dict[str, Any] = {}
        for meta in metas:
            extra |= meta.extra or {}
        default = field.default
        if default is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        found.append(
            Variable(
                name=extra.get("env", PREFIX + field.name.upper()),
                field=field.name,
                type=full.__origin__ if _is_annotated(full) else full,
                full_type=full,
                default=default,
                description=next((meta.description for meta in metas if meta.description), ""),
                secret=bool(extra.get("secret")),
                url=bool(extra.get("url")),
            )
        )
    return found


def load(cls: type[S], environ: Mapping[str, str] = os.environ) -> S:
    """Read a settings struct from the environment. An empty variable counts as unset.

    :raises SettingsError: a variable is missing or has an invalid value; the first one is named.
    """
    values: dict[str, Any] = {}
    for variable in variables(cls):
        text = environ.get(variable.name, "").strip()
        if text:
            values[variable.field] = _convert(variable, text)
        elif variable.required:
            raise SettingsError(variable.name, f"must be set ({variable.description})")
    return cls(**values)


def redacted(settings: msgspec.Struct) -> dict[str, Any]:
    """Return the settings by variable name for printing, without secrets."""
    shown: dict[str, Any] = {}
    for variable in variables(type(settings)):
        value = getattr(settings, variable.field)
        if isinstance(value, str):
            value = _redact(variable, value)
        elif variable.secret and value:
            value = REDACTED
        elif isinstance(value, list | tuple):
            value = [_redact(variable, item) if isinstance(item, str) else item for item in value]
        shown[variable.name] = value
    return shown


def _redact(variable: Variable, text: str) -> str:
    if variable.secret and text:
        return REDACTED
    return redact_addresses(text) if variable.url else redact_text(text)


def _convert(variable: Variable, text: str) -> Any:
    value: Any = [part.strip() for part in text.split(",") if part.strip()] if _is_list(variable.type) else text
    try:
        return msgspec.convert(value, variable.full_type, strict=False)
    except msgspec.ValidationError as error:
        # The error may quote the value.
        problem = (
            "the value is invalid" if variable.secret else redact_text(f"{error}, got {_redact(variable, text)!r}")
        )
        raise SettingsError(variable.name, problem) from None


def _is_annotated(hint: Any) -> bool:
    return typing.get_origin(hint) is Annotated


def _is_list(hint: Any) -> bool:
    if typing.get_origin(hint) in (Union, types.UnionType):
        return any(_is_list(arg) for arg in typing.get_args(hint))
    return typing.get_origin(hint) in (list, tuple, set, frozenset)
