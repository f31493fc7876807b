"""Reconciling: the queue of keys, the runs for a key, and when a resync adds a key.

Start with :mod:`services.common.reconcile.queue`.
"""

from services.common.reconcile.attempt import FIRST_BACKOFF, Attempt, Cause, Reject, Retry, Source
from services.common.reconcile.queue import MAX_BACKOFF, RESYNC_INTERVAL, Reconciler

__all__ = [
    "FIRST_BACKOFF",
    "MAX_BACKOFF",
    "RESYNC_INTERVAL",
    "Attempt",
    "Cause",
    "Reconciler",
    "Reject",
    "Retry",
    "Source",
]
