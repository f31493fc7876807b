"""An allowance: what a foreign process may cause at once, and in the long run (a token bucket).

Pure: the caller has the clock, and decides what happens beyond the allowance: a later call, or the end of a connection.
"""


class Allowance:
    """Counts what was used of an allowance, which is refilled at a constant rate.

    :param interval: seconds until one of what was used is refilled.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._used = 0.0
        self._at = 0.0

    def used(self, now: float) -> float:
        """Return how much is used now, 0 at least.

        :param now: seconds of a monotonic clock.
        """
        self._used = max(0.0, self._used - (now - self._at) / self._interval)
        self._at = now
        return self._used

    def use(self, now: float, amount: float = 1.0) -> float:
        """Use some of it, also beyond the allowance, and return how much is used now."""
        self._used = self.used(now) + amount
        return self._used
