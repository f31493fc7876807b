"""Decoder of the verbose part of CRI responses: JSON under the key ``info``, whose shape each runtime defines. Pure.

Next: :mod:`services.common.cri.sandbox` and :mod:`services.common.cri.container`, which define the fields they need.
"""

from collections.abc import Mapping
from typing import TypeVar

from schemas.inputs import InputDecoder, RejectedInput
from services.common.cri.errors import CriUnavailable

Info = TypeVar("Info")


def read_info(verbose: Mapping[str, str], decoder: InputDecoder[Info], subject: str) -> Info:
    """Decode the verbose part of a response.

    :param verbose: field ``info`` of the response.
    :param subject: the object in error messages, such as ``sandbox 1234``.
    :raises CriUnavailable: there is no verbose part, or it cannot be decoded.
    """
    text = verbose.get("info", "")
    if not text:
        raise CriUnavailable(f"cannot read {subject}: the container runtime's response has no verbose info")
    try:
        return decoder.decode(text)
    except RejectedInput as error:
        raise CriUnavailable(
            f"cannot read {subject}: the container runtime's verbose info cannot be decoded: {error}"
        ) from error
