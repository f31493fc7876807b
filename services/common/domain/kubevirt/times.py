"""Differences of the times that objects have, RFC 3339, where each may be missing or malformed. Pure.

Next: :mod:`services.common.domain.kubevirt.migration`.
"""

import datetime


def seconds_between(start: str | None, end: str | None) -> float | None:
    """Return the seconds from one time to another; ``None`` when one is unknown."""
    try:
        since = datetime.datetime.fromisoformat(start or "")
        return (datetime.datetime.fromisoformat(end or "") - since).total_seconds()
    except (ValueError, TypeError):
        return None
