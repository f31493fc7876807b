"""When to try again, and how much a foreign process may cause: backoff, allowances and pacers.

Start with :mod:`~services.common.flowcontrol.backoff`. Only a pacer has a clock.
What waits for its turn is in :mod:`services.common.reconcile`.
"""
