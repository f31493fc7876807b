"""Authenticate requests by client certificate or static bearer token; every authenticated user is authorized.

As in upstream's X509 authenticator, a certificate's common name is the user and its organizations are the groups.
`reviews.py` answers access reviews.
"""

from __future__ import annotations

import csv
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multidict import CIMultiDictProxy

from lab.apiserver.errors import unauthorized

ANONYMOUS_PATHS = frozenset({"/version", "/version/", "/healthz", "/readyz", "/livez"})
AUTHENTICATED = "system:authenticated"


@dataclass(frozen=True, slots=True)
class User:
    """An authenticated user."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_tokens(path: Path | None) -> dict[str, User]:
    """Return the users by static token; a line is `token,user,uid,"group1,group2"` (upstream's `--token-auth-file`)."""
    if path is None:
        return {}
    with path.open(newline="") as lines:
        rows = [row for row in csv.reader(lines) if row]
    return {
        row[0]: User(row[1], tuple(group for group in row[3].split(",") if group) if len(row) > 3 else (), row[2])
        for row in rows
    }


class Authenticator:
    """Determines the user of a request."""

    def __init__(self, tokens: Mapping[str, User]) -> None:
        self._tokens = tokens

    def user_of(self, peercert: Mapping[str, Any] | None, headers: CIMultiDictProxy[str]) -> User:
        """Return the user by certificate, else by token, with impersonation applied.

        :raises ApiError: 401 when there is neither.
        """
        user = _from_certificate(peercert) if peercert else None
        if user is None:
            user = self._from_token(headers.get("Authorization", ""))
        if user is None:
            raise unauthorized()
        name = headers.get("Impersonate-User")
        if name is not None:
            user = User(name, tuple(headers.getall("Impersonate-Group", ())), headers.get("Impersonate-Uid", ""))
        if AUTHENTICATED not in user.groups:
            user = User(user.name, (*user.groups, AUTHENTICATED), user.uid, user.extra)
        return user

    def _from_token(self, authorization: str) -> User | None:
        scheme, _, token = authorization.partition(" ")
        return self.by_token(token.strip()) if scheme.lower() == "bearer" else None

    def by_token(self, token: str) -> User | None:
        """Return the user of a static token, or None."""
        for known, user in self._tokens.items():
            # A comparison in constant time does not reveal how much of a guessed token is right.
            if hmac.compare_digest(known.encode(), token.encode()):
                return user
        return None


def _from_certificate(peercert: Mapping[str, Any]) -> User | None:
    name, groups = "", []
    for entry in peercert.get("subject", ()):
        for kind, value in entry:
            if kind == "commonName":
                name = value
            elif kind == "organizationName":
                groups.append(value)
    return User(name, tuple(groups)) if name else None
