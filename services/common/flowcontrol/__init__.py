"""When to try again, and how much a foreign process may cause: backoff and allowances. Pure, and without a clock.

Start with :mod:`~services.common.flowcontrol.backoff`. What waits for its turn is in :mod:`services.common.reconcile`.
"""
