"""What can go wrong when the container runtime is asked, sorted by what the caller can do about it.

All kinds are worth another attempt; neither says anything about a network.
Next: :mod:`services.common.cri.sandbox`.
"""


class CriError(Exception):
    """Any failure below; ``str()`` is a sentence for people."""


class SandboxMissing(CriError):
    """The pod has no sandbox that can take a network now: none, none that is ready, or none with its own netns."""


class ContainerMissing(CriError):
    """The pod has no such container that runs."""


class CriUnavailable(CriError):
    """The runtime did not answer, not in time, or not in a form that can be read."""
