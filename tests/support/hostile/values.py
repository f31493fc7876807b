"""Hostile values: whole documents that a decoder may be given, and values for the fields of an object.

Not objects: those are in :mod:`tests.support.hostile.objects`, which is next.
"""

from typing import Any

import msgspec

DEEP = 5000

DOCUMENTS = {
    "nothing": b"",
    "null": b"null",
    "half": b'{"metadata":{"name":"a',
    "array": b"[]",
    "no UTF-8": b'{"name":"\xff\xfe"}',
    "NUL": b'{"name":"a\\u0000b","metadata":{"name":"\\u0000"}}',
    "surrogate": b'{"name":"\\ud800"}',
    "huge integer": b'{"pid":%s,"generation":%s}' % (b"9" * 5000, b"9" * 400),
    "huge exponent": b'{"pid":1e999,"metadata":{"generation":1e400}}',
    "deep": b'{"name":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep unknown": b'{"x":' + b'{"y":' * DEEP + b"1" + b"}" * DEEP + b"}",
    "deep spec": b'{"spec":{"networks":[{"a":' + b"[" * 500 + b"]" * 500 + b"}]}}",
    "deep and cut": b"[" * DEEP,
    "many keys": msgspec.json.encode({str(n): n for n in range(20_000)}),
    "long": b'{"name":"' + b"x" * 1_000_000 + b'"}',
    "long and wrong": b'{"metadata":{"name":1,"annotations":{"' + b"x" * 1_000_000 + b'":2}}}',
    "escape sequences": b'{"kind":"\\u001b[31m","metadata":[],"status":"\\u001b[2J"}',
}

NAMES: tuple[Any, ...] = ("", "default", "blue", "a\0b", "../../etc", "-rf", "\x1b[2J", "a" * 300, "net1", "ä", 7, None)
MACS: tuple[Any, ...] = (
    *("00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "02-00-00-00-00-01", "zz", "", 12, None),
    # The same one twice, so that duplicates are frequent.
    *("02:00:00:00:00:01", "02:00:00:00:00:01"),
)
STATES: tuple[Any, ...] = ("up", "down", "absent", "ABSENT", "", "exploding", 7, None)
NUMBERS: tuple[Any, ...] = (-1, 0, 1, 70_000, 2**31, 2**63, 1e308, "1", None, [])
ADDRESSES: tuple[Any, ...] = ("fe80::1%eth0;ip link del", "10.0.0.1/33", "::/129", "0x10", "10.16.0.1", "", 4)
