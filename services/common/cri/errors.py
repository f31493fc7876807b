"""Errors of calls to the container runtime, classified by what the caller can do about them.

All of them may be retried. None says anything about an attachment.
Next: :mod:`services.common.cri.sandbox`.
"""


class CriError(Exception):
    """Base class; ``str()`` is a message for users."""


class SandboxMissing(CriError):
    """The pod has no ready sandbox with a network namespace of its own."""


class ContainerMissing(CriError):
    """The pod has no such running container."""


class CriUnavailable(CriError):
    """The runtime sent no response in time, or one that cannot be parsed."""
