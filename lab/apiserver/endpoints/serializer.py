"""Encode and decode JSON and YAML bodies.

YAML is decoded as in Kubernetes, as an alternative syntax of JSON: no dates, no binary values, only string keys.
"""

from __future__ import annotations

from typing import Any

import msgspec
import yaml

from lab.apiserver.errors import bad_request

BODY_LIMIT = 3 * 1024 * 1024
"""Most bytes of a request body, as in kube-apiserver."""

_decoder = msgspec.json.Decoder()
encode_json = msgspec.json.Encoder().encode


class _JsonLoader(yaml.CSafeLoader):
    """A YAML loader that produces only the types of JSON."""


_JsonLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


def decode_json(body: bytes) -> Any:
    """Decode JSON.

    :raises ApiError: 400.
    """
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise bad_request(f"couldn't get version/kind; json parse error: {error}") from None


def decode_yaml(body: bytes) -> Any:
    """Decode a single document of JSON or YAML.

    :raises ApiError: 400.
    """
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
    """Encode a value as YAML."""
    text: str = yaml.dump(value, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)
    return text.encode()
