"""The verbose part of the runtime's answers: JSON text under the key ``info``, in the runtime's own words. Pure.

What is read from it stands in :mod:`services.common.cri.sandbox` and :mod:`services.common.cri.container`.
"""

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from services.common.cri.errors import CriUnavailable

Info = TypeVar("Info")


def read_info(answer: Mapping[str, str], decoder: msgspec.json.Decoder[Info], what: str) -> Info:
    """Read the verbose part of an answer.

    :param answer: the answer's field ``info``. :param what: how a message calls what was asked about.
    :raises CriUnavailable: there is none, or it cannot be read.
    """
    text = answer.get("info", "")
    if not text:
        raise CriUnavailable(f"the container runtime's answer on {what} has no verbose info")
    try:
        return decoder.decode(text)
    except msgspec.DecodeError as error:
        raise CriUnavailable(f"the container runtime's info on {what} cannot be read: {error}") from error
