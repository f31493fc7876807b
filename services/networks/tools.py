"""What the role's effects are made with, handed in as one: nothing here is global.

Next: :mod:`services.networks.lookup`.
"""

import random
from dataclasses import dataclass, field

from schemas.kube import Pod
from services.common.bus.protocol import Bus
from services.common.cri.client import Cri
from services.common.kube.cached_reader import CachedReader
from services.common.kube.client import Kube
from services.common.kube.event_recorder import EventRecorder
from services.common.logs import Log
from services.common.telemetry import Telemetry
from services.networks.delegate import Delegate
from services.networks.pod_cache import Memory


@dataclass(frozen=True, slots=True)
class Tools:
    """The adapters, and what is remembered between two runs.

    :ivar node: the Kubernetes node this process works for. :ivar rng: spreads retries.
    """

    node: str
    kube: Kube
    pods: CachedReader[Pod]
    cri: Cri
    multus: Delegate
    bus: Bus
    events: EventRecorder
    telemetry: Telemetry
    log: Log
    memory: Memory = field(default_factory=Memory)
    rng: random.Random = field(default_factory=random.Random)
