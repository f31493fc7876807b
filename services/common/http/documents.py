"""A document that a server builds once and serves as it is, with an ETag: an unchanged one is not sent again.

What the document says is its builder's. Next: :mod:`services.common.http.listen`, the sockets of a server.
"""

import hashlib

import msgspec
from aiohttp import web

JSON = "application/json"
_KEEP = "public, max-age=31536000, immutable"


class ServedDocument(msgspec.Struct, frozen=True):
    """The bytes of a document, and how they are served.

    :ivar hash: of the body; the same in every process that serves the same document.
    :ivar content_type: value of the header, with its parameters.
    """

    body: bytes
    hash: str
    content_type: str = JSON

    @classmethod
    def of(cls, body: bytes, content_type: str = JSON) -> "ServedDocument":
        """Return the document of a body."""
        return cls(body, hashlib.sha256(body).hexdigest()[:32].upper(), content_type)

    def respond(self, request: web.Request) -> web.Response:
        """Return the response to a GET: 304 if the client has the document.

        A client whose address has ``?hash=`` of this document may keep it for as long as it likes.
        """
        headers: dict[str, str] = {"ETag": f'"{self.hash}"', "Vary": "Accept"}
        if request.query.get("hash") == self.hash:
            headers["Cache-Control"] = _KEEP
        if any(known.value in (self.hash, "*") for known in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return web.Response(body=self.body, headers=headers | {"Content-Type": self.content_type})
