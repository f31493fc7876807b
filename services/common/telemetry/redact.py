"""Replace secrets in text that a person reads: users, passwords, tokens and queries of addresses, and the secrets of a
network's configuration.

Pure. Output, logs and errors that show an address of NATS, a collector or the API server use it, and so does whoever
passes on what a CNI plugin says. A value that is secret as a whole, such as a header, is not shown at all.
Next: :mod:`services.common.telemetry.logs`.
"""

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

REDACTED = "***"

_SCHEMES = (
    r"(?:nats|tls|wss?|https?|grpc|postgres(?:ql)?|mysql|rediss?|etcd|amqps?|mongodb(?:\+srv)?|ldaps?|s?ftp|ssh)://"
)
_SCHEME = re.compile(_SCHEMES, re.IGNORECASE)
_NEXT_ADDRESS = re.compile(rf",\s*(?={_SCHEMES})", re.IGNORECASE)
_QUERY = re.compile(r"\?.+", re.DOTALL)
_IN_TEXT = re.compile(rf"{_SCHEMES}\S+", re.IGNORECASE)
_PUNCTUATION = "'\")]}>,.;:"
"""What may follow an address in a text."""
_PATH_QUERY = re.compile(r"(?<=[\s'\"(=])(/[^\s?'\"(=]*\?)[^\s'\")]+")
"""The query of a path without a server, as requests quotes it."""


def redact_addresses(text: str) -> str:
    """Return one address, or several that commas separate, without users and queries.

    A password may hold any character, so everything before the last ``@`` of an address is taken for the user. An
    address without a scheme is taken for a part of the one before it: rather too little is shown than a password.
    """
    return ",".join(_redact_address(part) for part in _NEXT_ADDRESS.split(text))


def redact_text(text: str) -> str:
    """Return text, such as a message of a library, without the users and queries of addresses in it."""
    if "://" in text:
        text = _IN_TEXT.sub(_redact_word, text)
    return _PATH_QUERY.sub(rf"\1{REDACTED}", text) if "?" in text else text


_SECRET_KEY = re.compile(
    r"passw|passphrase|pwd|secret|token|credential|private|psk|bearer|cookie|"
    r"(?:api|auth|access|shared|signing|encryption)[_-]?key|key[_-]?data|(?:^|[_-])(?:pass|auth|dsn)(?:$|[_-])",
    re.IGNORECASE,
)
"""A key whose value is a secret, as plugins name them: ``etcdPassword``, ``client_secret``, ``dbPass``."""
_SECRET_WORD = re.compile(r"[a-z](?:Pass|Auth)(?:$|[A-Z])")
MAX_SECRETS = 200
"""Secrets of a configuration that are searched for, because each search takes time."""
MIN_SECRET = 4
"""Characters of a secret that is replaced in texts: a shorter one would be found in most of them."""
MAX_QUOTED = 65536
"""Characters of what a program says that are searched: each secret is searched for in all of them."""


def redact_configuration(text: str, configuration: bytes) -> str:
    """Return what a program says, without the secrets of the configuration that it was given and may quote.

    A secret is a text whose key says so, or that of a list or object around it. It is found however it is quoted, but
    not in another encoding such as Base64.

    :param text: what the program says; only the first MAX_QUOTED characters are returned.
    :param configuration: JSON; anything else has no secrets. Of one with more than MAX_SECRETS, or with a depth that
        only an attack has, nothing is shown.
    """
    if not text:
        return ""
    text = text[:MAX_QUOTED]
    try:
        secrets = set(islice(_secrets(json.loads(configuration), secret=False), MAX_SECRETS + 1))
    except ValueError:
        return redact_text(text)
    except RecursionError:
        return REDACTED
    if len(secrets) > MAX_SECRETS:
        return REDACTED
    # The longest first: a secret may be a part of another one.
    for secret in sorted(secrets, key=len, reverse=True):
        for quoted in (json.dumps(secret), json.dumps(secret, ensure_ascii=False), repr(secret), f"'{secret}'"):
            text = text.replace(quoted[1:-1], REDACTED)
    return redact_text(text)


def _secrets(value: Any, *, secret: bool) -> Iterator[str]:
    if isinstance(value, str):
        if secret and len(value) >= MIN_SECRET:
            yield value
    elif isinstance(value, list):
        for item in value:
            yield from _secrets(item, secret=secret)
    elif isinstance(value, dict):
        for key, item in value.items():
            named = _SECRET_KEY.search(key) is not None or _SECRET_WORD.search(key) is not None
            yield from _secrets(item, secret=secret or named)


def _redact_word(found: re.Match[str]) -> str:
    address = found[0].rstrip(_PUNCTUATION)
    return redact_addresses(address) + found[0][len(address) :]


def _redact_address(text: str) -> str:
    before, at, after = text.rpartition("@")
    if not at:
        return _QUERY.sub(f"?{REDACTED}", text)
    scheme = _SCHEME.match(text)
    # Behind a question mark or a number sign, nothing tells whether the sign ends a user or is a part of a query.
    after = "" if "?" in before or "#" in before else _QUERY.sub(f"?{REDACTED}", after)
    return f"{scheme[0] if scheme else ''}{REDACTED}{at if after else ''}{after}"
