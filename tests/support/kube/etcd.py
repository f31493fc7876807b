"""Requests to etcd that only its administrator sends, through its JSON gateway on the clients' port."""

import json
import urllib.request
from typing import Any

DEADLINE = 60.0
"""Seconds for one request; each takes milliseconds."""


def compact(port: int) -> int:
    """Have etcd forget all revisions before the latest one, which is returned.

    Whoever asks for changes since an older one, such as a watch, is told that it is compacted.
    """
    revision = int(_post(port, "kv/range", {"key": "AA=="})["header"]["revision"])
    _post(port, "kv/compaction", {"revision": revision, "physical": True})
    return revision


def _post(port: int, method: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v3/{method}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=DEADLINE) as response:
        answer: dict[str, Any] = json.load(response)
    return answer
