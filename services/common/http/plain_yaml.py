"""Decode short YAML that is no larger than it looks: no anchors, aliases, merge keys or tags, and few small values.

An alias repeats a value, so that 500 bytes may stand for gigabytes. JSON has nothing of the kind.
Next: :mod:`services.api.request`, whose bodies may be YAML.
"""

from typing import Any

import yaml

from schemas.inputs import is_text

MAX_CHARACTERS = 4096
"""The parser takes a microsecond for each, in which the process serves nobody else. JSON of 64 KiB takes less."""
MAX_NODES = 200
"""Keys and values of a document. The options of a request are two."""
MAX_DEPTH = 16
MAX_SCALAR = 1024
"""Characters. A long number takes long to parse."""


class PlainYamlError(ValueError):
    """The document is not YAML, or uses more of it than is accepted."""


def decode_yaml(text: str) -> Any:
    """Return the value of a document.

    :raises PlainYamlError: it is refused.
    """
    if len(text) > MAX_CHARACTERS:
        raise PlainYamlError(f"more than {MAX_CHARACTERS} characters, and not JSON")
    loader = _PlainLoader(text)
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise PlainYamlError(" ".join(str(error).split())) from error
    finally:
        loader.dispose()


class _PlainLoader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: yaml.Event | None = self.peek_event()  # type: ignore[no-untyped-call]
        self._nodes += 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise PlainYamlError("anchors and aliases are not accepted")
        if getattr(event, "tag", None) is not None:
            raise PlainYamlError("tags are not accepted")
        if isinstance(event, yaml.ScalarEvent):
            if len(event.value) > MAX_SCALAR:
                raise PlainYamlError(f"a value has more than {MAX_SCALAR} characters")
            if not is_text(event.value):
                raise PlainYamlError("a value has half of a surrogate pair")
            if event.value == "<<":
                raise PlainYamlError("merge keys are not accepted")
        if self._nodes > MAX_NODES or self._depth >= MAX_DEPTH:
            raise PlainYamlError(f"more than {MAX_NODES} values or {MAX_DEPTH} levels")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1
