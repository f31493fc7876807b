"""What a KubeVirt of a version can do, for tests of what hotnic does beside it."""

import msgspec

from schemas.kubernetes.kubevirt import KubeVirt
from services.common.domain.kubevirt.capabilities import HOTPLUG_GATE, Capabilities, read_capabilities


def capabilities(version: str = "v1.9.0", *methods: str, **changes: object) -> Capabilities:
    """Return what this version can do with its gate enabled.

    :param methods: ``workloadUpdateMethods``.
    :param changes: fields of the result to change.
    """
    document = {
        "spec": {
            "configuration": {"developerConfiguration": {"featureGates": [HOTPLUG_GATE]}},
            "workloadUpdateStrategy": {"workloadUpdateMethods": list(methods)},
        },
        "status": {"observedKubeVirtVersion": version},
    }
    found = read_capabilities([msgspec.convert(document, KubeVirt)])
    assert found is not None
    return msgspec.structs.replace(found, **changes)
