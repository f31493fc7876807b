"""Bytes to objects and back: JSON and YAML bodies.

YAML is read as Kubernetes reads it, as JSON in another spelling: no dates, no binary, string keys only.
"""

from __future__ import annotations

from typing import Any

import msgspec
import yaml

from services.lab.apiserver.errors import bad_request

BODY_LIMIT = 3 * 1024 * 1024
"""Bytes of one request body, the limit of kube-apiserver."""

_decoder = msgspec.json.Decoder()
encode_json = msgspec.json.Encoder().encode


class _JsonLoader(yaml.CSafeLoader):
    """YAML with the types of JSON alone."""


_JsonLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


def decode_json(body: bytes) -> Any:
    """Raises `ApiError` 400 when the bytes are no JSON."""
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise bad_request(f"couldn't get version/kind; json parse error: {error}") from None


def decode_yaml(body: bytes) -> Any:
    """Raises `ApiError` 400 when the bytes are neither JSON nor YAML, or more than one document."""
    try:
        return _decoder.decode(body)
    except msgspec.DecodeError:
        pass
    except RecursionError:
        raise bad_request("exceeded max depth") from None
    try:
        return yaml.load(body, Loader=_JsonLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise bad_request(f"error decoding YAML: {error}") from None


def encode_yaml(value: Any) -> bytes:
    text: str = yaml.dump(value, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)
    return text.encode()
