"""Replace secrets in text that a person reads: users, passwords, tokens and queries of addresses.

Pure. Output, logs and errors that show an address of NATS, a collector or the API server use it. A value that is secret
as a whole, such as a header, is not shown at all. Next: :mod:`services.common.telemetry.logs`.
"""

import re

REDACTED = "***"

_SCHEMES = r"(?:nats|tls|wss?|https?|grpc)://"
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
