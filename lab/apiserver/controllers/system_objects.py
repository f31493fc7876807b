"""Create the objects of a new server: system namespaces, and the trust in the front proxy.

The ConfigMap `kube-system/extension-apiserver-authentication` contains the certificate by which aggregated servers
verify the proxy, and the names of the headers that carry the user (upstream:
pkg/controlplane/controller/clusterauthenticationtrust).
"""

from __future__ import annotations

import json
from pathlib import Path

from lab.apiserver.controllers.gc import call_for
from lab.apiserver.errors import Object
from lab.apiserver.identity import pki
from lab.apiserver.registry.resources import Registry
from lab.apiserver.rest.verbs import Rest
from lab.apiserver.storage.store import Store

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")


def create_system_objects(store: Store, registry: Registry, rest: Rest, directory: Path) -> None:
    """Create missing objects and update the ConfigMap."""
    namespaces = registry.storage("/namespaces")
    configmaps = registry.storage("/configmaps")
    assert namespaces is not None
    assert configmaps is not None
    for name in NAMESPACES:
        if store.get("/namespaces", "", name) is None:
            rest.create(call_for(namespaces), {"metadata": {"name": name}})
    name = "extension-apiserver-authentication"
    desired = _authentication_config(directory)
    stored = store.get("/configmaps", "kube-system", name)
    if stored is None:
        rest.create(call_for(configmaps, "kube-system"), {"metadata": {"name": name}, "data": desired})
    elif stored.obj.get("data") != desired:
        rest.replace(call_for(configmaps, "kube-system", name), {"metadata": {"name": name}, "data": desired})


def _authentication_config(directory: Path) -> Object:
    return {
        "client-ca-file": pki.ca_file(directory).read_text(),
        "requestheader-client-ca-file": pki.ca_file(directory, "front-proxy-ca").read_text(),
        "requestheader-allowed-names": json.dumps(["front-proxy-client"]),
        "requestheader-username-headers": json.dumps(["X-Remote-User"]),
        "requestheader-uid-headers": json.dumps(["X-Remote-Uid"]),
        "requestheader-group-headers": json.dumps(["X-Remote-Group"]),
        "requestheader-extra-headers-prefix": json.dumps(["X-Remote-Extra-"]),
    }
