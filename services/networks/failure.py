"""One failed attempt at one attachment, in the terms that Events, the bus and the next attempt need.

Every adapter of this role raises it; nothing else of theirs reaches :mod:`services.networks.apply`.
"""


class Failure(Exception):
    """An attachment could not be made or undone this time. All of them are tried again.

    :ivar reason: CamelCase, stable. :ivar message: for people.
    :ivar half_made: a plugin of an ADD has run and failed, so what stands under the link name is of this attempt.
    """

    def __init__(self, reason: str, message: str, *, half_made: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.half_made = half_made
