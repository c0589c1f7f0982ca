"""PocketBase in Python: one backend in one file.

SQLite, REST, auth, files and an admin page. Read it from top to bottom; a chapter uses only the chapters above it.

  1. Basics
  2. Formats
  3. Errors
  4. Store
  5. Settings
  6. Events
  7. Files
  8. Fields
  9. Filters
 10. OAuth2
 11. Collections
 12. Application
 13. Records
 14. Mail
 15. Identity
 16. Operations
 17. Server
 18. Realtime
 19. Routes
 20. Dashboard
 21. Command line
"""

from gevent import monkey

monkey.patch_all()      # before ssl and everything that imports it

from base64 import b64encode
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from email.utils import collapse_rfc2231_value
from email.utils import formatdate
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from json.decoder import scanstring as _scan_json_string
from json.encoder import encode_basestring as quote_json
from time import perf_counter
from typing import NamedTuple
from urllib.parse import parse_qs
from urllib.parse import quote
from urllib.parse import quote_plus
from urllib.parse import unquote
from urllib.parse import unquote_to_bytes
from urllib.parse import urlencode
from urllib.parse import urljoin
from urllib.parse import urlsplit
import base64
import binascii
import collections
import copy
import csv
import datetime
import decimal
import errno
import fcntl
import functools
import gzip
import hashlib
import hmac
import html
import io
import ipaddress
import itertools
import json
import logging
import math
import os
import posixpath
import re
import secrets
import shutil
import signal
import socket as std_socket
import sqlite3
import ssl
import stat
import struct
import sys
import time
import traceback
import types
import zlib

from gevent import GreenletExit
from gevent import socket as gevent_socket
from gevent.lock import BoundedSemaphore
from gevent.lock import RLock
from gevent.pool import Group
from gevent.server import StreamServer
import bcrypt
import bottle
import gevent
import gevent.event
import gevent.hub
import gevent.pool
import gevent.threadpool


# ============================================================================
#  1. Basics
# ============================================================================
# What every chapter may lean on and that knows nothing of the product: the log,
# the clock as text, memory of what was worked out before, encryption.

LOG = logging.getLogger("pocketbase")


class Memo(dict):
    """A dict of what can be worked out again: emptied when it holds `limit` (entries, or bytes where `keep` is told the sizes)."""

    __slots__ = ("limit", "held")

    def __init__(self, limit):
        self.limit, self.held = limit, 0

    def keep(self, key, value, size=1):
        """Remembers and returns the value; what would fill an eighth of the room alone is not worth it."""
        if self.held + size > self.limit:
            self.clear()
        if size * 8 <= self.limit:
            self.held += size
            self[key] = value
        return value

    def clear(self):
        self.held = 0
        super().clear()


def date_text(seconds):
    """Epoch seconds as `2006-01-02 15:04:05.000Z`."""
    whole = int(seconds)
    return f"{_second_text(whole)}.{int((seconds - whole) * 1000):03d}Z"


@functools.lru_cache(maxsize=64)
def _second_text(second):
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(second))


def now_text():
    """The present as date text, milliseconds cut off."""
    return date_text(time.time())


def encrypt(data, key):
    """AES-256-GCM as base64 text of nonce (12) + ciphertext + tag (16); the key is 32 bytes."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM          # 8 ms, only for those who encrypt
    nonce = os.urandom(12)
    return base64.b64encode(nonce + AESGCM(key).encrypt(nonce, data, None)).decode()


def decrypt(text, key):
    """What `encrypt` made; ValueError for a wrong key or damaged text."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    try:
        raw = base64.b64decode(text, validate=True)
        return AESGCM(key).decrypt(raw[:12], raw[12:], None)
    except (InvalidTag, ValueError):
        raise ValueError("cipher: message authentication failed") from None


# ============================================================================
#  2. Formats
# ============================================================================
# The pure value rules shared by fields, filters and files: numbers, JSON, dates, casts, formats, patterns, random text.
# Invariant: a function here never touches the database, the network or the clock, and raises nothing but ValueError.
# Every table was probed on PocketBase 0.40; where Python and Go differ the comment names the difference.
# Uses only the standard library, and google-re2 on first use of a pattern that is not trivial.

# --- Random text --------------------------------------------------------------

LOWER_ALPHANUMERIC = "abcdefghijklmnopqrstuvwxyz0123456789"
ALPHANUMERIC = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + LOWER_ALPHANUMERIC
_POOL_SIZE = 64  # texts made per urandom call: 0.2 µs an id against 12 µs with secrets.choice
_POOLS_KEPT = 64  # distinct (length, alphabet) pairs; user patterns must not grow this without end
_random_pools = {}


def random_text(length, alphabet=LOWER_ALPHANUMERIC):
    """Unguessable text, each character drawn evenly from `alphabet`.

    Ready texts wait in a pool; list.pop is atomic, so native threads may call this too."""
    pool = _random_pools.get((length, alphabet))
    if pool:
        try:
            return pool.pop()
        except IndexError:
            pass
    return _refill_random_pool(length, alphabet)


def random_id():
    """A record id: 15 characters [a-z0-9]."""
    return random_text(15)


def _refill_random_pool(length, alphabet):
    if length * _POOL_SIZE > 8192 or len(alphabet) > 256 or not alphabet.isascii():
        return "".join([secrets.choice(alphabet) for _ in range(length)])
    text = _random_ascii(length * _POOL_SIZE, alphabet)
    fresh = [text[i : i + length] for i in range(0, length * _POOL_SIZE, length)] if length else [""]
    if (length, alphabet) in _random_pools or len(_random_pools) < _POOLS_KEPT:
        _random_pools.setdefault((length, alphabet), []).extend(fresh[1:])
    return fresh[0]


@functools.lru_cache(maxsize=64)
def _random_table(alphabet):
    """Maps a random byte to a letter; bytes at or above the largest multiple of the size are dropped, else low letters come more often."""
    size = len(alphabet)
    even = 256 - 256 % size
    return bytes(ord(alphabet[i % size]) for i in range(256)), bytes(range(even, 256))


def _random_ascii(length, alphabet):
    table, uneven = _random_table(alphabet)
    text = b""
    while len(text) < length:
        text += os.urandom(length + length // 4 + 16).translate(table, uneven)
    return text[:length].decode("ascii")


# A forked child must not hand out the texts its parent holds.
os.register_at_fork(after_in_child=_random_pools.clear)

# --- Numbers ------------------------------------------------------------------

_EXACT_INT = 2**53  # beyond it a float64 no longer holds every integer


def format_number(number):
    """The shortest float64 text in ECMAScript style (ECMA-262, Number::toString): 5, 0.1, 1e+21, 0.000001, 1e-7, -0."""
    if type(number) is int and -_EXACT_INT <= number <= _EXACT_INT:
        return str(number)
    number = _finite(number)
    text = repr(number)
    if text.endswith(".0"):
        return text[:-2]
    mantissa, e, exponent = text.partition("e")
    if not e:
        return text
    if -7 < int(exponent) < 21:
        return plain_number(number)
    sign = "-" if exponent[0] == "-" else "+"
    return f"{mantissa}e{sign}{exponent.lstrip('+-0')}"


def plain_number(number):
    """The shortest float64 digits without an exponent, as numbers become text: 1e21 -> 1000000000000000000000."""
    if type(number) is int and -_EXACT_INT <= number <= _EXACT_INT:
        return str(number)
    text = repr(_finite(number))
    if "e" in text:
        text = format(Decimal(text), "f")
    return text.removesuffix(".0")


def _finite(number):
    try:
        number = float(number)
    except OverflowError:
        raise ValueError("number out of range") from None
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def _stored_number(number):
    """A SQLite number as PocketBase prints it where the type is unknown: Go's %g, exponent below -4 and from 6 on (1.2345675e+06)."""
    if type(number) is int:
        return str(number)
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else "+Inf" if number > 0 else "-Inf"
    digits, _, exponent = format(Decimal(repr(number)).normalize(), "e").partition("e")
    if number == 0 or -5 < int(exponent) < 6:
        return plain_number(number)
    return f"{digits}e{exponent[0]}{exponent[1:]:0>2}"


# Go's ParseFloat (strconv): an underscore may stand between digits or after 0x; a hexadecimal number needs its p exponent.
_DIGITS, _HEX_DIGITS = r"[0-9](?:_?[0-9])*", r"[0-9a-fA-F](?:_?[0-9a-fA-F])*"
_DECIMAL_FLOAT = re.compile(rf"[+-]?(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][+-]?{_DIGITS})?")
_HEX_FLOAT = re.compile(rf"[+-]?0[xX]_?(?:{_HEX_DIGITS}(?:\.(?:{_HEX_DIGITS})?)?|\.{_HEX_DIGITS})[pP][+-]?{_DIGITS}")
_NOT_A_NUMBER = re.compile(r"[+-]?inf(?:inity)?|nan", re.IGNORECASE | re.ASCII)


def parse_float(text):
    """The float a number text means; 0 for junk and for what overflows; inf or nan when they are spelled out.

    >>> parse_float("1_000.5"), parse_float("0x1p4"), parse_float("0x10"), parse_float(" 5")
    (1000.5, 16.0, 0.0, 0.0)"""
    if _DECIMAL_FLOAT.fullmatch(text):
        number = float(text)
        return number if math.isfinite(number) else 0.0
    if _HEX_FLOAT.fullmatch(text):
        try:
            return float.fromhex(text.replace("_", ""))
        except OverflowError:
            return 0.0
    return float(text) if _NOT_A_NUMBER.fullmatch(text) else 0.0


def _tidy_number(number):
    """Whole floats as int, so that the fast JSON encoder writes them right; -0.0 stays, it prints as -0."""
    if type(number) is float and number.is_integer() and -_EXACT_INT <= number <= _EXACT_INT and (number or math.copysign(1, number) > 0):
        return int(number)
    return number


# --- JSON ---------------------------------------------------------------------

JSON_MAX_DEPTH = 500  # ours; PocketBase takes 10,000, more than Python's C stack allows on every version
_INT_OVER = 16  # digits from which an integer may not fit a float64


def _unique_object(pairs):
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("duplicate object key")
    return value


def _parse_json_float(text):
    return _finite(float(text))


def _parse_json_int(text):
    if len(text) < _INT_OVER:
        return int(text) if text != "-0" else -0.0
    return _tidy_number(_finite(float(text)))


def _refuse_constant(name):
    raise ValueError(f"{name} is not JSON")


_strict_json = json.JSONDecoder(
    object_pairs_hook=_unique_object, parse_float=_parse_json_float, parse_int=_parse_json_int, parse_constant=_refuse_constant
)
_lenient_json = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=_refuse_constant)  # grammar only: 1e400 and doubles pass
_JSON_SPACE = " \t\n\r"
_json_blank = re.compile(r"[ \t\n\r]*").match


def parse_json(data, *, depth=JSON_MAX_DEPTH):
    """The first JSON value in `data`; what follows it is ignored. Numbers are float64, whole ones come as int.

    ValueError for duplicate keys at any level, invalid UTF-8, lone surrogates, NaN, Infinity, 1e400, a BOM, nesting beyond `depth`."""
    text = data if isinstance(data, str) else _decode_json(data)
    return _load_json(text, depth)[0]


def _load_json(text, depth=JSON_MAX_DEPTH):
    try:
        value, end = _strict_json.raw_decode(text, _json_blank(text).end())
    except RecursionError:
        raise ValueError("too deeply nested") from None
    if text.count("[") + text.count("{") > depth and _nesting(value) > depth:
        raise ValueError("too deeply nested")
    if "\\u" in text:
        _refuse_surrogates(text[:end], value)
    return value, end


def _decode_json(data):
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        return str(data[: error.start], "utf-8")  # bytes after the first value do not matter, inside it the cut fails to parse


def _refuse_surrogates(text, value):
    if "\\ud" in text or "\\uD" in text:
        json.dumps(value, ensure_ascii=False).encode()  # UnicodeEncodeError is a ValueError


def _nesting(value):
    """How many arrays and objects stand inside one another; level by level, so that depth costs no stack."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, (dict, list))]:
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def is_json(text):
    """Whether `text` is one valid JSON value and nothing else, by the strict rules but for lone surrogates (they become U+FFFD)."""
    try:
        if text.count("[") + text.count("{") > JSON_MAX_DEPTH and _nesting(json.loads(text)) > JSON_MAX_DEPTH:
            return False
        _, end = _strict_json.raw_decode(text, _json_blank(text).end())
    except (ValueError, RecursionError):
        return False
    return not text[end:].strip(_JSON_SPACE)


def _json_encoder(sort_keys):
    """encode(value) -> compact text. json.dumps builds its C encoder anew at each call, 1 us that a list of 30 rows pays 60 times."""
    make = json.encoder.c_make_encoder
    if make is None:
        return json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False, sort_keys=sort_keys).encode

    def refuse(value):
        raise TypeError(f"{type(value).__name__} is no JSON value")
    encode = make(None, refuse, quote_json, None, ":", ",", sort_keys, False, True)
    return lambda value: "".join(encode(value, 0))


_encode_json, _encode_sorted_json = _json_encoder(False), _json_encoder(True)
_PLAIN_TYPES = frozenset((str, bool, type(None)))


def to_json(value, sort_keys=False):
    """Compact JSON: nothing escaped that need not be, numbers in ECMAScript form, insertion order kept unless `sort_keys`."""
    try:
        if _encodes_plainly(value):
            return (_encode_sorted_json if sort_keys else _encode_json)(value)
        return _to_exact_json(value, sort_keys)
    except RecursionError:
        raise ValueError("too deeply nested") from None


def _encodes_plainly(value):
    """Whether Python's C encoder writes every number as ECMAScript would: not 1.0, 1e-07, 1e+16, infinities, integers beyond 2^53.

    Looking at the values costs a third of what looking at the encoded text costs."""
    for item in value.values() if type(value) is dict else value if type(value) is list else (value,):
        kind = type(item)
        if kind in _PLAIN_TYPES:
            continue
        if kind is int:
            if -_EXACT_INT <= item <= _EXACT_INT:
                continue
            return False
        if kind is float:
            if 1e-4 <= abs(item) < 1e16 and not item.is_integer():
                continue
            return False
        if kind is not dict and kind is not list or not _encodes_plainly(item):
            return False
    return True


def _to_exact_json(value, sort_keys):
    if isinstance(value, dict):
        items = sorted(value.items()) if sort_keys else value.items()
        return "{" + ",".join([f"{quote_json(str(key))}:{_to_exact_json(item, sort_keys)}" for key, item in items]) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join([_to_exact_json(item, sort_keys) for item in value]) + "]"
    if isinstance(value, str):
        return quote_json(value)
    if value is None or isinstance(value, bool):
        return _encode_json(value)
    return format_number(value) if isinstance(value, (int, float)) else _encode_json(value)


# --- Dates --------------------------------------------------------------------

_CANONICAL_DATE = re.compile(
    r"[0-9]{4}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
    r" (?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{3}Z"
).fullmatch
_ZERO_DATE = "0001-01-01 00:00:00.000Z"  # Go's zero time, read as unset
_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()

# The parts of Go's reference time (package time) and what its parser takes for them.
_DATE_PARTS = {
    "YYYY": r"(?P<year>[0-9]{4})",
    "YY": r"(?P<short_year>[0-9]{2})",
    "MM": r"(?P<month>[0-9]{2})",
    "Mon": f"(?P<name>(?i:{'|'.join(_MONTHS)}))",
    "DD": r"(?P<day>[0-9]{2})",
    "_D": r" ?(?P<day>[0-9]{1,2})",
    "hh": r"(?P<hour>[0-9]{1,2})",
    "mm": r"(?P<minute>[0-9]{2})",
    "ss": r"(?P<second>[0-9]{2})(?:[.,](?P<fraction>[0-9]+))?",
    "AM": r"(?P<half>AM|PM)",
    "Day": "(?i:mon|tue|wed|thu|fri|sat|sun)",
    "Weekday": "(?i:monday|tuesday|wednesday|thursday|friday|saturday|sunday)",
    "Z": r"(?:Z|(?P<offset>[+-][0-9]{2}:?[0-9]{2}))",
    "+0000": r"(?P<offset>[+-][0-9]{4})",
    "+00:00": r"(?P<offset>[+-][0-9]{2}:[0-9]{2})",
    "MST": r"(?:GMT(?P<gmt>[+-][0-9]+)?|[+-](?=[0-9]{2})0*(?:1?\d|2[0-3])(?!\d)|[A-Z]{3}(?![A-Z])|[A-Z]{3,4}T(?![A-Z])|WITA(?![A-Z])|ChST|MeST)",
    " ": " +",
}
_DATE_LAYOUTS = (
    "YYYY-MM-DD hh:mm:ssZ",
    "YYYY-MM-DDThh:mm:ssZ",
    "YYYY-MM-DD hh:mm:ss",
    "YYYY-MM-DDThh:mm:ss",
    "YYYY-MM-DD",
    "YYYY-MM-DD hh:mm:ss +0000",
    "YYYY-MM-DD hh:mm:ss +00:00",
    "YYYY-MM-DD hh:mm:ss +0000 MST",
    "Day, DD Mon YYYY hh:mm:ss MST",
    "Day, DD Mon YYYY hh:mm:ss +0000",
    "DD Mon YY hh:mm MST",
    "DD Mon YY hh:mm +0000",
    "Weekday, DD-Mon-YY hh:mm:ss MST",
    "DD Mon YYYY",
    "Day Mon _D hh:mm:ss YYYY",
    "Day Mon _D hh:mm:ss MST YYYY",
    "Day Mon DD hh:mm:ss +0000 YYYY",
    "hh:mmAM",
    "Mon _D hh:mm:ss",
)


@functools.cache
def _date_patterns():
    part = re.compile("|".join(re.escape(name) for name in sorted(_DATE_PARTS, key=len, reverse=True)))
    return [re.compile(part.sub(lambda m: _DATE_PARTS[m[0]], layout), re.ASCII) for layout in _DATE_LAYOUTS]


def parse_date(value):
    """`2006-01-02 15:04:05.000Z` in UTC for any date text the product knows, "" for everything else.

    >>> parse_date("2024-01-02T03:04:05+02:00")
    '2024-01-02 01:04:05.000Z'"""
    if not isinstance(value, str):
        return ""
    if _CANONICAL_DATE(value):
        return value if value != _ZERO_DATE else ""
    for pattern in _date_patterns() if value and len(value) < 128 else ():
        if match := pattern.fullmatch(value):
            text = _date_from_parts(match.groupdict())
            if text is not None:
                return text
    return ""


def _date_from_parts(part):
    """The date text for the matched parts; None when one is out of range, so that the next layout has its try."""
    clock = _clock_of(part)
    year, month, day = _calendar_of(part)
    if clock is None or not 1 <= month <= 12 or not 1 <= day <= _month_days(year, month):
        return None
    seconds = _offset_of(part)
    if seconds is None:
        return None
    days, rest = divmod(_day_number(year, month, day) * 86400 + clock - seconds, 86400)
    year, month, day = _calendar_day(days)
    fraction = (part.get("fraction") or "")[:9]
    if (year, month, day, rest) == (1, 1, 1, 0) and not fraction.strip("0"):
        return ""
    year_text = f"{year:04}" if year >= 0 else f"-{-year:04}"
    return f"{year_text}-{month:02}-{day:02} {rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}.{fraction[:3]:0<3}Z"


def _calendar_of(part):
    if part.get("short_year"):
        year = int(part["short_year"])
        year += 1900 if year >= 69 else 2000  # POSIX pivot, as Go's
    else:
        year = int(part.get("year") or 0)
    month = _MONTHS.index(part["name"].lower()) + 1 if part.get("name") else int(part.get("month") or 1)
    return year, month, int(part.get("day") or 1)


def _clock_of(part):
    hour, minute, second = (int(part.get(name) or 0) for name in ("hour", "minute", "second"))
    if half := part.get("half"):
        if hour > 12:
            return None
        hour = hour % 12 + (12 if half == "PM" else 0) if hour else (12 if half == "PM" else 0)
    return hour * 3600 + minute * 60 + second if hour < 24 and minute < 60 and second < 60 else None


def _offset_of(part):
    """Seconds east of UTC; other zone names than GMT+n count as UTC, and GMT+n moves the other way round (as observed)."""
    if offset := part.get("offset"):
        hours, minutes = int(offset[1:3]), int(offset[-2:])
        if hours > 24 or minutes > 60:
            return None
        return (hours * 3600 + minutes * 60) * (-1 if offset[0] == "-" else 1)
    hours = int((part.get("gmt") or "0")[:4])
    return -hours * 3600 if abs(hours) <= 23 else None


def _month_days(year, month):
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month in (4, 6, 9, 11) else 31


def _day_number(year, month, day):
    """Days since 0000-03-01 (proleptic Gregorian; H. Hinnant, days_from_civil); datetime ends at year 1 and 9999."""
    year -= month < 3
    return 365 * year + year // 4 - year // 100 + year // 400 + (153 * (month - 3 + 12 * (month < 3)) + 2) // 5 + day - 1


def _calendar_day(days):
    era, day_of_era = divmod(days, 146097)
    year = (day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096) // 365
    day_of_year = day_of_era - (365 * year + year // 4 - year // 100)
    march_month = (5 * day_of_year + 2) // 153
    month = march_month + 3 if march_month < 10 else march_month - 9
    return year + era * 400 + (month < 3), month, day_of_year - (153 * march_month + 2) // 5 + 1


# --- Casts of submitted values -----------------------------------------------

_TRUE_TEXTS = frozenset(("1", "t", "T", "true", "TRUE", "True"))


def cast_text(value):
    """Text as it is, numbers without exponent, booleans by name, everything else empty."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return plain_number(value) if isinstance(value, (int, float)) else ""


def cast_number(value):
    """int or float; junk is 0; text may spell inf or nan, which the number field then refuses."""
    if isinstance(value, str):
        return _tidy_number(parse_float(value))
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return value if -_EXACT_INT <= value <= _EXACT_INT else _finite(value)
    return _tidy_number(value) if isinstance(value, float) else 0


def cast_bool(value):
    """True for true, numbers but 0, and the texts 1 t T true TRUE True."""
    if isinstance(value, str):
        return value in _TRUE_TEXTS
    return isinstance(value, (bool, int, float)) and bool(value)


def cast_list(value):
    """Unique non-blank texts, order kept: of a list, of JSON array text, of one scalar.

    Text that stops being an array of strings keeps the strings read so far and itself (as PocketBase's decoder does):
    >>> cast_list('["a",1]')
    ['a', '["a",1]']"""
    if isinstance(value, str):
        items = _scan_text_list(value) if value.lstrip(_JSON_SPACE)[:1] == "[" else (value,)
    elif isinstance(value, (list, tuple)):
        items = [cast_text(item) for item in value]
    else:
        items = (cast_text(value),)
    return [item for item in dict.fromkeys(items) if item]


def cast_single(value):
    """The one text of a single select, relation or file: the last of the list, "" when there is none."""
    items = cast_list(value)
    items = cast_list(items[-1]) if items else items
    return items[-1] if items else ""


_SEPARATOR = re.compile(r"[ \t\n\r]*([,\]])[ \t\n\r]*")
_NULL_ITEM = re.compile(r"null(?=[ \t\n\r]*[,\]])")


def _scan_text_list(text):
    items, at = [], _json_blank(text).end() + 1
    at = _json_blank(text, at).end()
    if text[at : at + 1] == "]":
        return [] if not text[at + 1 :].strip(_JSON_SPACE) else [text]
    while True:
        try:
            item, at = _scan_text_item(text, at)
        except ValueError:
            return items + [text]
        items.append(item)
        mark = _SEPARATOR.match(text, at)
        if not mark:
            return items + [text]
        at = mark.end()
        if mark[1] == "]":
            return items if at == len(text) else items + [text]


def _scan_text_item(text, at):
    if text[at : at + 1] == '"':
        item, end = _scan_json_string(text, at + 1, True)
        item.encode()
        return item, end
    if match := _NULL_ITEM.match(text, at):
        return "", match.end()
    raise ValueError("not a text item")


def cast_json(value):
    """The JSON text to store, None for null. Text that is itself JSON is kept as typed; other text becomes a JSON string.

    Text with a control character JSON cannot spell gives text that `is_json` refuses, as in PocketBase."""
    if value is None:
        return None
    if not isinstance(value, str):
        return to_json(value, sort_keys=True)
    if value in ("true", "false", "null") or _JSON_START(value) and _is_json_grammar(value):
        return value
    return _go_quote(value)


_JSON_START = re.compile(r'[0-9"\[{-]').match
_GO_ESCAPES = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v", '"': '\\"', "\\": "\\\\"}


def _is_json_grammar(text):
    try:
        _, end = _lenient_json.raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return not text[end:].strip(_JSON_SPACE)


def _go_quote(text):
    """A quoted string as Go's strconv.Quote writes it: also what is not printable is escaped, and not always as JSON would."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return '"' + "".join([c if c.isprintable() and c not in '"\\' else _GO_ESCAPES.get(c) or _go_escape(ord(c)) for c in text]) + '"'


def _go_escape(code):
    return f"\\x{code:02x}" if code < 0x20 or code == 0x7F else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def cast_geo_point(value):
    """{"lon":..,"lat":..} from an object or JSON text; a coordinate that is not a number is 0."""
    if isinstance(value, str):
        return _scan_geo_point(value)[0]
    point = {"lon": 0, "lat": 0}
    if isinstance(value, dict):
        point.update({key: _tidy_number(value[key]) for key in point if type(value.get(key)) in (int, float)})
    return point


def _scan_geo_point(text):
    """(point, whether all of the text was sound); members before the first fault count."""
    point, seen, at = {"lon": 0, "lat": 0}, set(), _json_blank(text).end()
    try:
        while text[at] == ("," if seen else "{"):
            at = _json_blank(text, at + 1).end()
            if text[at] == "}" and not seen:
                break
            key, at = _scan_json_string(text, at + 1, True) if text[at] == '"' else _refuse_constant("key")
            at = _json_blank(text, at).end()
            value, end = _load_member(text, at)
            if key in seen or key in point and not (value is None or type(value) in (int, float)):
                return point, False
            seen.add(key)
            if key in point and value is not None:
                point[key] = _tidy_number(value)
            at = _json_blank(text, end).end()
        return point, text[at] == "}" and not text[at + 1 :].strip(_JSON_SPACE)
    except (ValueError, IndexError, RecursionError):
        return point, False


def _load_member(text, at):
    if text[at] != ":":
        raise ValueError("no value")
    return _strict_json.raw_decode(text, _json_blank(text, at + 1).end())


# --- Reading stored values ----------------------------------------------------
# Rows may hold what other programs, or older schemas, left there: NULL, blobs, another type.


def read_text(value):
    """Text of any stored value; a blob is read as UTF-8."""
    if isinstance(value, str):
        return value
    return str(value, "utf-8", "replace") if isinstance(value, bytes) else cast_text(value)


def read_number(value):
    """A finite number; text is parsed, junk and infinities are 0."""
    if type(value) is int:
        return value if -_EXACT_INT <= value <= _EXACT_INT else float(value)
    number = value if type(value) is float else parse_float(read_text(value))
    return _tidy_number(number) if math.isfinite(number) else 0


def read_bool(value):
    """True for 1 and the true texts only: a stored 2 is false."""
    return value == 1 if isinstance(value, (int, float)) else read_text(value) in _TRUE_TEXTS


def read_date(value):
    """Normalised date text; numbers are no dates."""
    return parse_date(read_text(value)) if isinstance(value, (str, bytes)) else ""


def read_list(value):
    """The texts of a stored array; one text that is no array is a list of itself."""
    return cast_list(_stored_number(value) if type(value) in (int, float) else read_text(value))


def read_single(value):
    """The text of a column that may once have held an array: its last item."""
    text = read_text(value)
    if text.lstrip(_JSON_SPACE)[:1] != "[":
        return text
    items = cast_list(text)
    return items[-1] if items else ""


_JSON_BLANK_OR_ESCAPE = re.compile(r"[ \t\n\r\\]")
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[ \t\n\r]+')
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def read_json(value):
    """The JSON text to answer with: compact, keys and numbers as stored; what is no JSON becomes a string."""
    if value is None:
        return "null"
    if isinstance(value, (int, float)):
        text = _stored_number(value)
        return text if math.isfinite(value) else f'"{text}"'
    text = read_text(value)
    if text in ("true", "false", "null") or _JSON_START(text) and _is_json_grammar(text):
        return _JSON_TOKEN.sub(_compact_token, text) if _JSON_BLANK_OR_ESCAPE.search(text) else text
    return quote_json(text)


def _compact_token(match):
    token = match[0]
    if token[0] != '"':
        return ""
    return quote_json(_LONE_SURROGATE.sub("\ufffd", _scan_json_string(token, 1, True)[0])) if "\\" in token else token


def read_geo_point(value):
    """A stored point; NULL, "" and null are 0,0. ValueError for what is no point (PocketBase fails the request)."""
    text = read_text(value)
    if text.strip(_JSON_SPACE) in ("", "null"):
        return {"lon": 0, "lat": 0}
    point, sound = _scan_geo_point(text)
    if not sound:
        raise ValueError("not a geo point")
    return point


# --- E-mail, URL and domain ---------------------------------------------------
# The patterns are those of PocketBase, put so that Python's backtracking matcher needs linear time on them.

_WIDE = "\u00a0-\ud7ff\uf900-\ufdcf\ufdf0-\uffef"
_ATOM = rf"[a-zA-Z0-9!#$%&'*+\-/=?^_`{{|}}~{_WIDE}]+"
_LETTER, _ALNUM = rf"a-zA-Z{_WIDE}", rf"a-zA-Z0-9{_WIDE}"
_FOLD = r"(?:(?:[ \t]*\r\n)?[ \t]+)?"
_QUOTED = rf'"{_FOLD}(?:[\x01-\x08\x0b\x0c\x0e-\x1f\x7f\x21\x23-\x5b\x5d-\x7e{_WIDE}]|\([\x01-\x09\x0b-\x7f]){_FOLD}"'
_EMAIL = re.compile(
    rf"(?:{_ATOM}(?:\.{_ATOM})*|{_QUOTED})@[{_ALNUM}](?:[{_ALNUM}\-._~]*[{_ALNUM}])?\.[{_LETTER}](?:[{_ALNUM}\-_~]*[{_LETTER}])?\.?"
).fullmatch
_DOMAIN = re.compile(r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?\.)+[a-zA-Z]{1,63}").fullmatch
_DNS_NAME = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_-]{0,62}(?:\.[a-zA-Z0-9_][a-zA-Z0-9_-]{0,62})*[._]?").fullmatch
_URL_IPV4 = r"(?:[1-9]\d?|1\d\d|2[01]\d|22[0-3]|24\d|25[0-5])(?:\.(?:\d{1,2}|1\d\d|2[0-4]\d|25[0-5])){2}\.(?:\d{1,2}|1\d\d|2[0-4]\d|25[0-4])"
_URL_SUBDOMAIN = r"(?:www\.|[a-zA-Z0-9]+(?:[-_.]?[a-zA-Z0-9])*[a-zA-Z0-9]\.[a-zA-Z0-9]+)"
_URL_WIDE = r"a-zA-Z\x{00a1}-\x{ffff}"
_URL_HOST = (
    rf"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-_]+)?[a-zA-Z0-9](?:[-.][a-zA-Z0-9]+)*|{_URL_SUBDOMAIN}?)?"
    rf"(?:(?:[{_URL_WIDE}0-9]+-?-?)*[{_URL_WIDE}0-9]+)(?:\.[{_URL_WIDE}]+)?"
)
_IPV6_GROUP, _IPV6_TAIL = "[0-9a-fA-F]{1,4}", r"(?:(?:25[0-5]|(?:2[0-4]|1?[0-9])?[0-9])\.){3}(?:25[0-5]|(?:2[0-4]|1?[0-9])?[0-9])"
_URL_IPV6 = "|".join(
    [rf"(?:{_IPV6_GROUP}:){{7}}{_IPV6_GROUP}", rf"(?:{_IPV6_GROUP}:){{1,7}}:"]
    + [rf"(?:{_IPV6_GROUP}:){{1,{7 - n}}}(?::{_IPV6_GROUP}){{1,{n}}}" for n in range(1, 7)]
    + [rf":(?:(?::{_IPV6_GROUP}){{1,7}}|:)", r"fe80:(?::[0-9a-fA-F]{0,4}){0,4}%[0-9a-zA-Z]+"]
    + [rf"::(?:[fF]{{4}}(?::0{{1,4}})?:)?{_IPV6_TAIL}", rf"(?:{_IPV6_GROUP}:){{1,4}}:{_IPV6_TAIL}"]
)
_URL = (
    rf"^(?:(?:ftp|tcp|udp|wss?|https?)://)?(?:\S+(?::\S*)?@)?(?:(?:{_URL_IPV4}|{_URL_HOST})\.?|\[(?:{_URL_IPV6})\])"
    r"(?::\d{1,5})?(?:[/?#]\S*)?$"
)
_BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})").search
_USERINFO = re.compile(r"[A-Za-z0-9\-._:~!$&'()*+,;=%@]*").fullmatch
_CONTROL = re.compile(r"[\x00-\x1f\x7f]").search
_PORT = re.compile(r"(?::[0-9]*)?").fullmatch
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]*:").match


def is_email(text):
    """Whether `text` is an e-mail address; the email field and the auth forms use the same rule."""
    return _EMAIL(text) is not None


def is_domain(text):
    """A domain of dot-separated ASCII labels with a top level of letters, 255 characters at most (onlyDomains, exceptDomains)."""
    return len(text) <= 255 and _DOMAIN(text) is not None


def is_host(text):
    """An IP address or a DNS name."""
    return _is_ip(text) or len(text.replace(".", "")) <= 255 and _DNS_NAME(text) is not None


def _is_ip(text):
    import ipaddress  # 3 ms at start-up

    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def is_url(text):
    """Whether `text` is a URL by the url field's rule: optional scheme, 4 bytes to 2082 characters, http://localhost and example.com both pass."""
    if len(text.encode()) < 4 or len(text) > 2082 or text.startswith(".") or _CONTROL(text.partition("#")[0]):
        return False
    parts = _split_url(text if "://" in text or ":" not in text else "http://" + text)
    if parts is None or not parts[0] and parts[1] and "." not in parts[1]:
        return False
    return compile_pattern(_URL).search(text) is not None


def _split_url(text):
    """(host with port, path), or None where Go's net/url would not parse: bad % escapes in path or fragment, odd user info or port."""
    rest, _, fragment = text.partition("#")
    rest = rest.partition("?")[0]
    host = ""
    if scheme := _SCHEME(rest):
        rest = rest[scheme.end() :]
        if not rest.startswith("/"):
            return None if _BAD_ESCAPE(fragment) else ("", "")
    elif ":" in rest.partition("/")[0]:
        return None  # RFC 3986, 4.2: the first segment of a relative path has no colon
    if rest.startswith("//"):
        authority, slash, path = rest[2:].partition("/")
        user, _, host = authority.rpartition("@")
        rest = slash + path
        if not _USERINFO(user) or _BAD_ESCAPE(authority) or not _is_url_host(host):
            return None
    return None if _BAD_ESCAPE(rest) or _BAD_ESCAPE(fragment) else (host, rest)


def _is_url_host(host):
    if not host.startswith("["):
        name, colon, port = host.partition(":")
        return _PORT(colon + port) is not None and not name.startswith(".") and "[" not in name and "]" not in name
    address, closing, port = host[1:].partition("]")
    address, _, zone = address.partition("%")
    return bool(closing) and _PORT(port) is not None and _is_ip(address) and (not zone or zone.startswith("25"))


def url_host(text):
    """Host and port as onlyDomains compares them; "" for a URL without a scheme."""
    parts = _split_url(text)
    return parts[0] if parts else ""


# --- Patterns -----------------------------------------------------------------
# Patterns come from users and are RE2 syntax: linear time, no look-around. google-re2 costs 9 ms and 3 MB, hence imported on first use.

_TRIVIAL_PATTERN = re.compile(
    r"\^?\[(?:[a-zA-Z0-9_]|[a-z]-[a-z]|[A-Z]-[A-Z]|[0-9]-[0-9]|\\[wd])+-?\](?:[+*?]|\{\d{1,3}\})?\$?|\^\\[wd]\+\$"
).fullmatch
# RE2's text for a fault (C++) against Go's.
_PATTERN_FAULTS = {
    "missing )": "missing closing )",
    "unexpected )": "unexpected )",
    "missing ]": "missing closing ]",
    "no argument for repetition operator": "missing argument to repetition operator",
    "bad repetition operator": "invalid nested repetition operator",
    "invalid repetition size": "invalid repeat count",
    "invalid perl operator": "invalid or unsupported Perl syntax",
    "invalid named capture group": "invalid named capture",
}
# What C++ RE2 takes and Go's does not: fault, and where it stands.
_GO_REFUSES = {
    "invalid escape sequence": re.compile(r"(?<!\\)(?:\\\\)*(\\C)"),
    "invalid repeat count": re.compile(r"(?<!\\)(\{[0-9]{9,}(?:,[0-9]*)?\})"),
    "invalid named capture": re.compile(r"(\(\?P?<[^>]*[^\x00-\x7f>][^>]*>)"),
}
_MAX_GROUP_NESTING = 1000  # Go's limit; C++ RE2 has another measure


@functools.lru_cache(maxsize=512)
def compile_pattern(text):
    """A pattern object with .search(text); ValueError with the product's words when `text` is no RE2 pattern."""
    if _TRIVIAL_PATTERN(text):
        try:  # \Z because Python's $ also matches before a last newline
            return re.compile(text[:-1] + r"\Z" if text.endswith("$") else text, re.ASCII)
        except re.error:
            pass
    import re2  # 9 ms, 3 MB

    options = re2.Options()
    options.log_errors = False
    _refuse_beyond_go(text)
    try:
        return re2.compile(text, options)
    except re2.error as error:
        raise ValueError(_pattern_fault(error.args[0], text)) from None


def _refuse_beyond_go(text):
    if text.count("(") - text.count("(?:") > _MAX_GROUP_NESTING:
        raise ValueError(f"error parsing regexp: expression nests too deeply: `{text}`")
    for fault, pattern in _GO_REFUSES.items():
        if match := pattern.search(text):
            raise ValueError(f"error parsing regexp: {fault}: `{match[1]}`")


def _pattern_fault(message, text):
    message = message.decode() if isinstance(message, bytes) else message
    if message.startswith("trailing \\"):
        return "error parsing regexp: trailing backslash at end of expression: ``"
    fault, _, part = message.partition(": ")
    if part in ("(?<=", "(?<!"):  # Go reads (?< as the start of a name
        fault, part = "invalid named capture group", text[text.index(part) :]
    return f"error parsing regexp: {_PATTERN_FAULTS.get(fault, fault)}: `{part}`"


# --- Generated texts ----------------------------------------------------------
# An autogenerate pattern is RE2 syntax read backwards: a sampler that writes one text the pattern describes.
# Only its structure is parsed here; which characters a class holds is asked of the pattern engine itself.

_GENERATOR_NESTING = 100  # groups; each costs a Python call
_OPEN_REPEAT = 6  # what *, + and {n,} count as their upper bound
# Go's numbers for the operators that have no text to draw (regexp/syntax.Op).
_EMPTY_MATCH, _BEGIN_LINE, _END_LINE, _BEGIN_TEXT, _END_TEXT, _WORD_BOUNDARY, _NO_WORD_BOUNDARY = 2, 7, 8, 9, 10, 11, 12
_ANCHORS = {"^": _BEGIN_TEXT, "\\A": _BEGIN_TEXT, "$": _END_TEXT, "\\z": _END_TEXT, "\\b": _WORD_BOUNDARY, "\\B": _NO_WORD_BOUNDARY}
_LINE_ANCHORS = {"^": _BEGIN_LINE, "$": _END_LINE}
_GENERATOR_TOKEN = re.compile(
    r"(?P<quote>\\Q(?P<literal>.*?)(?:\\E|\Z))|(?P<class>\[\^?\]?(?:\[:\^?\w+:\]|\\[pP]\{[^}]*\}|\\.|[^\]\\])*\]|\\[pP](?:\{[^}]*\}|.)|\\[dDwWsS])"
    r"|(?P<anchor>\\[AzbB]|[\^$])|(?P<repeat>[*+?]|\{(?P<least>\d+)(?P<comma>,?)(?P<most>\d*)\})\??"
    r"|(?P<open>\((?:\?P?<\w+>|\?(?P<flags>[imsU-]*)(?P<scope>[:)]))?)|(?P<close>\))|(?P<or>\|)|(?P<any>\.)"
    r"|(?P<char>\\x\{[0-9a-fA-F]+\}|\\x[0-9a-fA-F]{2}|\\[0-7]{1,3}|\\.|.)",
    re.DOTALL,
)
_PLAIN_CLASS = re.compile(r"\[((?:[a-zA-Z0-9_]-[a-zA-Z0-9_]|[a-zA-Z0-9_])+)\]").fullmatch
_CONTROL_ESCAPES = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def generate_from_pattern(pattern):
    """Random text that `pattern` describes; a repeat {n,m} writes n to m-1 times, {n,n} exactly n, open ones up to 5.

    ValueError for what is no pattern or has nothing to write (`unsupported pattern operator 9`).
    >>> generate_from_pattern("[A-Z]{3}-[0-9]{2,4}")  # doctest: +SKIP
    'WIU-106'"""
    return _compile_generator(pattern)()


@functools.lru_cache(maxsize=256)
def _compile_generator(pattern):
    compile_pattern(pattern)
    if pattern.count("(") > _GENERATOR_NESTING:
        raise ValueError(f"error parsing regexp: expression nests too deeply: `{pattern}`")
    if not pattern:
        return lambda: ""
    return _parse_alternatives(_GENERATOR_TOKEN.finditer(pattern), "")


def _parse_alternatives(tokens, flags):
    """Samplers of everything up to the closing parenthesis; one of the alternatives is drawn each time."""
    branches = [[]]
    for token in tokens:
        if token["close"]:
            break
        if token["or"]:
            branches.append([])
        elif token["scope"] == ")":
            flags = _change_flags(flags, token["flags"])
        elif token["open"]:
            branches[-1].append(_parse_alternatives(tokens, _change_flags(flags, token["flags"] or "")))
        elif token["repeat"]:
            branches[-1].append(_repeat(branches[-1].pop(), *_repeat_bounds(token)))
        else:
            branches[-1] += _parse_atoms(token, flags)
    choices = [_join(branch) for branch in branches]
    return choices[0] if len(choices) == 1 else lambda: secrets.choice(choices)()


def _change_flags(flags, change):
    on, _, off = change.partition("-")
    return "".join(flag for flag in dict.fromkeys(flags + on) if flag not in off)


def _parse_atoms(token, flags):
    if token["anchor"]:
        operator = _LINE_ANCHORS.get(token["anchor"]) if "m" in flags else None
        raise ValueError(f"unsupported pattern operator {operator or _ANCHORS[token['anchor']]}")
    if token["class"]:
        return [_draw(1, _class_members(token["class"], "i" in flags))]
    if token["any"]:
        return [_draw(1, ALPHANUMERIC)]
    literal = token["literal"] if token["quote"] else _unescape(token["char"])
    return [_constant(char.upper() if "i" in flags else char) for char in literal]


def _unescape(char):
    if char[0] != "\\":
        return char
    if char[1] == "x":
        return chr(int(char[2:].strip("{}"), 16))
    return chr(int(char[1:], 8)) if char[1].isdigit() else _CONTROL_ESCAPES.get(char[1], char[1])


def _class_members(text, ignore_case):
    """Every character a class matches, ASCII ranges read directly, all else by running the engine over Unicode (0.1 s, then cached)."""
    plain = _PLAIN_CLASS(text)
    if plain and not ignore_case:
        items = re.findall(r"(.)-(.)|(.)", plain[1])
        return "".join(sorted({chr(code) for first, last, one in items for code in range(ord(first or one), ord(last or one) + 1)}))
    members = _engine_members(f"(?i){text}" if ignore_case else text)
    if not members:
        raise ValueError("no runes to choose from")
    return members


@functools.lru_cache(maxsize=8)
def _engine_members(pattern):
    import re2  # see compile_pattern

    everything = "".join(map(chr, range(0xD800))) + "".join(map(chr, range(0xE000, 0x110000)))
    return "".join(re2.findall(f"(?s)(?:{pattern})+", everything))


def _repeat_bounds(token):
    if token["least"] is None:
        return {"*": (0, _OPEN_REPEAT), "+": (1, _OPEN_REPEAT), "?": (0, 1)}[token["repeat"]]
    least = int(token["least"])
    most = int(token["most"]) if token["most"] else max(_OPEN_REPEAT, least) if token["comma"] else least
    return least, most


class _draw:
    """Sampler of `length` characters of one alphabet."""

    def __init__(self, length, alphabet):
        self.length, self.alphabet = length, alphabet

    def __call__(self):
        return random_text(self.length, self.alphabet)


def _constant(text):
    return lambda: text


def _repeat(sampler, least, most):
    if isinstance(sampler, _draw) and least == most:
        return _draw(sampler.length * least, sampler.alphabet)
    if least == most:
        return lambda: "".join([sampler() for _ in range(least)])
    return lambda: "".join([sampler() for _ in range(least + secrets.randbelow(most - least))])


def _join(samplers):
    if not samplers:
        raise ValueError(f"unsupported pattern operator {_EMPTY_MATCH}")
    return samplers[0] if len(samplers) == 1 else lambda: "".join([sampler() for sampler in samplers])


# --- Excerpts and names -------------------------------------------------------

_INLINE_TAGS = frozenset("a abbr acronym b bdo big br button cite code em i label q small span strong strike sub sup time".split())
_DROPPED_TAGS = frozenset(
    "head title noframes style script iframe embed applet object svg img picture dialog template button form textarea input select option"
    " frameset".split()
)
_RAW_TAGS = frozenset("script style textarea title iframe noframes noscript xmp plaintext".split())  # their content is text up to the end tag
_SHOWN_RAW_TAGS = frozenset(("xmp", "plaintext"))
_VOID_TAGS = frozenset("area base br col embed hr image img input link meta param source track wbr".split())
_TABLE_PARTS = frozenset("td th tr tbody thead tfoot caption colgroup".split())  # no block of their own outside a table
_TAG_START = re.compile(r"<(?:(?P<end>/)?(?P<name>[a-zA-Z][^\s/>]*)|(?P<bogus>!|\?|/))")
_ATTRIBUTE_EDGE = re.compile(r">|=\s*[\"']")


def excerpt(text, length, ellipsis=False):
    """The first `length` characters of an HTML text's words: tags gone, blocks apart by one space.

    >>> excerpt("<p>Hello <b>w</b>orld</p>", 7), excerpt("ab cd", 3, True)
    ('Hello w', 'ab...')"""
    words = _HtmlWords(length + 1)
    for kind, part in _html_tokens(text):
        words.take(kind, part)
        if words.enough:
            break
    found = words.text()
    if len(found) <= length:
        return found
    return found[:length].strip() + ("..." if ellipsis else "")


class _HtmlWords:
    """Collects the visible words of an HTML token stream and knows when it has enough."""

    def __init__(self, wanted):
        self.wanted, self.parts, self.length, self.dropping, self.depth, self.open = wanted, [], 0, "", 0, Counter()

    @property
    def enough(self):
        return self.length > self.wanted

    def take(self, kind, part):
        if self.dropping:
            self.depth += (part == self.dropping) * {"start": 1, "end": -1}.get(kind, 0)
            self.dropping = self.dropping if self.depth else ""
        elif kind == "text":
            self.add(re.sub(r"[ \t\n\f\r]+", " ", part))
        elif part in _DROPPED_TAGS:
            self.drop(kind, part)
        elif part not in _INLINE_TAGS and (part not in _TABLE_PARTS or self.open["table"]):
            self.block(kind, part)

    def drop(self, kind, tag):
        if kind == "start" and tag not in _VOID_TAGS:
            self.dropping, self.depth = tag, 1

    def block(self, kind, tag):
        if kind == "end" and not self.open[tag]:
            return  # an end tag nobody opened says nothing
        if tag not in _VOID_TAGS:
            self.open[tag] += 1 if kind == "start" else -1
        self.add(" ")

    def add(self, text):
        if self.parts and self.parts[-1].endswith(" ") or not self.parts:
            text = text.removeprefix(" ")
        if text:
            self.parts.append(text)
            self.length += len(text)

    def text(self):
        return "".join(self.parts).strip()


def _html_tokens(text):
    """("text"|"start"|"end", content or tag name) in order. What is never closed ends the text: hostile input costs one pass."""
    at = 0
    while 0 <= at < len(text):
        start = _TAG_START.search(text, at)
        yield "text", html.unescape(text[at : start.start() if start else len(text)])
        if not start:
            return
        at = _tag_end(text, start)
        name = (start["name"] or "").lower()
        if at < 0 or not name:
            continue
        yield "end" if start["end"] else "start", name
        if start["end"]:
            continue
        if name in ("svg", "math") and text[at - 2] == "/":
            yield "end", name
        elif name in _RAW_TAGS:
            end = _raw_end(text, name, at)
            if name in _SHOWN_RAW_TAGS:
                yield "text", text[at : end if end >= 0 else len(text)]
            at = end


def _raw_end(text, name, at):
    """Where the end tag of a raw element stands; -1 if nowhere. A plaintext element has none (HTML, 13.2.5.5)."""
    closing = re.compile(rf"</{name}[\s/>]", re.IGNORECASE).search(text, at) if name != "plaintext" else None
    return closing.start() if closing else -1


def _tag_end(text, start):
    """Where the tag or comment that starts here is over, -1 if it never is. Quotes hide a > only in attribute values."""
    if start["bogus"]:
        closing = "-->" if text.startswith("<!--", start.start()) else ">"
        end = text.find(closing, start.end())
        return end + len(closing) if end >= 0 else -1
    at = start.end()
    while edge := _ATTRIBUTE_EDGE.search(text, at):
        if edge[0] == ">":
            return edge.end()
        at = text.find(edge[0][-1], edge.end()) + 1
        if not at:
            return -1
    return -1


def snake_case(text):
    """`HelloWorldTEST   a--b` -> `hello_world_test_a_b`: ASCII letters and digits, an underscore before a new capital and between words."""
    words = re.sub(r"[^A-Za-z0-9]+", " ", text).split()
    return "_".join([re.sub(r"(?<=[^A-Z])(?=[A-Z])", "_", word) for word in words]).lower()


@functools.lru_cache(1024)
def header_variable(name):
    """A header's name as rules know it: `X-Api--Key` -> `x_api_key`."""
    return snake_case(name)


# ============================================================================
#  3. Errors
# ============================================================================
# The one family of errors that reaches a client, and the exact texts of its
# envelope.  Anything may raise them; only the request boundary (Routes) and
# the batch turn them into answers.  A FieldError is one item of an envelope's
# `data`; nested dicts of FieldErrors mirror nested input.

STATUS_MESSAGES = {
    400: "Something went wrong while processing your request.",
    401: "Missing or invalid authentication.",
    403: "You are not allowed to perform this request.",
    404: "The requested resource wasn't found.",
    413: "Request entity too large.",
    429: "Too Many Requests.",
    500: "Something went wrong while processing your request.",
}

#: code -> message with {params}; every validation that is not a one-off takes its text from here.
FIELD_MESSAGES = {
    "validation_required": "Cannot be blank.",
    "validation_empty": "Must be blank.",
    "validation_nil": "Must be blank.",
    "validation_nil_or_not_empty_required": "Cannot be blank.",
    "validation_invalid_value": "Invalid value.",
    "validation_in_invalid": "Must be a valid value.",
    "validation_not_in_invalid": "Must not be in list.",
    "validation_match_invalid": "Must be in a valid format.",
    "validation_is_email": "Must be a valid email address.",
    "validation_is_url": "Must be a valid URL.",
    "validation_is_domain": "Must be a valid domain.",
    "validation_is_host": "Must be a valid IP address or DNS name.",
    "validation_values_mismatch": "Values don't match.",
    "validation_not_unique": "Value must be unique.",
    "validation_length_out_of_range": "The length must be between {min} and {max}.",
    "validation_length_too_long": "The length must be no more than {max}.",
    "validation_length_too_short": "The length must be no less than {min}.",
    "validation_length_invalid": "The length must be exactly {min}.",
    "validation_min_greater_equal_than_required": "Must be no less than {threshold}.",
    "validation_max_less_equal_than_required": "Must be no greater than {threshold}.",
    "validation_min_text_constraint": "Must be at least {min} character(s).",
    "validation_max_text_constraint": "Must be no more than {max} character(s).",
    "validation_invalid_format": "Invalid value format.",
    "validation_content_size_limit": "The maximum allowed content size is {maxSize} bytes.",
    "validation_not_a_number": "The submitted number is not properly formatted.",
    "validation_only_int_constraint": "Decimal numbers are not allowed.",
    "validation_min_number_constraint": "Must be greater or equal than {min}.",
    "validation_max_number_constraint": "Must be less or equal than {max}.",
    "validation_email_domain_not_allowed": "Email domain is not allowed.",
    "validation_invalid_url": "Must be a valid url.",
    "validation_url_domain_not_allowed": "Url domain is not allowed.",
    "validation_too_many_values": "Select no more than {maxSelect}.",
    "validation_not_enough_values": "Select at least {minSelect}.",
    "validation_missing_rel_collection": "Relation connection is missing or cannot be accessed.",
    "validation_missing_rel_records": "Failed to find all relation records with the provided ids.",
    "validation_too_many_files": "The maximum allowed files is {maxSelect}.",
    "validation_file_size_limit": "Failed to upload {file} - the maximum allowed file size is {maxSize} bytes.",
    "validation_json_size_limit": "The maximum allowed JSON size is {maxSize} bytes.",
    "validation_invalid_json": "Must be a valid json value.",
    "validation_invalid_latitude": "Latitude must be between -90 and 90 degrees.",
    "validation_invalid_longitude": "Longitude must be between -180 and 180 degrees.",
    "validation_pk_change": "The record primary key cannot be changed.",
    "validation_pk_invalid": "The record primary key is invalid or already exists.",
    "validation_invalid_auth_id": "Invalid or duplicated auth record id.",
    "validation_invalid_old_password": "Missing or invalid old password.",
    "validation_invalid_password": "Missing or invalid auth record password.",
    "validation_invalid_new_email": "Invalid new email address.",
    "validation_invalid_token_email": "The new email address is invalid.",
    "validation_invalid_collection_id": "Missing or invalid collection.",
    "validation_invalid_collection_type": "Invalid collection type - must be auth.",
    "validation_invalid_record": "Missing or invalid record.",
    "validation_unsupported_value_type": "Invalid or unsupported value type.",
    "validation_collection_system_flag_change": "System collection state cannot be changed.",
    "validation_collection_type_change": "Collection type cannot be changed.",
    "validation_collection_system_name_change": "System collection name cannot be changed.",
    "validation_collection_system_rule_change": "System collection API rule cannot be changed.",
    "validation_collection_name_exists": "Collection name must be unique (case insensitive).",
    "validation_collection_name_id_duplicate": "The name must not match an existing collection id.",
    "validation_collection_name_invalid": "The name shouldn't match with an existing internal table.",
    "validation_found_via": 'The value cannot contain "_via_".',
    "validation_invalid_or_existing_id": "The model id is invalid or already exists.",
    "validation_missing_primary_key": 'Missing or invalid "id" PK field.',
    "validation_must_be_system_and_hidden": 'The field must be marked as "System" and "Hidden".',
    "validation_must_be_system": 'The field must be marked as "System".',
    "validation_system_field_change": "System fields cannot be deleted or renamed.",
    "validation_field_type_change": "Field type cannot be changed.",
    "validation_duplicated_field_name": "Duplicated or invalid field name {fieldName}.",
    "validation_reserved_field_name": "The field name is reserved and cannot be used.",
    "validation_unsupported_composite_pk": "Composite PKs are not supported and the collection must have only 1 PK.",
    "validation_field_relation_missing_collection": "The relation collection doesn't exist.",
    "validation_field_relation_change": "The relation collection cannot be changed.",
    "validation_relation_field_non_view_base_collection": "Only view collections are allowed to have relations to other views.",
    "validation_invalid_index_expression": "Invalid CREATE INDEX expression.",
    "validation_duplicated_index_name": "The index name already exists.",
    "validation_duplicated_index_definition": "The index definition already exists.",
    "validation_existing_index_name": "The index name is already used in {usedTableName} collection.",
    "validation_indexes_not_supported": "View collections don't support indexes.",
    "validation_invalid_unique_system_field_index":
        "Unique index definition on system fields ({fieldName}) is invalid or missing.",
    "validation_missing_required_unique_index": 'Missing required unique index for field "{fieldName}".',
    "validation_missing_field": "Invalid or missing field {fieldName}.",
    "validation_missing_unique_constraint": "The field {fieldName} doesn't have a UNIQUE constraint.",
    "validation_mfa_not_enough_auths": "MFA requires at least 2 auth methods to be enabled.",
    "validation_missing_provider": "Invalid or missing provider with name {name}.",
    "validation_duplicated_provider": "The provider {name} is already registered.",
    # the spelling is part of the API
    "validation_invlaid_ip_or_subnet": "Invalid IP or CIDR subnet.",
    "validation_conflicting_rate_limit_rule":
        "Rate limit rule configuration with label {label} already exists or conflicts with another rule.",
}


class FieldError(Exception):
    """One `data` item: `FieldError("validation_min_text_constraint", min=3)`; `message` overrides the table's text."""

    def __init__(self, code, message=None, **params):
        super().__init__(code)
        self.code = code
        self.params = params or None
        self.message = sentence(message if message is not None else FIELD_MESSAGES[code].format(**params))

    def without_params(self):
        """The same item with its params only in the text."""
        self.params = None
        return self

    def as_data(self):
        item = {"code": self.code, "message": self.message}
        if self.params:
            item["params"] = dict(sorted(self.params.items()))
        return item


class ApiError(Exception):
    """What the client gets: status, message and (nested) field errors; `raw` is only for the log."""

    def __init__(self, status, message="", data=None, raw=None):
        super().__init__(status, message)
        self.status = status
        self.message = sentence(message) if message else STATUS_MESSAGES.get(status, STATUS_MESSAGES[400])
        self.data = data or {}
        self.raw = raw

    def as_json(self):
        return {"data": error_data(self.data), "message": self.message, "status": self.status}


class PlainError(Exception):
    """A failure whose text the caller shows after its own "Raw error:" (SQL errors, view queries)."""


def sentence(text):
    """`foo bar` -> `Foo bar.`: trimmed, first letter upper-cased, closed by one of `.?!`."""
    text = text.strip()
    if not text:
        return text
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".?!" else text + "."


def error_data(data):
    """Nested FieldErrors as plain JSON data with sorted keys; anything else counts as an invalid value."""
    if isinstance(data, FieldError):
        return data.as_data()
    if isinstance(data, dict):
        return {str(key): error_data(data[key]) for key in sorted(data, key=str)}
    return FieldError("validation_invalid_value").as_data()


#: Codes whose text is written in lower case and without its dot where it stands inside another message.
COMMON_CODES = frozenset("validation_" + word for word in (
    "required", "empty", "nil", "nil_or_not_empty_required", "in_invalid", "not_in_invalid", "match_invalid",
    "is_email", "is_url", "is_domain", "is_host", "length_out_of_range", "length_too_long", "length_too_short", "length_invalid",
    "min_greater_equal_than_required", "max_less_equal_than_required"))


def plain_message(error):
    """A FieldError's text as it stands inside another message."""
    text = error.message
    return text[0].lower() + text[1:].removesuffix(".") if error.code in COMMON_CODES else text


def plain_messages(data):
    """Nested FieldErrors as nested plain texts, the form used inside command line messages and the import error."""
    if isinstance(data, FieldError):
        return plain_message(data)
    return {str(key): plain_messages(data[key]) for key in sorted(data, key=str)}


def bad_request(message="", data=None, raw=None):
    return ApiError(400, message, data, raw)


def unauthorized(message="", data=None):
    return ApiError(401, message, data)


def forbidden(message="", data=None):
    return ApiError(403, message, data)


def not_found(message="", data=None):
    return ApiError(404, message, data)


def too_large():
    return ApiError(413)


# ---- checks: one value in, a FieldError or None out; tables of them describe forms, settings and options

def required(value):
    return FieldError("validation_required") if value in ("", 0, None, False) or value == [] or value == {} else None


def length(least, most):
    """Bytes, as PocketBase counts them; blank values pass (`required` speaks for those)."""
    def check(value):
        size = len(value.encode()) if isinstance(value, str) else len(value)
        if not value or least <= size <= most:
            return None
        if least == most:
            return FieldError("validation_length_invalid", min=least, max=most)
        if not least:
            return FieldError("validation_length_too_long", min=least, max=most)
        return FieldError("validation_length_out_of_range", min=least, max=most)
    return check


def at_least(threshold):
    """0 counts as blank and passes unless the threshold is the point of the check (negative numbers)."""
    def check(value):
        return FieldError("validation_min_greater_equal_than_required", threshold=threshold) if value and value < threshold else None
    return check


def at_most(threshold):
    def check(value):
        return FieldError("validation_max_less_equal_than_required", threshold=threshold) if value and value > threshold else None
    return check


def matches(pattern, code="validation_match_invalid"):
    """Blank passes."""
    test = re.compile(pattern)
    return lambda value: FieldError(code) if value and not test.search(value) else None


def satisfies(predicate, code):
    """Blank passes."""
    return lambda value: FieldError(code) if value and not predicate(value) else None


def one_of(*allowed):
    return satisfies(lambda value: value in allowed, "validation_in_invalid")


def first_error(value, *checks):
    """The first failing check's error, or None."""
    for check in checks:
        error = check(value)
        if error:
            return error
    return None


def collect_errors(form, table):
    """`{"email": (required, length(1, 255))}` over a dict -> {name: FieldError} of those that fail; dotted names reach inside."""
    errors = {}
    for path, checks in table.items():
        value = form
        for name in path.split("."):
            value = value[name]
        error = first_error(value, *checks)
        if error:
            put_error(errors, path, error)
    return errors


def put_error(errors, path, error):
    """Places an error at a dotted path of nested dicts; the first one at a place stays."""
    names = path.split(".")
    for name in names[:-1]:
        errors = errors.setdefault(name, {})
        if isinstance(errors, FieldError):
            return
    errors.setdefault(names[-1], error)


# ---- shapes: typed forms.  A shape is a dict name -> kind; a kind is one of the words below, a nested shape, or a
# one-element list [shape] (a list of objects).  The default of a kind is its zero value.

KIND_ZERO = {"text": "", "int": 0, "bool": False, "texts": [], "text?": None, "bool?": None, "number?": None, "map": {}, "any": None, "date": ""}


class ShapeError(ValueError):
    """Input that does not fit its shape (wrong JSON type)."""


def zero_of(kind):
    if isinstance(kind, dict):
        return {name: zero_of(inner) for name, inner in kind.items()}
    if isinstance(kind, list):
        return []
    zero = KIND_ZERO[kind]
    return zero.copy() if isinstance(zero, (list, dict)) else zero


def _is_whole(value):
    return isinstance(value, int) and not isinstance(value, bool)


_KIND_TESTS = {
    "text": lambda v: isinstance(v, str),
    "text?": lambda v: isinstance(v, str),
    "int": _is_whole,
    "bool": lambda v: isinstance(v, bool),
    "bool?": lambda v: isinstance(v, bool),
    "number?": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    "texts": lambda v: isinstance(v, list) and all(x is None or isinstance(x, str) for x in v),
    "map": lambda v: isinstance(v, dict),
    "any": lambda v: True,
    "date": lambda v: True,
}


def fit(kind, value, current=None, fold=False):
    """`value` checked against `kind`, objects merged over `current`; None means the zero value.

    `fold` lets keys match in any letter case (top-level forms); unknown keys are dropped.
    """
    if value is None:
        return zero_of(kind)
    if isinstance(kind, dict):
        return fit_object(kind, value, current, fold)
    if isinstance(kind, list):
        if not isinstance(value, list):
            raise ShapeError("expected a list")
        return [fit_object(kind[0], item, None, fold) if item is not None else zero_of(kind[0]) for item in value]
    if not _KIND_TESTS[kind](value):
        raise ShapeError(f"unexpected {type(value).__name__} for {kind}")
    if kind == "texts":
        return [x or "" for x in value]
    if kind == "date":
        return parse_date(value)
    if kind == "map":
        return {**(current or {}), **value}
    return value


def fit_object(shape, data, current=None, fold=False):
    """A whole object: `fit_object({"email": "text"}, {"Email": "a"}, fold=True)` -> {"email": "a"}."""
    if not isinstance(data, dict):
        raise ShapeError("expected an object")
    out = {name: (current[name] if current is not None and name in current else zero_of(kind)) for name, kind in shape.items()}
    folded = {name.lower(): name for name in shape} if fold else None
    for key, value in data.items():
        name = key if key in shape else folded and folded.get(key.lower())
        if name:
            out[name] = fit(shape[name], value, out[name], fold)
    return out


def load_form(shape, data, message="An error occurred while loading the submitted data."):
    """A request body as a form, or the 400 that PocketBase gives."""
    try:
        return fit_object(shape, {} if data is None else data, fold=True)
    except ShapeError as error:
        raise bad_request(message, raw=str(error)) from None


def check_form(form, table, message="An error occurred while validating the submitted data."):
    errors = collect_errors(form, table)
    if errors:
        raise bad_request(message, errors)


# ============================================================================
#  4. Store
# ============================================================================
# The only chapter that talks to SQLite.  A Store is one database file.
#
# Reads run inline on the hub with a time budget: a progress handler aborts a
# statement that takes too long, and it runs again in a native thread with a
# connection of its own (its text is remembered, so the next time it goes there
# at once).  Small queries pay nothing, big ones stall nobody.
#
# Writes are jobs of one writer greenlet: FIFO, each in a savepoint, and all jobs
# that wait together share one COMMIT (group commit) and wake after it.  A job may
# read and write through its Transaction; nothing of it is seen before the COMMIT,
# and what it registered with `after_commit` runs only then.

READ_BUDGET = 0.003         # seconds a statement may hold the hub before it moves to a thread
PROGRESS_STEPS = 2000       # VM steps between two looks at the clock: 20-40 us of SQLite work
ANSWER_BYTES = 16 << 20     # of answers remembered until their tables change
ANSWER_OVERHEAD = 400       # bytes that remembering one costs beside itself
SLOW_REPEATS = 64           # times a statement that ran over budget goes straight to a thread before it is tried inline again
WRITE_SLICE = 0.004         # seconds of writing after which the hub may breathe
BATCH_JOBS = 256            # jobs that share one COMMIT at most: bounds the wait of the first
CHECKPOINT_PAGES = 2000     # WAL pages (8 MB) after which a checkpoint is worth a thread
BUSY_WAITS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 1, 2, 4)   # seconds between tries while another process writes

#: What a SQL statement needs of its engine; the filter compiler and the fields read these words instead of writing SQLite's.
DIALECT = {
    "name": "sqlite",
    "random_id": "('r'||lower(hex(randomblob(7))))",
    "rowid": "_rowid_",
    "random": "RANDOM()",
}

PRAGMAS = ("busy_timeout = 10000", "journal_mode = WAL", "journal_size_limit = 200000000", "foreign_keys = ON",
           "temp_store = MEMORY", "cache_size = -32000")


def quote_name(name):
    """An SQL identifier: `a` -> `` `a` ``; the one place where a name becomes SQL."""
    return "`" + name.replace("`", "``") + "`"


def placeholders(values):
    """`?,?,?` for a list of bound values."""
    return ",".join("?" * len(values))


def in_thread(pool, function, *args):
    """Runs pure C work (SQLite, bcrypt, file I/O) in a native thread while the hub serves others; outside of a hub, inline."""
    result, error = pool.apply(_attempt, (function, args))
    if error is not None:
        raise error
    return result


def _attempt(function, args):
    """(result, exception): one that leaves a native thread would be printed, whoever handles it."""
    try:
        return function(*args), None
    except BaseException as error:
        return None, error


class QueryTimeout(Exception):
    """A read that took longer than --queryTimeout."""


class Transaction:
    """What a write job works with: reads see the job's own writes; valid only while the job runs."""

    __slots__ = ("store", "touched", "on_commit", "on_rollback", "_depth")

    def __init__(self, store):
        self.store = store
        self.touched = set()
        self.on_commit = []
        self.on_rollback = []
        self._depth = 0

    def read(self, sql, params=()):
        """Rows (tuples), this transaction's writes included."""
        return self.store.writer_read(sql, params)

    def write(self, sql, params=()):
        """Runs one statement that changes rows; returns their number. What was remembered of its table falls at the commit."""
        self.touched.add(_changed_table(sql))
        return self.store.writer_write(sql, params)

    def heavy(self, sql, params=()):
        """A statement that may take long (DDL, bulk copies): runs in a native thread while the hub serves reads."""
        return self.store.writer_heavy(sql, params)

    def touch(self, *tables):
        """Names tables that `heavy` changes."""
        self.touched.update(tables)

    def after_commit(self, function, *args):
        self.on_commit.append((function, args))

    def after_rollback(self, function, *args):
        self.on_rollback.append((function, args))

    def transaction(self, work):
        """A transaction inside this one: a savepoint; what it registered is forgotten when it fails."""
        self._depth += 1
        name = f"inner{self._depth}"
        marks = len(self.on_commit), len(self.on_rollback)
        self.store.writer_write("SAVEPOINT " + name)
        try:
            result = work(self)
        except BaseException:
            self.store.writer_write("ROLLBACK TO " + name)
            self.store.writer_write("RELEASE " + name)
            undo = self.on_rollback[marks[1]:]
            del self.on_commit[marks[0]:]
            del self.on_rollback[marks[1]:]
            run_callbacks(undo)
            raise
        finally:
            self._depth -= 1
        self.store.writer_write("RELEASE " + name)
        return result


_CHANGING = re.compile(r"\s*(?:(?:INSERT|REPLACE)(?: OR \w+)? INTO|UPDATE(?: OR \w+)?|DELETE FROM)\s+`((?:[^`]|``)+)`", re.I)


@functools.lru_cache(2000)
def _changed_table(sql):
    """The table whose rows a statement changes: "UPDATE `a` SET ..." -> "a"; "" for none."""
    match = _CHANGING.match(sql)
    return match[1].replace("``", "`") if match else ""


def run_callbacks(callbacks):
    """Each runs, whatever the others do: a listener's error is its own and only logged."""
    for function, args in callbacks:
        try:
            function(*args)
        except Exception:                       # the boundary of a listener (CVE-2026-82410: one exception ended the process)
            LOG.exception("a listener failed: %r", function)


class _Job:
    __slots__ = ("work", "alone", "waiter", "tx", "result", "error")

    def __init__(self, work, alone):
        self.work = work
        self.alone = alone
        self.waiter = gevent.hub.Waiter()
        self.tx = self.result = self.error = None


class Store:
    """One SQLite file: `read`, `transaction`, and nothing else for callers.

    >>> store = Store("pb_data/data.db")
    >>> store.read("SELECT count(*) FROM users")
    [(3,)]
    >>> store.transaction(lambda tx: tx.write("DELETE FROM users WHERE id=?", ("x",)))
    """

    def __init__(self, path, sync="normal", query_timeout=30, trace=None):
        self.path = path
        self._trace = trace                 # hears each statement's text (--dev)
        self.sync = sync
        self.query_timeout = query_timeout
        self.version = 0                    # commits of this process and changes by others
        self._floor = 0                     # version of the last change by another process: of any table
        self.table_versions = {}            # table -> version of its last change
        self.on_foreign_change = []         # called after another process wrote to the file
        self._now = gevent.get_hub().loop.now
        self._threads = gevent.threadpool.ThreadPool(4)
        self._commit_thread = gevent.threadpool.ThreadPool(1)
        self._writer = self._connect()
        self._writer.execute("PRAGMA synchronous = " + ("FULL" if sync == "full" else "NORMAL"))
        self._writer.execute("PRAGMA wal_autocheckpoint = 0")
        self._writer.execute("PRAGMA busy_timeout = 0")         # _begin waits on the hub instead
        self._reader = self._connect(read_only=True)
        self._reader.set_progress_handler(self._over_budget, PROGRESS_STEPS)
        self._deadline = 0.0
        self._slow = Memo(1000)             # statement -> how often it still goes to a thread at once
        self._idle_readers = []
        self._jobs = collections.deque()
        self._greenlet = self._idle_waiter = None
        self._writing = False               # a job or commit of the writer is under way
        self._slice_end = 0.0               # when the writer lets the hub breathe next
        self._answers = Memo(ANSWER_BYTES)  # key -> (stamp, answer)
        self._round = 0.0                   # the pass of the hub in which other processes were last looked for
        self._seen = self._data_version()
        self._chained = self._has_chains()  # a write to one table may change others
        self.closed = False

    def _connect(self, read_only=False):
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, cached_statements=512)
        db.set_trace_callback(self._trace)
        for pragma in PRAGMAS:
            db.execute("PRAGMA " + pragma)
        if read_only:
            db.execute("PRAGMA query_only = ON")
        return db

    # ---- reads

    def _over_budget(self):
        return perf_counter() > self._deadline

    def read(self, sql, params=()):
        """All rows of a SELECT as tuples, from the last committed state."""
        if self._slow and self._is_slow(sql):
            return self._read_in_thread(sql, params)
        self._deadline = perf_counter() + READ_BUDGET
        try:
            return self._reader.execute(sql, params).fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                raise
        self._slow.keep(sql, SLOW_REPEATS)
        return self._read_in_thread(sql, params)

    def _is_slow(self, sql):
        left = self._slow.get(sql, 0)
        if left:
            self._slow[sql] = left - 1
        return left > 0

    def _read_in_thread(self, sql, params):
        db = self._idle_readers.pop() if self._idle_readers else self._connect(read_only=True)
        timer = gevent.get_hub().loop.timer(self.query_timeout)
        timer.start(db.interrupt)
        try:
            return in_thread(self._threads, _fetch_all, db, sql, params)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                raise QueryTimeout(f"the query took more than {self.query_timeout} s") from None
            raise
        finally:
            timer.close()
            self._idle_readers.append(db)

    def total(self, sql, params, tables):
        """The single number of a counting SELECT, remembered."""
        return self.remembered((sql, *params), tables, lambda: self.read(sql, params)[0][0])

    def remembered(self, key, tables, work):
        """`work()` (a number or a text that follows from the rows of `tables`), remembered by its key until one of them changes.
        None as tables: not remembered, since something else decides as well (the clock, chance)."""
        if tables is None:
            return work()
        stamp = self.stamp(tables)
        known = self._answers.get(key)
        if known and known[0] == stamp:
            return known[1]
        answer = work()
        self._answers.keep(key, (stamp, answer), ANSWER_OVERHEAD + sys.getsizeof(answer))
        return answer

    def stamp(self, tables):
        """A value that changes whenever one of the tables does."""
        if self._round != self._now() and not self._writing:        # while it writes its connection cannot be asked, and nobody else writes
            self._notice_foreign_change()
        versions = self.table_versions
        return max([versions.get(table, 0) for table in tables], default=0), self._floor

    # ---- writes

    def transaction(self, work, alone=False):
        """Runs `work(tx)` in the writer and returns its result after the COMMIT; an exception rolls the job back and comes out here.

        `alone`: shares its COMMIT with no other job, so that what listens to the commit is done before the next job begins.
        """
        if self.closed:
            raise RuntimeError("the store is closed")
        if gevent.getcurrent() is self._greenlet:
            raise RuntimeError("a write job asked for a transaction of its own: use tx.transaction")
        job = _Job(work, alone)
        self._jobs.append(job)
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._write_forever)
        else:
            self._wake_writer()
        job.waiter.get()
        if job.error is not None:
            raise job.error
        return job.result

    def _wake_writer(self):
        waiter, self._idle_waiter = self._idle_waiter, None
        if waiter is not None:
            gevent.get_hub().loop.run_callback(waiter.switch, None)

    def _write_forever(self):
        while not self.closed:
            if not self._jobs:
                self._idle_waiter = gevent.hub.Waiter()
                self._idle_waiter.get()
                continue
            self._writing = True
            try:
                self._write_batch()
            except Exception:                   # nothing may end the writer
                LOG.exception("the writer failed")
            finally:
                self._writing = False

    def _write_batch(self):
        batch = []
        try:
            self._begin()
            self._run_jobs(batch)
            self._commit()
            error = None
        except Exception as failure:            # BEGIN or COMMIT failed (disk full, busy for long): every job of the batch failed
            error = failure
            self._rollback()
            if not batch and self._jobs:
                batch.append(self._jobs.popleft())
        self._finish(batch, error)

    def _begin(self):
        """BEGIN IMMEDIATE; waits without blocking the hub while another process holds the write lock."""
        db = self._writer
        for wait in (*BUSY_WAITS, None):
            try:
                db.execute("BEGIN IMMEDIATE")
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or wait is None:
                    raise
            gevent.sleep(wait)
        self._notice_foreign_change()

    def _run_jobs(self, batch):
        self._slice_end = perf_counter() + WRITE_SLICE
        while self._jobs and len(batch) < BATCH_JOBS and not (batch and self._jobs[0].alone):
            job = self._jobs.popleft()
            batch.append(job)
            self._run_job(job)
            if job.alone:
                return
            self._breathe()

    def _run_job(self, job):
        db = self._writer
        job.tx = tx = Transaction(self)
        db.execute("SAVEPOINT job")
        try:
            job.result = job.work(tx)
        except BaseException as error:
            if not db.in_transaction:           # SQLite gave up the whole transaction (disk full, interrupted write)
                raise
            db.execute("ROLLBACK TO job")
            job.error = error
        db.execute("RELEASE job")

    def _commit(self):
        if self.sync == "full":                 # the fsync takes milliseconds: not on the hub
            in_thread(self._commit_thread, self._writer.execute, "COMMIT")
        else:
            self._writer.execute("COMMIT")

    def _rollback(self):
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")

    def _finish(self, batch, error):
        """Wakes the batch's callers; listeners of the commit run first, so that an answered client finds caches fresh."""
        callback = gevent.get_hub().loop.run_callback
        for job in batch:
            if error is not None and job.error is None:
                job.error = error
            if job.error is None:
                self._note_touched(job.tx.touched)
                run_callbacks(job.tx.on_commit)
            elif job.tx is not None:
                run_callbacks(job.tx.on_rollback)
            callback(job.waiter.switch, None)

    def _note_touched(self, tables):
        self.version += 1
        if self._chained:
            self._floor = self.version
        for table in tables:
            self.table_versions[table] = self.version

    def writer_read(self, sql, params):
        db = self._writer
        self._deadline = perf_counter() + READ_BUDGET
        db.set_progress_handler(self._over_budget, PROGRESS_STEPS)
        try:
            return db.execute(sql, params).fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                raise
        finally:
            db.set_progress_handler(None, 0)    # an interrupted write would take the whole transaction with it
        return in_thread(self._threads, _fetch_all, db, sql, params)

    def writer_write(self, sql, params=()):
        self._breathe()
        return self._writer.execute(sql, params).rowcount

    def _breathe(self):
        """Inside a long job (a cascade, an import): lets the hub serve reads now and then. The writer stays the job's own."""
        if perf_counter() > self._slice_end:
            gevent.sleep(0)
            self._slice_end = perf_counter() + WRITE_SLICE

    def writer_heavy(self, sql, params):
        return in_thread(self._threads, _run_statement, self._writer, sql, params)

    # ---- other processes, checkpoints, end

    def _data_version(self):
        return self._writer.execute("PRAGMA data_version").fetchone()[0]

    def _notice_foreign_change(self):
        """SQLite's data_version moves only when another connection that can write did. Asked once in a pass of the hub: the requests of
        a pass came in before it."""
        self._round = self._now()
        seen = self._data_version()
        if seen != self._seen:
            self._seen = seen
            self.forget()
            run_callbacks([(function, ()) for function in self.on_foreign_change])

    def _has_chains(self):
        """Whether somebody gave the database triggers or foreign keys: then a statement does not tell which tables it changes."""
        return bool(self._writer.execute("SELECT 1 FROM sqlite_master WHERE type='trigger' OR sql LIKE '%REFERENCES%' LIMIT 1").fetchone())

    def forget(self):
        """Drops what is remembered of the rows."""
        self._chained = self._has_chains()
        self.version += 1
        self._floor = self.version
        self._answers.clear()

    def look_around(self):
        """The once-a-second duty: other processes' writes, and a checkpoint when the WAL has grown."""
        if self._writing or self.closed:
            return
        self._notice_foreign_change()
        try:
            pages = os.path.getsize(self.path + "-wal") // 4096
        except OSError:
            return
        if pages > CHECKPOINT_PAGES:
            self.checkpoint("PASSIVE")

    def checkpoint(self, mode):
        """Moves the WAL's pages into the database file, in a thread, on a connection of its own."""
        db = self._connect()
        try:
            return in_thread(self._threads, _fetch_all, db, f"PRAGMA wal_checkpoint({mode})", ())
        finally:
            db.close()

    def backup_into(self, path):
        """A consistent copy of the database at `path` (VACUUM INTO)."""
        db = self._connect()
        try:
            in_thread(self._threads, _fetch_all, db, "VACUUM INTO ?", (path,))
        finally:
            db.close()

    # ---- the superusers' SQL console

    def console_write(self, sql, limit):
        """(affected rows, [], []) of one or more changing statements, all or nothing."""
        def work(tx):
            return sum(max(in_thread(self._threads, _run_statement, self._writer, statement, ()), 0) for statement in split_statements(sql))
        affected = self.transaction(work, alone=True)
        self.forget()
        run_callbacks([(function, ()) for function in self.on_foreign_change])
        return affected, [], []

    def console_read(self, sql, limit):
        """(0, column names, rows) of the last statement; the connection cannot write."""
        db = self._connect(read_only=True)
        db.set_authorizer(_deny_attach)
        timer = gevent.get_hub().loop.timer(self.query_timeout)
        timer.start(db.interrupt)
        try:
            return in_thread(self._threads, _run_console, db, split_statements(sql), limit)
        finally:
            timer.close()
            db.close()

    def close(self):
        """Ends the writer after the jobs that wait, folds the WAL into the file and lets go of it."""
        while self._jobs or self._writing:
            gevent.sleep(0.005)
        self.closed = True
        self._wake_writer()
        for db in (*self._idle_readers, self._reader):
            db.close()
        try:
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.OperationalError:        # another process still reads: SQLite recovers the WAL at the next open
            pass
        self._writer.close()


def _fetch_all(db, sql, params):
    return db.execute(sql, params).fetchall()


def split_statements(text):
    """The statements of an SQL text: `a; b` -> ["a;", "b"]; semicolons inside strings, comments and triggers do not count."""
    statements, current = [], ""
    for piece in text.split(";"):
        current += piece + ";"
        if sqlite3.complete_statement(current):
            if current.strip(" \t\r\n;"):
                statements.append(current)
            current = ""
    if current.strip(" \t\r\n;"):
        statements.append(current[:-1])
    if not statements:
        raise PlainError("empty query")
    return statements


def _deny_attach(action, *_):
    return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_ATTACH else sqlite3.SQLITE_OK


def _run_console(db, statements, limit):
    for statement in statements:
        cursor = db.execute(statement)
        rows = cursor.fetchmany(limit)
    return 0, [column[0] for column in cursor.description or ()], rows


def _run_statement(db, sql, params):
    return db.execute(sql, params).rowcount


def sqlite_message(error):
    """SQLite's words as PocketBase prints them: `SQL logic error: no such column: x (1)`."""
    code = getattr(error, "sqlite_errorcode", 1)
    family = {1: "SQL logic error", 5: "database is locked", 8: "attempt to write a readonly database", 13: "database or disk is full",
              19: "constraint failed", 20: "datatype mismatch", 25: "column index out of range"}.get(code & 0xFF, "SQL logic error")
    return f"{family}: {error} ({code})"


class DirectoryLock:
    """One server a data directory: an flock on the directory itself, so that no extra file lies in it."""

    def __init__(self, path):
        self._fd = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise PlainError(f"the data directory {path} is already served by another process") from None

    def release(self):
        os.close(self._fd)


# ============================================================================
#  5. Settings
# ============================================================================
# The settings tree as tables: its shape, defaults, checks and secrets.  Stored
# as one JSON text (row `settings` of `_params`), plain or encrypted with
# AES-256-GCM.  Values here are plain nested dicts in the shape's order; who may
# read or change them is decided in Routes.

_S3_SHAPE = {"enabled": "bool", "bucket": "text", "region": "text", "endpoint": "text", "accessKey": "text", "secret": "text",
             "forcePathStyle": "bool"}

SETTINGS_SHAPE = {
    "superuserIPs": "texts",
    "smtp": {"enabled": "bool", "port": "int", "host": "text", "username": "text", "password": "text", "authMethod": "text",
             "tls": "bool", "localName": "text"},
    "backups": {"cron": "text", "cronMaxKeep": "int", "s3": _S3_SHAPE},
    "s3": _S3_SHAPE,
    "meta": {"accentColor": "text", "appName": "text", "appURL": "text", "senderName": "text", "senderAddress": "text", "hideControls": "bool"},
    "rateLimits": {"rules": [{"label": "text", "audience": "text", "duration": "int", "maxRequests": "int"}], "excludedIPs": "texts",
                   "enabled": "bool"},
    "trustedProxy": {"headers": "texts", "useLeftmostIP": "bool"},
    "batch": {"enabled": "bool", "maxRequests": "int", "timeout": "int", "maxBodySize": "int"},
    "logs": {"maxDataSize": "int", "maxDays": "int", "minLevel": "int", "logIP": "bool", "logAuthId": "bool"},
}

SETTINGS_DEFAULTS = {
    "smtp": {"port": 587, "host": "smtp.example.com"},
    "backups": {"cronMaxKeep": 3},
    "meta": {"accentColor": "#1055c9", "appName": "Acme", "appURL": "http://localhost:8090", "senderName": "Support",
             "senderAddress": "support@example.com"},
    "rateLimits": {"rules": [
        {"label": "*:auth", "audience": "", "duration": 3, "maxRequests": 2},
        {"label": "*:create", "audience": "", "duration": 5, "maxRequests": 20},
        {"label": "/api/batch", "audience": "", "duration": 1, "maxRequests": 3},
        {"label": "/api/", "audience": "", "duration": 10, "maxRequests": 300}]},
    "batch": {"maxRequests": 50, "timeout": 3},
    "logs": {"maxDays": 5, "logIP": True},
}

#: Keys that no answer shows; `secret` is also left out of the stored text while empty.
SETTINGS_SECRETS = (("smtp", "password"), ("backups", "s3", "secret"), ("s3", "secret"))

RATE_LIMIT_LABEL = r"^(\w+ \/[\w\/-]*|\/[\w\/-]*|\w+:\w+|\*:\w+|\w+)$"


def at_least_anyway(threshold):
    """at_least for numbers whose zero is a value: negative ones fail too."""
    return lambda value: FieldError("validation_min_greater_equal_than_required", threshold=threshold) if value < threshold else None


#: Checked always.
SETTINGS_CHECKS = {
    "smtp.port": (at_least_anyway(0),),
    "smtp.host": (satisfies(lambda v: is_host(v), "validation_is_host"),),
    "smtp.authMethod": (one_of("PLAIN", "LOGIN"),),
    "smtp.localName": (satisfies(lambda v: is_host(v), "validation_is_host"),),
    "backups.cronMaxKeep": (at_least_anyway(0),),
    "backups.s3.endpoint": (satisfies(lambda v: is_url(v), "validation_is_url"),),
    "s3.endpoint": (satisfies(lambda v: is_url(v), "validation_is_url"),),
    "meta.accentColor": (length(7, 7), matches(r"^#[0-9a-fA-F]{6}$", "validation_is_hex_color")),
    "meta.appName": (required, length(1, 255)),
    "meta.appURL": (required, satisfies(lambda v: is_url(v), "validation_is_url")),
    "meta.senderName": (required, length(1, 255)),
    "meta.senderAddress": (required, satisfies(lambda v: is_email(v), "validation_is_email")),
    "batch.maxRequests": (at_least_anyway(0),),
    "batch.timeout": (at_least_anyway(0),),
    "batch.maxBodySize": (at_least_anyway(0),),
    "logs.maxDataSize": (at_least_anyway(0),),
    "logs.maxDays": (at_least_anyway(0),),
}

#: switch -> keys that must not be blank while it is on.
SETTINGS_REQUIRED_WHILE = {
    "smtp.enabled": ("smtp.host", "smtp.port"),
    "backups.s3.enabled": tuple("backups.s3." + k for k in ("bucket", "region", "endpoint", "accessKey", "secret")),
    "s3.enabled": tuple("s3." + k for k in ("bucket", "region", "endpoint", "accessKey", "secret")),
    "backups.cron": ("backups.cronMaxKeep",),
    "rateLimits.enabled": ("rateLimits.rules",),
    "batch.enabled": ("batch.maxRequests", "batch.timeout"),
}

RATE_LIMIT_CHECKS = {
    "label": (required, matches(RATE_LIMIT_LABEL)),
    "audience": (one_of("", "@guest", "@auth"),),
    "duration": (required, at_least(1)),
    "maxRequests": (required, at_least(1)),
}


def default_settings():
    """The settings of a fresh install."""
    return fit_object(SETTINGS_SHAPE, copy.deepcopy(SETTINGS_DEFAULTS), zero_of(SETTINGS_SHAPE)) | {
        "backups": fit_object(SETTINGS_SHAPE["backups"], SETTINGS_DEFAULTS["backups"])}


def pick_path(tree, path):
    for name in path.split("."):
        tree = tree[name]
    return tree


def check_settings(settings):
    """Nested FieldErrors of a whole settings tree; empty when it is fine."""
    errors = {}
    for switch, paths in SETTINGS_REQUIRED_WHILE.items():
        if pick_path(settings, switch):
            for path in paths:
                error = required(pick_path(settings, path))
                if error:
                    put_error(errors, path, error)
    for path, checks in SETTINGS_CHECKS.items():
        error = first_error(pick_path(settings, path), *checks)
        if error:
            put_error(errors, path, error)
    for index, ip in enumerate(settings["superuserIPs"]):
        error = first_error(ip, required, satisfies(is_ip_or_subnet, "validation_invlaid_ip_or_subnet"))
        if error:
            put_error(errors, f"superuserIPs.{index}", error)
    _check_cron(settings, errors)
    _check_rate_limits(settings["rateLimits"], errors)
    return errors


def _check_cron(settings, errors):
    try:
        settings["backups"]["cron"] and parse_cron(settings["backups"]["cron"])
    except ValueError as error:
        put_error(errors, "backups.cron", FieldError("validation_invalid_cron", str(error)))


def _check_rate_limits(limits, errors):
    for index, ip in enumerate(limits["excludedIPs"]):
        error = first_error(ip, required, satisfies(is_ip_or_subnet, "validation_invlaid_ip_or_subnet"))
        if error:
            put_error(errors, f"rateLimits.excludedIPs.{index}", error)
    for index, rule in enumerate(limits["rules"]):
        for name, error in collect_errors(rule, RATE_LIMIT_CHECKS).items():
            put_error(errors, f"rateLimits.rules.{index}.{name}", error)
        for other in limits["rules"][:index]:
            if other["label"] == rule["label"] and (not other["audience"] or not rule["audience"] or other["audience"] == rule["audience"]):
                put_error(errors, f"rateLimits.rules.{index}.label", FieldError("validation_conflicting_rate_limit_rule", label=rule["label"]))


def is_ip_or_subnet(text):
    try:
        return bool(ipaddress.ip_network(text, strict=False) if "/" in text else ipaddress.ip_address(text))
    except ValueError:
        return False


def ip_listed(ip, entries):
    """Whether an address is one of, or inside one of, the listed addresses and subnets."""
    address = ipaddress.ip_address(ip)
    return any(address in ipaddress.ip_network(entry, strict=False) for entry in entries)


def network_of(ip):
    """What counts as one client: an IPv4 address (mapped into IPv6 or not), or the /64 of an IPv6 one, since a single host has a whole /64."""
    if ":" not in ip:
        return ip
    address = ipaddress.ip_address(ip)
    return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))


def redacted_settings(settings):
    """A copy without secrets: what the API shows."""
    shown = copy.deepcopy(settings)
    for path in SETTINGS_SECRETS:
        part = shown
        for name in path[:-1]:
            part = part[name]
        part.pop(path[-1], None)
    return shown


def pack_settings(settings, key=None):
    """The stored form: JSON bytes, or with a key the encrypted text."""
    stored = copy.deepcopy(settings)
    for part in (stored["s3"], stored["backups"]["s3"]):
        if not part["secret"]:
            del part["secret"]
    text = to_json(stored)
    return encrypt(text.encode(), key) if key else text.encode()


def unpack_settings(value, key=None, key_name=""):
    """Settings from their stored form; missing keys take their defaults. Raises PlainError when they cannot be read."""
    raw = value.encode() if isinstance(value, str) else value
    try:
        data = json.loads(raw)
    except ValueError:
        if not key:
            raise PlainError(f'invalid settings db data or missing encryption key "{key_name}"') from None
        data = json.loads(decrypt(raw, key))
    try:
        return fit_object(SETTINGS_SHAPE, data, default_settings())
    except ShapeError as error:
        raise PlainError(f"invalid settings db data: {error}") from None


# ---- cron expressions (the automatic backup's schedule is one)

CRON_MACROS = {
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}
CRON_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))


def parse_cron(expression):
    """`*/5 0 1-3,7 * *` -> five sets of allowed numbers (minute, hour, day, month, weekday; 0 is Sunday)."""
    segments = CRON_MACROS.get(expression, expression).split(" ")
    if len(segments) != 5:
        raise ValueError("invalid cron expression - must be a valid macro or to have exactly 5 space separated segments")
    return tuple(_cron_segment(segment, *bounds) for segment, bounds in zip(segments, CRON_RANGES))


def _cron_segment(segment, least, most):
    allowed = set()
    for part in segment.split(","):
        span, *steps = part.split("/")
        if len(steps) > 1:
            raise ValueError("invalid segment step format - must be in the format */n or 1-30/n")
        step = _cron_number(steps[0], 1, most, f"invalid segment step boundary - the step must be between 1 and the {most}") if steps else 1
        first, last = _cron_span(span, least, most, step)
        allowed.update(range(first, last + 1, step))
    return allowed


def _cron_span(span, least, most, step):
    if span == "*":
        return least, most
    parts = span.split("-")
    if len(parts) == 1:
        if step > 1:
            raise ValueError("invalid segment step - step > 1 could be used only with the wildcard or range format")
        value = _cron_number(parts[0], least, most, "invalid segment value - must be between the min and max of the segment")
        return value, value
    if len(parts) > 2:
        raise ValueError("invalid segment range format - the range must have 1 or 2 parts")
    first = _cron_number(parts[0], least, most, f"invalid segment range minimum - must be between {least} and {most}")
    return first, _cron_number(parts[1], first, most, f"invalid segment range maximum - must be between {first} and {most}")


def _cron_number(text, least, most, message):
    if not text.isdecimal() or not least <= int(text) <= most:
        raise ValueError(message)
    return int(text)


# ============================================================================
#  6. Events
# ============================================================================
# Named events with before, after and after-commit.  A handler takes the event
# and calls `event.next()` to let the rest happen: what stands before the call
# runs going in, what stands after it coming out; raising stops the chain and
# rolls the write back.  `record_after_*_success` runs after the COMMIT and
# never on rollback.  With no listener a chain costs one dict look-up.

class Event:
    """What travels through a chain; free attributes (`record`, `collection`, `request`, ...) given by whoever fires it."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def next(self):
        """Continues with the next handler, at the end with the work itself; returns its result."""
        return self._rest()


class Events:
    """Who listens to what, in which order."""

    def __init__(self):
        self._handlers = {}             # name -> [(priority, number, id, tags, function)], sorted
        self._count = 0

    def on(self, name, function, tags=(), priority=0, id=None):
        """Binds a handler; the same id replaces the earlier one. `tags`: collection names or ids it is limited to."""
        handlers = self._handlers.setdefault(name, [])
        if id is not None:
            handlers[:] = [h for h in handlers if h[2] != id]
        self._count += 1
        handlers.append((priority, self._count, id, frozenset(tags), function))
        handlers.sort(key=lambda h: h[:2])
        return function

    def off(self, name, id):
        self._handlers[name] = [h for h in self._handlers.get(name, ()) if h[2] != id]

    def listened(self, *names):
        """Whether anybody listens to one of these."""
        for name in names:
            if self._handlers.get(name):
                return True
        return False

    def fire(self, names, work, **attributes):
        """Runs `work(event)` inside the handlers of the named events, the first name outermost; returns its result.

        `fire(("record_create", "model_create"), insert, record=r, collection=c)`
        """
        event = Event(**attributes)
        if not self.listened(*names):
            return work(event)
        self._run([handler for name in names for handler in self._handlers.get(name, ())], work, event)
        return event.result

    @staticmethod
    def _run(chain, work, event):
        event.result = None             # stays None when a handler stops the chain
        collection = getattr(event, "collection", None)
        marks = {collection.id, collection.name} if collection is not None else set()
        left = [h[4] for h in chain if not h[3] or h[3] & marks]

        def rest():
            if left:
                return left.pop(0)(event)
            event.result = work(event)
            return event.result
        event._rest = rest
        rest()


def no_work(event):
    """The end of a chain that only tells."""


# ============================================================================
#  7. Files
# ============================================================================
# Where uploads live and what they are called: content sniffing, stored names, the storage interface with the local disk behind it,
# the headers a file is served with. Invariants: a stored name never comes from a client unchanged; a key cannot leave the storage
# root; a file is there whole, with its .attrs sidecar, or not at all. What may take long goes through `storage.run`: a native
# thread for the disk, the caller's own greenlet for the network. Uses chapters 1 and 4.


# --- Content types ------------------------------------------------------------
# Detected from the first bytes, never from the name. Binary signatures come first, then the kinds of text. Verified against
# 652 probe files on PocketBase 0.40.

SNIFF_BYTES = 4096  # all that detection looks at

_OFFICE = "application/vnd.openxmlformats-officedocument."
_OASIS = "application/vnd.oasis.opendocument."

# type, extension, alternatives of (offset, bytes) pairs that must all be there
_SIGNATURES = (
    ("image/png", ".png", [(0, b"\x89PNG\r\n\x1a\n")]),
    ("image/jpeg", ".jpg", [(0, b"\xff\xd8\xff")]),
    ("image/jp2", ".jp2", [(0, b"\0\0\0\x0cjP  \r\n\x87\n"), (20, b"jp2 ")]),
    ("image/jpx", ".jpf", [(0, b"\0\0\0\x0cjP  \r\n\x87\n"), (20, b"jpx ")]),
    ("image/jpm", ".jpm", [(0, b"\0\0\0\x0cjP  \r\n\x87\n"), (20, b"jpm ")]),
    ("image/jxl", ".jxl", [(0, b"\xff\x0a")], [(0, b"\0\0\0\x0cJXL \r\n\x87\n")]),
    ("image/jxs", ".jxs", [(0, b"\0\0\0\x0cJXS \r\n\x87\n")]),
    ("image/jxr", ".jxr", [(0, b"II\xbc\x01")]),
    ("image/gif", ".gif", [(0, b"GIF87a")], [(0, b"GIF89a")]),
    ("image/webp", ".webp", [(0, b"RIFF"), (8, b"WEBP"), (12, b"")]),
    ("audio/wav", ".wav", [(0, b"RIFF"), (8, b"WAVE"), (12, b"")]),
    ("video/x-msvideo", ".avi", [(0, b"RIFF"), (8, b"AVI LIST"), (16, b"")]),
    ("audio/qcelp", ".qcp", [(0, b"RIFF"), (8, b"QLCM"), (12, b"")]),
    ("image/bmp", ".bmp", [(0, b"BM"), (14, b"\x28\0\0\0")], [(0, b"BM"), (14, b"\x6c\0\0\0")], [(0, b"BM"), (14, b"\x7c\0\0\0")]),
    ("image/tiff", ".tiff", [(0, b"II*\0")], [(0, b"MM\0*")]),
    ("image/x-icon", ".ico", [(0, b"\0\0\1\0")], [(0, b"\0\0\2\0")]),
    ("image/x-icns", ".icns", [(0, b"icns")]),
    ("image/vnd.adobe.photoshop", ".psd", [(0, b"8BPS")]),
    ("image/x-xcf", ".xcf", [(0, b"gimp xcf")]),
    ("image/x-gimp-pat", ".pat", [(20, b"GPAT")]),
    ("image/x-gimp-gbr", ".gbr", [(20, b"GIMP")]),
    ("image/vnd.djvu", ".djvu", *[[(0, b"AT&TFORM"), (12, kind)] for kind in (b"DJVM", b"DJVU", b"DJVI", b"THUM")]),
    ("image/bpg", ".bpg", [(0, b"BPG\xfb")]),
    ("image/vnd.radiance", ".hdr", [(0, b"#?RADIANCE\n")]),
    ("image/x-xpixmap", ".xpm", [(0, b"/* XPM */")]),
    ("image/vnd.dwg", ".dwg", *[[(0, b"AC10" + version)] for version in b"02 03 04 06 09 12 14 15 18 21 24 27 32".split()]),
    ("audio/flac", ".flac", [(0, b"fLaC\0\0\0\x22")]),
    ("audio/midi", ".midi", [(0, b"MThd")]),
    ("audio/aiff", ".aiff", [(0, b"FORM"), (8, b"AIFF")]),
    ("audio/basic", ".au", [(0, b".snd")]),
    ("audio/musepack", ".mpc", [(0, b"MPCK")]),
    ("audio/amr", ".amr", [(0, b"#!AMR")]),
    ("audio/x-unknown", ".voc", [(0, b"Creative Voice File")]),
    ("audio/aac", ".aac", [(0, b"\xff\xf1")], [(0, b"\xff\xf9")]),
    ("video/x-flv", ".flv", [(0, b"FLV\1")]),
    ("video/mpeg", ".mpeg", *[[(0, bytes((0, 0, 1, code)))] for code in range(0xB0, 0xC0)]),
    ("video/x-ms-asf", ".asf", [(0, bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"))]),
    ("application/vnd.rn-realmedia-vbr", ".rmvb", [(0, b".RMF")]),
    ("application/x-shockwave-flash", ".swf", [(0, b"FWS")], [(0, b"CWS")], [(0, b"ZWS")]),
    ("application/vnd.fdf", ".fdf", [(0, b"%FDF")]),
    ("application/postscript", ".ps", [(0, b"%!PS-Adobe-")]),
    ("application/pkcs7-signature", ".p7s", [(0, b"-----BEGIN PKCS7")]),
    ("application/x-xar", ".xar", [(0, b"xar!")]),
    ("application/vnd.ms-htmlhelp", ".chm", [(0, b"ITSF\3\0\0\0\x60\0\0\0")]),
    ("application/cbor", ".cbor", [(0, b"\xd9\xd9\xf7")]),
    ("application/vnd.wordperfect", ".wpd", [(0, b"\xffWPC"), (8, b"\1\x0a")]),
    ("application/gzip", ".gz", [(0, b"\x1f\x8b")]),
    ("application/x-bzip2", ".bz2", [(0, b"BZh")]),
    ("application/x-xz", ".xz", [(0, b"\xfd7zXZ\0")]),
    ("application/zstd", ".zst", *[[(0, bytes((low,)) + b"\xb5\x2f\xfd")] for low in range(0x22, 0x29)],
     *[[(0, bytes((low,)) + b"\x2a\x4d\x18")] for low in range(0x50, 0x60)]),
    ("application/lzip", ".lz", [(0, b"LZIP")]),
    ("application/x-7z-compressed", ".7z", [(0, b"7z\xbc\xaf\x27\x1c")]),
    ("application/vnd.rar", ".rar", [(0, b"Rar!\x1a\x07\0")], [(0, b"Rar!\x1a\x07\1\0")]),
    ("application/vnd.ms-cab-compressed", ".cab", [(0, b"MSCF\0\0\0\0")]),
    ("application/x-cpio", ".cpio", *[[(0, b"07070" + kind)] for kind in (b"7", b"1", b"2")]),
    ("application/vnd.debian.binary-package", ".deb", [(0, b"!<arch>"), (8, b"debian-binary")]),
    ("application/x-archive", ".a", [(0, b"!<arch>")]),
    ("application/x-rpm", ".rpm", [(0, b"\xed\xab\xee\xdb")]),
    ("application/x-bittorrent", ".torrent", [(0, b"d8:announce")]),
    ("application/wasm", ".wasm", [(0, b"\0asm")]),
    ("application/vnd.microsoft.portable-executable", ".exe", [(0, b"MZ")]),
    ("application/x-sharedlib", ".so", [(0, b"\x7fELF"), (16, b"\3\0")], [(0, b"\x7fELF"), (16, b"\0\3")]),
    ("application/x-object", "", [(0, b"\x7fELF"), (16, b"\1\0")], [(0, b"\x7fELF"), (16, b"\0\1")]),
    ("application/x-executable", "", [(0, b"\x7fELF"), (16, b"\2\0")], [(0, b"\x7fELF"), (16, b"\0\2")]),
    ("application/x-coredump", "", [(0, b"\x7fELF"), (16, b"\4\0")], [(0, b"\x7fELF"), (16, b"\0\4")]),
    ("application/x-elf", "", [(0, b"\x7fELF")]),
    ("application/x-mach-binary", ".macho", *[[(0, bytes.fromhex(magic))] for magic in "cffaedfe cefaedfe feedface feedfacf".split()]),
    ("font/woff", ".woff", [(0, b"wOFF")]),
    ("font/woff2", ".woff2", [(0, b"wOF2")]),
    ("font/collection", ".ttc", [(0, b"ttcf")]),
    ("font/otf", ".otf", [(0, b"OTTO\0"), (12, b"CFF ")]),
    ("application/vnd.ms-fontobject", ".eot", [(34, b"LP"), (8, b"\2\0\1")], [(34, b"LP"), (8, b"\1\0\0")], [(34, b"LP"), (8, b"\2\0\2")]),
    ("application/vnd.sqlite3", ".sqlite", [(0, b"SQLite format 3\0")]),
    ("application/x-msaccess", ".mdb", [(4, b"Standard Jet DB")]),
    ("application/x-msaccess", ".accdb", [(4, b"Standard ACE DB")]),
    ("application/vnd.shx", ".shx", [(0, b"\0\0\x27\x0a")]),
    ("application/vnd.apache.parquet", ".parquet", [(0, b"PAR1")]),
    ("application/dicom", ".dcm", [(128, b"DICM")]),
    ("application/fits", ".fits", [(0, b"SIMPLE  =                    T")]),
    ("application/x-mobipocket-ebook", ".mobi", [(60, b"BOOKMOBI")]),
    ("application/x-ms-reader", ".lit", [(0, b"ITOLITLS")]),
    ("application/x-ms-shortcut", ".lnk", [(0, bytes.fromhex("4c00000001140200"))]),
    ("application/vnd.nintendo.snes.rom", ".nes", [(0, b"NES\x1a")]),
    ("application/vnd.tcpdump.pcap", ".pcap", [(0, b"\xd4\xc3\xb2\xa1")], [(0, b"\xa1\xb2\xc3\xd4")]),
    ("application/onenote", ".one", [(0, bytes.fromhex("e4525c7b8cd8a74daeb15378d02996d3"))]),
    ("model/gltf-binary", ".glb", [(0, b"glTF\2\0\0\0")], [(0, b"glTF\1\0\0\0")]),
    ("video/quicktime", ".mov", [(0, b"\0\0\0\x08wide"), (8, b"")],
     *[[(4, atom), (8, b"")] for atom in (b"moov", b"mdat", b"free", b"skip", b"pnot")]),
)
_SIGNATURES_BY_BYTE = [     # what can still be meant when this is the first byte; in the same order
    [(content_type, extension, parts) for content_type, extension, *alternatives in _SIGNATURES for parts in alternatives
     if not any(offset == 0 and magic and magic[0] != byte for offset, magic in parts)]
    for byte in range(256)]
# ISO base media (bytes 4-8 are "ftyp"): brands of four letters -> type, extension; any other is video/mp4
_MEDIA_BRANDS = (
    ("heic heix", "image/heic", ".heic"),
    ("hevc hevx", "image/heic-sequence", ".heic"),
    ("mif1 heis heim", "image/heif", ".heif"),
    ("msf1 hevm hevs avcs", "image/heif-sequence", ".heif"),
    ("avif avis", "image/avif", ".avif"),
    ("M4A ", "audio/x-m4a", ".m4a"),
    ("M4V  M4VH M4VP", "video/x-m4v", ".m4v"),
    ("mqt ", "video/quicktime", ".mqv"),
    ("qt  ", "video/quicktime", ".mov"),
    ("3gp1 3gp2 3gp3 3gp4 3gp5 3gp6 3gp7 3gs7 3ge6 3ge7 3gg6", "video/3gpp", ".3gp"),
    ("3g24 3g25 3g26 3g2a 3g2b 3g2c KDDI", "video/3gpp2", ".3g2"),
    ("F4A  F4B  M4B  M4P  MSNV NDAS", "audio/mp4", ".mp4"),
    ("mj2s mjp2 MFSM", "video/mj2", ".mj2"),
    ("dby1 dvr1 dvt1 drc1 emsg dmb1 dsms dts1 dxo ", "video/vnd.dvb.file", ".dvb"),
)
_BRAND_TYPES = {brands[at:at + 4]: (content_type, extension) for brands, content_type, extension in _MEDIA_BRANDS for at in range(0, len(brands), 5)}
_OGG_CODECS = (
    (b"\x01vorbis OpusHead \x7fFLAC Speex", "audio/ogg", ".oga"),
    (b"\x80theora fishead BBCD\0 \x01video", "video/ogg", ".ogv"),
)
# Root class ids of OLE documents (MS-CFB, 2.6.1)
_OLE_CLASSES = {
    "0609020000000000c000000000000046": ("application/msword", ".doc"),
    "0009020000000000c000000000000046": ("application/msword", ".doc"),
    "1008020000000000c000000000000046": ("application/vnd.ms-excel", ".xls"),
    "2008020000000000c000000000000046": ("application/vnd.ms-excel", ".xls"),
    "108d81649b4fcf1186ea00aa00b929e8": ("application/vnd.ms-powerpoint", ".ppt"),
    "0b0d020000000000c000000000000046": ("application/vnd.ms-outlook", ".msg"),
}
# zip entry name prefix -> type, extension; the first row that some entry in the head matches
_ZIP_NAMES = (
    *[(name, "application/vnd.android.package-archive", ".apk") for name in (
        b"AndroidManifest.xml", b"META-INF/com/android/build/gradle/app-metadata.properties", b"classes.dex", b"resources.arsc", b"res/drawable")],
    (b"doc.kml", "application/vnd.google-earth.kmz", ".kmz"),
)
_ZIP_FOLDERS = (
    (b"word/", _OFFICE + "wordprocessingml.document", ".docx"),
    (b"xl/", _OFFICE + "spreadsheetml.sheet", ".xlsx"),
    (b"ppt/", _OFFICE + "presentationml.presentation", ".pptx"),
    (b"visio/", "application/vnd.ms-visio.drawing.main+xml", ".vsdx"),
)
_ZIP_OFFICE_FIRST = (b"[Content_Types].xml", b"_rels/", b"docProps/", b"customXml/", b"[trash]/")     # what an office document may begin with
_ZIP_JAR_FIRST = (b"META-INF/", b"META-INF/MANIFEST.MF")
# content of the first entry, "mimetype" -> extension (EPUB OCF 3.2; OpenDocument 1.3, part 2)
_ZIP_MIMETYPES = {
    "application/epub+zip": ".epub",
    **{_OASIS + kind + "-template": ext for kind, ext in (("text", ".ott"), ("spreadsheet", ".ots"), ("presentation", ".otp"), ("graphics", ".otg"))},
    **{_OASIS + kind: ext for kind, ext in (("text", ".odt"), ("spreadsheet", ".ods"), ("presentation", ".odp"), ("graphics", ".odg"))},
    _OASIS + "formula": ".odf",
    _OASIS + "chart": ".odc",
    "application/vnd.sun.xml.calc": ".sxc",
}
# root element, namespace it must name ("" any) -> type, extension
_XML_ROOTS = (
    (b"<svg", b"", "image/svg+xml", ".svg"),
    (b"<rss", b"", "application/rss+xml", ".rss"),
    (b"<feed", b"http://www.w3.org/2005/Atom", "application/atom+xml", ".atom"),
    (b"<kml", b"http://www.opengis.net/kml/", "application/vnd.google-earth.kml+xml", ".kml"),
    (b"<kml", b"http://earth.google.com/kml/2.", "application/vnd.google-earth.kml+xml", ".kml"),
    (b"<X3D", b"http://www.w3.org/2001/XMLSchema-instance", "model/x3d+xml", ".x3d"),
    (b"<gpx", b"http://www.topografix.com/GPX/1/1", "application/gpx+xml", ".gpx"),
    (b"<html", b"http://www.w3.org/1999/xhtml", "application/xhtml+xml", ".html"),
    (b"<xliff", b"urn:oasis:names:tc:xliff:document:", "application/x-xliff+xml", ".xlf"),
    (b"<COLLADA", b"http://www.collada.org/", "model/vnd.collada+xml", ".dae"),
    (b"<TrainingCenterDatabase", b"http://www.garmin.com/xmlschemas/TrainingCenterDatabase/", "application/vnd.garmin.tcx+xml", ".tcx"),
    (b"<amf", b"", "application/x-amf", ".amf"),
    (b"<model", b"http://schemas.microsoft.com/3dmanufacturing/", "application/vnd.ms-package.3dmanufacturing-3dmodel+xml", ".3mf"),
    (b"<xfdf", b"http://ns.adobe.com/xfdf/", "application/vnd.adobe.xfdf", ".xfdf"),
    (b"<Ontology", b"http://www.w3.org/2002/07/owl#", "application/owl+xml", ".owl"),
    (b"", b"http://www.opengis.net/gml", "application/gml+xml", ".gml"),
)
_HTML = re.compile(
    rb"<(?:!--|!doctype html|html|head|script|iframe|h1|div|font|table|a|style|title|b|body|br|p)[\s>]", re.IGNORECASE | re.DOTALL
)
_SHEBANG = rb"#!\s*(?:/usr/bin/env\s+(?:-S )?|/usr/(?:local/)?bin/)"
_TEXT_PATTERNS = (  # pattern at the start of the text, type, extension; tried in this order
    (re.compile(rb"<\?(?:php(?!\Z)|[ \r\n])|" + _SHEBANG + rb"php", re.IGNORECASE), "text/x-php", ".php"),
    (re.compile(rb"#!\s*(?:/usr/bin/env\s+(?:-S )?|(?:/usr)?/bin/)node"), "text/javascript", ".js"),
    (re.compile(_SHEBANG + rb"lua"), "text/x-lua", ".lua"),
    (re.compile(rb"#!\s*/usr/bin/(?:env\s+(?:-S )?)?perl(?=\s|\Z)"), "text/x-perl", ".pl"),
    (re.compile(_SHEBANG + rb"python"), "text/x-python", ".py"),
    (re.compile(_SHEBANG + rb"ruby"), "text/x-ruby", ".rb"),
    (re.compile(_SHEBANG + rb"(?:tcl|wish)"), "text/x-tcl", ".tcl"),
    (re.compile(rb"#!\s*(?:/bin/(?:ba|z|da|k|c|tc)?|/usr/bin/env\s+(?:-S )?(?:ba|z)|/usr/local/bin/(?:ba|z|da|k))sh\b"), "text/x-shellscript", ".sh"),
    (re.compile(rb"\{\\rtf"), "text/rtf", ".rtf"),
    (re.compile(rb"BEGIN:VCARD\r?\n."), "text/vcard", ".vcf"),
    (re.compile(rb"BEGIN:VCALENDAR\r?\n."), "text/calendar", ".ics"),
    (re.compile(rb"1\r?\n\d\d:\d\d:\d\d,\d{3} --> \d\d:\d\d:\d\d,\d{3}"), "application/x-subrip", ".srt"),
    (re.compile(rb"(?:\xef\xbb\xbf)?WEBVTT(?:[ \t\r\n]|\Z)"), "text/vtt", ".vtt"),
    (re.compile(rb"WARC/1\.[01]"), "application/warc", ".warc"),
    (re.compile(rb"#EXTM3U\r?\n"), "application/vnd.apple.mpegurl", ".m3u"),
    (re.compile(rb"P[36]\s"), "image/x-portable-pixmap", ".ppm"),
    (re.compile(rb"\s*0\r?\nSECTION\r?\n"), "image/vnd.dxf", ".dxf"),
)
_MAIL_HEADER = re.compile(rb"(?:From|To|Cc|Subject|Date|Message-ID|Received|Return-Path|MIME-Version|Content-Type|Reply-To): .*\r?\n", re.IGNORECASE)
_GEO_TYPES = frozenset("Feature FeatureCollection Point LineString Polygon MultiPoint MultiLineString MultiPolygon GeometryCollection".split())
_BINARY_BYTES = bytes([*range(9), 11, *range(14, 27), *range(28, 32)])
_BOMS = (
    (b"\xff\xfe\0\0", "utf-32le"),
    (b"\0\0\xfe\xff", "utf-32be"),
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe", "utf-16le"),
    (b"\xfe\xff", "utf-16be"),
)
_TTF_TAGS = frozenset(
    tag.ljust(4)
    for tag in (
        b"acnt ankr avar bdat bhed bloc bsln cmap cvar cvt EBSC EBDT EBLC fdsc feat fmtx fond fpgm fvar gasp gcid glyf gvar hdmx head hhea hmtx "
        b"hvgl hsty just kern kerx lcar loca ltag maxp meta mort morx name opbd OS/2 post prep prop sbix trak vhea vmtx xref Zapf BASE CBDT CBLC "
        b"CFF CFF2 COLR CPAL DSIG GDEF GPOS GSUB HVAR JSTF LTSH MATH MERG MVAR PCLT STAT SVG VDMX VORG VVAR"
    ).split()
)


def sniff_type(head):
    """The content type the first bytes of a file tell, e.g. `image/png` or `text/plain; charset=utf-8`."""
    return _sniff(head)[0]


def sniffed_extension(head):
    """The extension, with its dot, for a file without one; "" when the content is unknown."""
    return _sniff(head)[1]


def extension_for(content_type):
    """The usual extension of a content type; "" for unknown ones."""
    return _EXTENSIONS.get(content_type.partition(";")[0], "")


def _sniff(head):
    head = bytes(head[:SNIFF_BYTES])
    return _sniff_binary(head) or _sniff_text(head) or _UNKNOWN


_UNKNOWN = ("application/octet-stream", "")


def _sniff_binary(head):
    for test in (_sniff_animation, _sniff_pdf, _sniff_zip, _sniff_crx, _sniff_ole, _sniff_media, _sniff_ogg, _sniff_ebml, _sniff_java, _sniff_font):
        if found := test(head):
            return found
    for content_type, extension, parts in _SIGNATURES_BY_BYTE[head[0]] if head else ():
        if all(head.startswith(magic, offset) and len(head) > offset - (magic != b"") for offset, magic in parts):
            return content_type, extension
    for test in (_sniff_mpeg_audio, _sniff_tar, _sniff_marc):
        if found := test(head):
            return found
    return _sniff_weak(head) if _is_binary(head) or head[1:2] in (b"\x9c", b"\xda", b"\xbb") else None


def _is_binary(head):
    return len(head.translate(None, _BINARY_BYTES)) < len(head)


def _sniff_animation(head):
    if head.startswith(b"\x89PNG\r\n\x1a\n") and head[37:41] == b"acTL":
        return "image/apng", ".apng"


_PDF_REACH = 1024       # bytes that may be junk before the header (PDF 32000, annex H.3.4.1)


def _sniff_pdf(head):
    if b"%PDF-" in head[:_PDF_REACH]:
        return "application/pdf", ".pdf"


def _sniff_zip(head):
    if not head.startswith((b"PK\3\4", b"PK\5\6", b"PK\7\x08")):
        return None
    names = _zip_names(head)
    for prefix, content_type, extension in _ZIP_NAMES:
        if any(name.startswith(prefix) for name in names):
            return content_type, extension
    for prefix, content_type, extension in _ZIP_FOLDERS:
        if any(name.startswith(prefix) for name in names) and names[0].startswith((prefix, *_ZIP_OFFICE_FIRST)):
            return content_type, extension
    if names[:1] == [b"mimetype"]:
        content = head[38:120].decode("latin-1")
        for content_type, extension in _ZIP_MIMETYPES.items():
            if content.startswith(content_type):
                return content_type, extension
    return ("application/java-archive", ".jar") if names and names[0] in _ZIP_JAR_FIRST else ("application/zip", ".zip")


def _sniff_crx(head):
    """A zip behind a key and a signature (CRX2)."""
    if head.startswith(b"Cr24") and head.startswith(b"PK\3\4", 16 + int.from_bytes(head[8:12], "little") + int.from_bytes(head[12:16], "little")):
        return "application/x-chrome-extension", ".crx"


def _zip_names(head):
    """Names in the local headers within reach (APPNOTE.TXT, 4.3.7)."""
    names, at = [], head.find(b"PK\3\4")
    while at >= 0 and len(head) >= at + 30:
        size = int.from_bytes(head[at + 26 : at + 28], "little")
        names.append(head[at + 30 : at + 30 + size])
        at = head.find(b"PK\3\4", at + 30)
    return names


def _sniff_ole(head):
    if not head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return None
    size = 4096 if head[26:27] == b"\4" else 512
    root = size * (1 + int.from_bytes(head[48:52], "little"))
    return _OLE_CLASSES.get(head[root + 80 : root + 96].hex(), ("application/x-ole-storage", ""))


def _sniff_media(head):
    if head[4:8] == b"ftyp" and head[0] == 0 and len(head) >= 12:
        return _BRAND_TYPES.get(head[8:12].decode("latin-1"), ("video/mp4", ".mp4"))


def _sniff_ogg(head):
    if not head.startswith(b"OggS"):
        return None
    for codecs, content_type, extension in _OGG_CODECS:
        if head[28:].startswith(tuple(codecs.split())):
            return content_type, extension
    return "application/ogg", ".ogg"


def _sniff_ebml(head):
    """Matroska and WebM: the DocType element (0x4282) names which (RFC 8794, 11.2.4)."""
    if head.startswith(b"\x1aE\xdf\xa3"):
        at = head.find(b"\x42\x82")
        if at >= 0 and head.startswith(b"webm", at + 3):
            return "video/webm", ".webm"
        if at >= 0 and head.startswith(b"matroska", at + 3):
            return "video/matroska", ".mkv"
        return _UNKNOWN


def _sniff_java(head):
    if head.startswith(b"\xca\xfe\xba\xbe"):  # shared by Java classes (version 45 and up) and fat Mach-O files
        if int.from_bytes(head[6:8], "big") >= 45:
            return "application/x-java-applet", ".class"
        return "application/x-mach-binary", ".macho"


def _sniff_font(head):
    if head.startswith(b"\0\1\0\0") and head[12:16] in _TTF_TAGS:
        return "font/ttf", ".ttf"


def _sniff_mpeg_audio(head):
    """An ID3v2 tag, or a frame header of layer II or III with a possible bit rate and sample rate (ISO 11172-3, 2.4.1.3)."""
    if head.startswith(b"ID3") and len(head) > 9 and any(head[6:10]) and max(head[6:10]) < 0x80:
        return "audio/mpeg", ".mp3"
    if len(head) > 2 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] >> 1 & 3 in (1, 2) and head[1] >> 3 & 3 != 1:
        if head[2] >> 4 != 15 and head[2] >> 2 & 3 != 3:
            return "audio/mpeg", ".mp3"


def _sniff_tar(head):
    """The header checksum counts its own field as blanks (POSIX pax, ustar)."""
    try:
        stored = int(head[148:156].strip(b" \0"), 8)
    except ValueError:
        return None
    if len(head) >= 512 and stored == sum(head[:148]) + 8 * 32 + sum(head[156:512]):
        return "application/x-tar", ".tar"


def _sniff_marc(head):
    if head[10:12] == b"22" and head[20:24] == b"4500" and b"\x1e" in head[:2048]:
        return "application/marc", ".mrc"


def _sniff_weak(head):
    """Two-byte marks, good only for what is no text."""
    if head[0] == 0x78 and int.from_bytes(head[:2], "big") % 31 == 0:
        return "application/zlib", ""
    if head[2:4] == b"\r\n":
        return "application/x-bytecode.python", ".pyc"


def _sniff_text(head):
    charset = next((name for mark, name in _BOMS if head.startswith(mark)), "")
    if charset not in ("", "utf-8"):
        return f"text/plain; charset={charset}", ".txt"
    if _is_binary(head):
        return None
    body = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n\x0c")
    if _HTML.match(body):
        return f"text/html; charset={_declared_charset(body) or 'utf-8'}", ".html"
    if found := _sniff_xml(head, body):
        return found
    for pattern, content_type, extension in _TEXT_PATTERNS:
        if pattern.match(head):
            return content_type, extension
    found = _sniff_json(head) or _sniff_mail(head) or _sniff_table(head)
    if found:
        return found
    charset = charset or _plain_charset(head[:_CHARSET_BYTES])
    return f"text/plain; charset={charset}" if charset else "text/plain", ".txt"


_CHARSET_BYTES = 1024  # a later odd byte does not change the charset


def _declared_charset(body):
    found = re.search(rb"""<meta[^>]*charset\s*=\s*["']?\s*([\w:.+-]+)""", body, re.IGNORECASE)
    return found[1].decode() if found else ""


def _sniff_xml(head, body):
    if head.startswith((b"<svg ", b"<svg>", b"<svg\n", b"<svg\r", b"<svg\t")):
        return "image/svg+xml", ".svg"
    if not re.match(rb"<\?xml\s", body, re.IGNORECASE):
        return None
    for root, namespace, content_type, extension in _XML_ROOTS:
        if root in body and namespace in body:
            return content_type, extension
    declared = re.match(rb"""[^>]*\bencoding\s*=\s*["']([\w:.+-]+)""", body)
    return f"text/xml; charset={declared[1].decode() if declared else 'utf-8'}", ".xml"


_LAST_CHARACTER = re.compile(rb"[\xc0-\xff][\x80-\xbf]{0,3}\Z").search


def _plain_charset(head):
    """UTF-8 (a character cut off at the end is fine), else the one-byte sets that leave their control range alone."""
    if not head:
        return ""
    cut = _LAST_CHARACTER(head)
    try:
        (head[:cut.start()] if cut else head).decode()
        return "utf-8"
    except UnicodeDecodeError:
        pass
    if re.search(rb"[\x80-\x84\x86-\x9f]", head):
        return ""
    return "windows-1252" if b"\x85" in head else "iso-8859-1"


def _no_constant(text):
    raise json.JSONDecodeError("no JSON", text, 0)


_CUT_JSON_TOKEN = re.compile(r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrtu])*\\?|-|t|tr|tru|f|fa|fal|fals|n|nu|nul').fullmatch
_json_value = json.JSONDecoder(strict=False, parse_constant=_no_constant).raw_decode


def _sniff_json(head):
    text = head.decode("latin-1").strip(" \t\r\n")
    if text[:1] not in ("{", "[", '"'):
        return None
    complete, cut = _read_json_head(text)
    if text[0] != '"' and (complete or cut and len(head) >= SNIFF_BYTES):
        return _json_kind(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and any(line[0] in "{[" for line in lines):
        if all(_read_json_head(line)[0] for line in lines[:-1]) and any(_read_json_head(lines[-1])):
            return "application/x-ndjson", ".ndjson"


def _read_json_head(text):
    """(whether `text` is one JSON value, whether it is the beginning of one)."""
    try:
        return _json_value(text)[1] == len(text), False
    except json.JSONDecodeError as error:
        return False, error.pos >= len(text) or _CUT_JSON_TOKEN(text[error.pos :]) is not None
    except RecursionError:
        return False, len(text) >= SNIFF_BYTES


_JSON_KINDS = (  # key path within the two upper levels, its values (None any), type, extension
    ("type", _GEO_TYPES, "application/geo+json", ".geojson"),
    ("asset.version", ("1.0", "2.0"), "model/gltf+json", ".gltf"),
    ("bomFormat", ("CycloneDX",), "application/vnd.cyclonedx+json", ".json"),
    ("log.version", None, "application/json", ".har"),
    ("log.creator", None, "application/json", ".har"),
    ("log.entries", None, "application/json", ".har"),
)
_JSON_MARK = re.compile(r'"(?:type|asset|log|bomFormat)"')
_JSON_PIECE = re.compile(r'[{}\[\],]|"((?:[^"\\]|\\.)*)"(\s*:)?')


def _json_kind(text):
    found = _json_paths(text) if _JSON_MARK.search(text) else {}
    for path, values, content_type, extension in _JSON_KINDS:
        if path in found and (values is None or found[path] in values):
            return content_type, extension
    return "application/json", ".json"


def _json_paths(text):
    """Key path -> text value of the members in the two upper levels of an object, as far as it is there."""
    keys, found = [], {}
    for piece in _JSON_PIECE.finditer(text):
        mark, (content, is_key) = piece[0], piece.groups()
        if mark in "{[":
            keys.append("")
        elif mark in "}]":
            keys.pop()
        elif is_key and 0 < len(keys) < 3:
            keys[-1] = content
            found.setdefault(".".join(keys), "")
        elif content is not None and 0 < len(keys) < 3:
            found[".".join(keys)] = content
    return found


def _sniff_mail(head):
    """Two known header lines at the start (RFC 5322)."""
    at = 0
    for _ in range(2):
        line = _MAIL_HEADER.match(head, at)
        if not line:
            return None
        at = line.end()
    return "message/rfc822", ".eml"


_TABLE_BYTES = 3072


def _sniff_table(head):
    text = head.decode("latin-1")
    if len(head) >= _TABLE_BYTES:       # the last line may be cut off
        text = text[: text.rfind("\n") + 1]
    for delimiter, content_type, extension in ((",", "text/csv", ".csv"), ("\t", "text/tab-separated-values", ".tsv")):
        if delimiter in text and _is_table(text, delimiter):
            return content_type, extension


def _is_table(text, delimiter):
    """At least two records of the same two or more fields; lines starting with # are comments."""
    lines = (line for line in io.StringIO(text, newline="") if not line.startswith("#"))
    try:
        widths = [len(record) for record in csv.reader(lines, delimiter=delimiter) if record]
    except csv.Error:
        return False
    return len(widths) > 1 and widths[0] > 1 and len(set(widths)) == 1


def _extension_table():
    rows = [(content_type, extension) for content_type, extension, *_ in _SIGNATURES]
    rows += [row[-2:] for row in _MEDIA_BRANDS + _OGG_CODECS + _ZIP_FOLDERS + _ZIP_NAMES + _XML_ROOTS + _TEXT_PATTERNS]
    rows += [*_OLE_CLASSES.values(), *_ZIP_MIMETYPES.items()]
    rows += [("text/plain", ".txt"), ("text/html", ".html"), ("text/xml", ".xml"), ("text/csv", ".csv"), ("application/json", ".json")]
    rows += [("text/tab-separated-values", ".tsv"), ("application/x-ndjson", ".ndjson"), ("application/geo+json", ".geojson")]
    rows += [("model/gltf+json", ".gltf"), ("message/rfc822", ".eml"), ("application/pdf", ".pdf"), ("application/zip", ".zip")]
    rows += [("application/java-archive", ".jar"), ("application/x-chrome-extension", ".crx")]
    rows += [("audio/mpeg", ".mp3"), ("video/webm", ".webm"), ("video/matroska", ".mkv"), ("image/apng", ".apng"), ("font/ttf", ".ttf")]
    rows += [("application/x-tar", ".tar"), ("video/mp4", ".mp4"), ("application/ogg", ".ogg"), ("application/x-java-applet", ".class")]
    rows += [("application/marc", ".mrc"), ("application/x-bytecode.python", ".pyc")]
    table = {}
    for content_type, extension in rows:
        table.setdefault(content_type, extension)
    return table


_EXTENSIONS = _extension_table()

# --- Names --------------------------------------------------------------------

ORIGINAL_NAME_BYTES = 300  # of a longer upload name the last ones are kept
_BASE_LIMIT, _EXTENSION_LIMIT, _SUFFIX_LENGTH = 100, 20, 10


def clean_upload_name(name):
    """The base name of what a browser sent, its last 300 bytes."""
    name = name.rpartition("/")[2]
    return name.encode("utf-8", "replace")[-ORIGINAL_NAME_BYTES:].decode("utf-8", "ignore")


def stored_name(original_name, head=b""):
    """The name an upload is stored under: `My File (1).TXT` -> `my_file_1_a8k2m4x0q9.TXT`.

    The extension is the last one or two of the name, else what `head` tells; ten random characters make it unguessable."""
    base, extension = _split_name(clean_upload_name(original_name))
    extension = "." + extension if extension else sniffed_extension(head)
    base = snake_case(base)
    if len(base) < 3:
        base += random_text(_SUFFIX_LENGTH)
    return f"{base[:_BASE_LIMIT]}_{random_text(_SUFFIX_LENGTH)}{extension}"


def _split_name(name):
    last = name.rfind(".")
    if last < 0:
        return name, ""
    before = name.rfind(".", 0, last)
    at = before if before >= 0 else last
    extension = re.sub(r"[^A-Za-z0-9_.*\-+=#]", "", name[at:]).strip(".")
    return name[:at], extension[-_EXTENSION_LIMIT:].strip(".")


# --- Storage ------------------------------------------------------------------


class StorageError(OSError):
    """A storage that is not on this machine refused or could not be reached. The text is for superusers."""


class StoredFile(NamedTuple):
    """What a storage knows about one file; `path` is None where the file is not on this disk, the type "" in lists."""

    key: str
    size: int
    modified: float
    path: str | None = None
    content_type: str = ""


QUICK_BYTES = 1 << 17   # a file that is written in less time than a thread needs to take it over: 200 us
SPOOL_BYTES = 1 << 20   # of a received file kept in memory; more goes to disk in pieces of this size


class ReceivedFile:
    """A file on its way into a storage: small ones stay in memory, large ones are written to `directory` while they come in, by
    native threads, so that memory holds one piece of each and the local storage only has to rename them.

    Written by `write` until `finish`, then read like any file; `close` removes what nobody took."""

    def __init__(self, directory, threads=None, spool=SPOOL_BYTES):
        self.directory, self.threads, self.spool = directory, threads, spool
        self.path, self.file, self.size, self.head = None, None, 0, b""
        self._pieces, self._held, self._at, self._digest = [], 0, 0, None

    @classmethod
    def of(cls, data):
        """A finished one that holds these bytes in memory."""
        received = cls("", spool=len(data))
        received.write(data)
        received.finish()
        return received

    def write(self, piece):
        if len(self.head) < SNIFF_BYTES:
            self.head += piece[: SNIFF_BYTES - len(self.head)]
        self._pieces.append(piece)
        self._held += len(piece)
        self.size += len(piece)
        if self._held > self.spool:
            self._spill()

    def _spill(self):
        pieces, self._pieces, self._held = self._pieces, [], 0
        if self.threads is None:
            self._append(pieces)
        else:
            in_thread(self.threads, self._append, pieces)

    def _append(self, pieces):
        if self.file is None:
            os.makedirs(self.directory, exist_ok=True)
            self.path = os.path.join(self.directory, random_text(20) + ".tmp")
            self.file, self._digest = open(self.path, "x+b", buffering=0), hashlib.md5(usedforsecurity=False)
        for piece in pieces:
            self._digest.update(piece)
            _write_all(self.file, piece)

    def finish(self):
        """All has been written; reading begins at the start."""
        if self.file is not None:
            self._spill()
            self.file.seek(0)
        else:
            self._pieces = [b"".join(self._pieces)] if len(self._pieces) != 1 else self._pieces

    def read(self, size=-1):
        if self.file is not None:
            return self.file.read(size)
        data = self._pieces[0][self._at:] if size < 0 else self._pieces[0][self._at:self._at + size]
        self._at += len(data)
        return data

    def seek(self, offset):
        if self.file is not None:
            self.file.seek(offset)
        self._at = offset

    def move(self, path):
        """Gives a file on disk to its new owner; its MD5. OSError (EXDEV) when `path` is on another file system."""
        os.replace(self.path, path)
        self.path = None
        return self._digest.digest()

    def close(self):
        self._pieces = [b""]
        if self.file is not None:
            self.file.close()
        if self.path is not None:
            try:
                os.unlink(self.path)
            except FileNotFoundError:
                pass
            self.path = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


class Storage:
    """What uploads and backups are kept in. Keys are `/`-separated; a missing key raises FileNotFoundError."""

    threads = None      # native threads for what may take long; None: it waits cooperatively in the caller's greenlet
    sync = False        # a save waits until the disk has it

    def run(self, function, *args, quick=False):
        """Runs something that works on this storage, without stalling other clients. `quick`: unless it waits for the disk, it takes
        less than a thread would need to take it over."""
        here = self.threads is None or quick and not self.sync
        return function(*args) if here else in_thread(self.threads, function, *args)

    def later(self, function, *args):
        """The same in the background; a failure is logged."""
        (gevent if self.threads is None else self.threads).spawn(_logging_errors, function, *args)

    def save(self, key, source, content_type, original_name="", size=None):
        """Stores bytes, or all of a binary file object, under `key`, replacing what was there; the file appears whole or not at all."""
        raise NotImplementedError

    def stat(self, key):
        """The StoredFile of `key`."""
        raise NotImplementedError

    def open(self, key):
        """A binary file object to read from; `read(n)` gives n bytes, fewer only at the end."""
        raise NotImplementedError

    def as_file(self, found):
        """A context manager: the path of a file on this disk that holds the content of a StoredFile."""
        raise NotImplementedError

    def content_type(self, key):
        """The type saved with the file; application/octet-stream when unknown."""
        return self.stat(key).content_type

    def delete(self, key):
        """Removes the file; nothing happens when it is not there."""
        raise NotImplementedError

    def delete_prefix(self, prefix):
        """Removes every file whose key starts with `prefix`."""
        raise NotImplementedError

    def list(self, prefix=""):
        """The StoredFile of each key that starts with `prefix`, in no particular order."""
        raise NotImplementedError

    def delete_leftovers(self, before):
        """Removes what interrupted saves left behind that is older than `before` (epoch seconds); keys never name such things."""

    def exists(self, key):
        """Whether there is a file under `key`."""
        try:
            self.stat(key)
        except FileNotFoundError:
            return False
        return True


def _logging_errors(function, *args):
    try:
        function(*args)
    except Exception:       # the boundary of background work
        LOG.exception("file storage: %s failed", getattr(function, "__name__", function))


_SIDECAR = ".attrs"
_TEMPORARY = re.compile(r"\.[0-9a-f]{8,}\.tmp\Z").search
_COPY_BYTES = 1 << 20
_METADATA_NAME_BYTES = 255
_KEY_ESCAPE = re.compile(r"[\x00-\x1f]|(?<=\.\.)/|(?<=/)/|/\Z")
_KEY_ESCAPED = re.compile(r"__0x([0-9a-f]+)__")


class LocalStorage(Storage):
    """Files below one directory, each with a `.attrs` sidecar that holds its content type, as PocketBase lays them out.

    `sync` makes a save survive power loss (two fsync calls); without it only a crash of the process."""

    def __init__(self, root, sync=True, threads=None):
        self.root, self.sync, self.threads = os.path.abspath(root), sync, threads

    def path(self, key):
        """The path of `key`; FileNotFoundError for keys that would leave the root or name a sidecar."""
        escaped = _KEY_ESCAPE.sub(lambda match: f"__0x{ord(match[0]):x}__", key)
        parts = escaped.split("/")
        if escaped.endswith(_SIDECAR) or any(part in ("", ".", "..") for part in parts):
            raise FileNotFoundError(key)
        return os.path.join(self.root, *parts)

    def save(self, key, source, content_type, original_name="", size=None):
        path = self.path(key)
        target = self._create(path)
        temporary = target.name
        try:
            with target:
                digest = _moved(source, temporary, size) or _copy(source, target, size)
                self._flush(source.file if isinstance(source, ReceivedFile) and source.file else target)
            with open(path + _SIDECAR, "wb", buffering=0) as sidecar:
                sidecar.write(_sidecar_text(content_type, original_name, digest).encode())
                self._flush(sidecar)
            os.replace(temporary, path)
        except BaseException:
            self._remove(temporary)
            if not os.path.exists(path):
                self._remove(path + _SIDECAR)
                self._prune(os.path.dirname(path))
            raise
        if self.sync:
            _sync_directory(os.path.dirname(path))

    def _create(self, path):
        """Opens a temporary file beside `path`; a parent may be pruned by another thread between mkdir and open, so more than one try."""
        directory = os.path.dirname(path)
        for attempt in range(20):
            try:
                _make_directory(directory)
                return open(f"{path}.{time.time_ns():x}.tmp", "xb", buffering=0)
            except (FileNotFoundError, FileExistsError):
                if attempt == 19:
                    raise

    def _flush(self, file):
        if self.sync:
            file.flush()
            os.fdatasync(file.fileno())

    def stat(self, key):
        path = self.path(key)
        found = self._stat(path)
        return StoredFile(key, found.st_size, found.st_mtime, path, _sidecar_type(path + _SIDECAR))

    @contextmanager
    def as_file(self, found):
        yield found.path

    def _stat(self, path):
        try:
            found = os.stat(path)
        except OSError as error:
            raise FileNotFoundError(path) from error
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(path)
        return found

    def open(self, key):
        path = self.path(key)
        self._stat(path)
        return open(path, "rb", buffering=0)

    def attributes(self, key):
        """The sidecar as a dict; {} when it is missing or broken."""
        return _read_sidecar(self.path(key) + _SIDECAR)

    def delete(self, key):
        path = self.path(key)
        self._remove(path)
        self._remove(path + _SIDECAR)
        self._prune(os.path.dirname(path))

    def delete_prefix(self, prefix):
        folder, _, start = prefix.rpartition("/")
        directory = self.path(folder) if folder else self.root
        if not start and folder:
            shutil.rmtree(directory, ignore_errors=True)
            return self._prune(os.path.dirname(directory))
        for entry in _scan_directory(directory):
            if entry.name.startswith(start):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    self._remove(entry.path)
        self._prune(directory)

    def list(self, prefix=""):
        folder = prefix.rpartition("/")[0]
        pending = [self.path(folder) if folder else self.root]
        while pending:
            for entry in _scan_directory(pending.pop()):
                key = self._key(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    if key.startswith(prefix) or prefix.startswith(key + "/"):
                        pending.append(entry.path)
                elif key.startswith(prefix) and not key.endswith(_SIDECAR) and not _TEMPORARY(key):
                    found = entry.stat()
                    yield StoredFile(key, found.st_size, found.st_mtime, entry.path)

    def delete_leftovers(self, before):
        for directory, _, names in os.walk(self.root):
            present = set(names)
            for name in names:
                if _TEMPORARY(name) or name.endswith(_SIDECAR) and name.removesuffix(_SIDECAR) not in present:
                    path = os.path.join(directory, name)
                    try:
                        if os.stat(path).st_mtime < before:
                            os.unlink(path)
                            self._prune(directory)
                    except FileNotFoundError:
                        continue

    def _key(self, path):
        key = os.path.relpath(path, self.root).replace(os.sep, "/")
        return _KEY_ESCAPED.sub(lambda match: chr(int(match[1], 16)), key)

    def _remove(self, path):
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            pass

    def _prune(self, directory):
        """Removes `directory` and its parents as long as they are empty, never the root."""
        while directory != self.root and directory.startswith(self.root + os.sep):
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                pass
            except OSError:
                return
            directory = os.path.dirname(directory)


def _make_directory(path):
    """os.makedirs for the usual case: the parent is there."""
    try:
        os.mkdir(path)
    except FileExistsError:
        pass
    except FileNotFoundError:
        os.makedirs(path, exist_ok=True)


def _scan_directory(directory):
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read_sidecar(path):
    try:
        with open(path, "rb", buffering=0) as sidecar:
            found = json.loads(sidecar.read())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _sidecar_type(path):
    """The content type that a sidecar tells; remembered as long as the sidecar is the same."""
    try:
        found = os.stat(path)
    except OSError:
        return "application/octet-stream"
    return _known_sidecar_type(path, found.st_mtime_ns, found.st_size, found.st_ino)


@functools.lru_cache(4096)
def _known_sidecar_type(path, *_version):
    return _read_sidecar(path).get("user.content_type") or "application/octet-stream"


def _moved(source, path, size):
    """Takes over a received file that is on disk, as `path`; its MD5, None when its bytes must be copied."""
    if not isinstance(source, ReceivedFile) or source.path is None or size not in (None, source.size):
        return None
    try:
        return source.move(path)
    except OSError as error:
        if error.errno != errno.EXDEV:      # the storage may be a mount of its own
            raise
        return None


def _copy(source, target, size):
    """Writes all of `source`, checks the promised size, gives the MD5 the sidecar wants."""
    digest, written = hashlib.md5(usedforsecurity=False), 0
    chunks = [source] if isinstance(source, (bytes, bytearray, memoryview)) else iter(lambda: source.read(_COPY_BYTES), b"")
    for chunk in chunks:
        digest.update(chunk)
        _write_all(target, chunk)
        written += len(chunk)
    if size is not None and written != size:
        raise OSError(f"expected {size} bytes, got {written}")
    return digest.digest()


def _write_all(target, data):
    """An unbuffered write may take less than it is given."""
    written = target.write(data)
    while written < len(data):
        written += target.write(memoryview(data)[written:])


def _metadata_name(original_name):
    """The original name as it is kept with the file: its first bytes."""
    return original_name.encode("utf-8", "replace")[:_METADATA_NAME_BYTES].decode("utf-8", "ignore")


def _sidecar_text(content_type, original_name, digest):
    """One line, as gocloud's fileblob writes it; the cap on the name is PocketBase's."""
    name = _metadata_name(original_name)
    attributes = {f"user.{key}": "" for key in ("cache_control", "content_disposition", "content_encoding", "content_language")}
    attributes["user.content_type"] = content_type
    attributes["user.metadata"] = {"original-filename": name} if name else {}
    attributes["md5"] = b64encode(digest).decode()
    return to_json(attributes)


def _sync_directory(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- S3 -----------------------------------------------------------------------
# Any endpoint that speaks the S3 API. Calls wait in their greenlet; nothing is kept on this disk, and memory holds a few parts of an
# upload or one block of a download. Requests are signed (SigV4) without hashing the body: over https its integrity is TLS's matter.

S3_PART_BYTES = 6 << 20         # a body from this size on goes in parts of it; the least that S3 takes is 5 MiB
_S3_PARALLEL = 4                # parts of one upload, or deletes of one prefix, under way at once: 24 MiB
_S3_TIMEOUT = (10, 60)          # seconds to connect; of silence while reading
_S3_ERROR_BYTES = 4096          # of an error's body, for its text
_S3_MISSING = frozenset(("NoSuchBucket", "NoSuchKey", "NotFound"))


class S3Storage(Storage):
    """Files in a bucket, as PocketBase keeps them there.

    `settings` are those under `s3`: bucket, region, endpoint (https unless it says otherwise), accessKey, secret, forcePathStyle.
    `temporary` is a directory for what must be a file for a while."""

    def __init__(self, settings, temporary):
        self.settings, self.temporary = dict(settings), temporary
        endpoint = settings["endpoint"] if "://" in settings["endpoint"] else "https://" + settings["endpoint"]
        parts = urlsplit(endpoint)
        host = parts.netloc if settings["forcePathStyle"] else f"{settings['bucket']}.{parts.netloc}"
        folder = quote(settings["bucket"], safe="") + "/" if settings["forcePathStyle"] else ""
        self.base = f"{parts.scheme}://{host}{parts.path.rstrip('/')}/{folder}"

    @functools.cached_property
    def _session(self):
        import requests                                         # 60 ms, only for those who keep files elsewhere
        session = requests.Session()
        session.auth = _s3_signature(self.settings)
        session.headers = {"Accept-Encoding": "identity"}
        for scheme in ("http://", "https://"):
            session.mount(scheme, requests.adapters.HTTPAdapter(pool_connections=1, pool_maxsize=64, max_retries=2))
        return session

    def _ask(self, method, key="", query=(), headers=None, body=None):
        """The answer to one request, its body unread. Raises FileNotFoundError or StorageError."""
        from requests import RequestException
        url = self.base + quote(key, safe="/-._~") + ("?" + urlencode(query, quote_via=quote) if query else "")
        try:
            answer = self._session.request(method, url, headers=headers, data=body, timeout=_S3_TIMEOUT, allow_redirects=False, stream=True)
            if answer.status_code < 300:
                return answer
            with answer:
                text = answer.raw.read(_S3_ERROR_BYTES).decode("utf-8", "replace")
        except (RequestException, OSError) as error:
            raise StorageError(f"[key: {key}] {error}") from None
        raise _s3_error(answer.status_code, text, key)

    def _text(self, method, key="", query=(), headers=None, body=None):
        """The body of the answer to one request, as text."""
        from requests import RequestException
        try:
            with self._ask(method, key, query, headers, body) as answer:
                return answer.content.decode("utf-8", "replace")
        except RequestException as error:
            raise StorageError(str(error)) from None

    def save(self, key, source, content_type, original_name="", size=None):
        source = io.BytesIO(source) if isinstance(source, (bytes, bytearray, memoryview)) else source
        headers = {"Content-Type": content_type}
        if original_name:
            headers["X-Amz-Meta-Original-Filename"] = quote(_metadata_name(original_name), safe="")
        first = _read_part(source)
        if len(first) < S3_PART_BYTES:
            _check_size(len(first), size)
            self._text("PUT", key, headers=headers, body=first)
        else:
            self._save_parts(key, first, source, headers, size)

    def _save_parts(self, key, first, source, headers, size):
        upload = (("uploadId", _xml_texts(self._text("POST", key, (("uploads", ""),), headers), "UploadId")[0]),)
        pool, parts, total, part = gevent.pool.Pool(_S3_PARALLEL), [], 0, first
        try:
            while part:
                total += len(part)
                parts.append(pool.spawn(self._save_part, key, upload, len(parts) + 1, part))      # waits while the pool is full
                part = _read_part(source)
            _check_size(total, size)
            tags = [_outcome(part) for part in parts]
            listed = "".join(f"<Part><ETag>{html.escape(tag)}</ETag><PartNumber>{number}</PartNumber></Part>" for number, tag in enumerate(tags, 1))
            body = f'<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{listed}</CompleteMultipartUpload>'
            done = self._text("POST", key, upload, {"Content-Type": "application/xml"}, body.encode())
            if "<Error>" in done:                               # it may come with status 200, when the work takes long
                raise _s3_error(200, done, key)
        except BaseException:
            pool.kill()
            self._abandon(key, upload)
            raise

    def _save_part(self, key, upload, number, part):
        """Its ETag, or the error: an exception in a greenlet of its own would be printed."""
        try:
            with self._ask("PUT", key, (("partNumber", number), *upload), None, part) as answer:
                return answer.headers["ETag"] if answer.content is not None else ""
        except OSError as error:
            return error

    def _abandon(self, key, upload):
        try:
            self._text("DELETE", key, upload)
        except OSError:                                         # what remains is `delete_leftovers`'s to remove
            pass

    def stat(self, key):
        with self._ask("HEAD", key) as answer:
            return StoredFile(key, int(answer.headers.get("Content-Length") or 0), _http_seconds(answer.headers.get("Last-Modified")), None,
                              answer.headers.get("Content-Type") or "application/octet-stream")

    def open(self, key):
        return _S3File(self, key)

    @contextmanager
    def as_file(self, found):
        with _S3File(self, found.key) as source, ReceivedFile(self.temporary, spool=0) as copy:
            for chunk in iter(lambda: source.read(_COPY_BYTES), b""):
                copy.write(chunk)
            copy.finish()
            yield copy.path

    def delete(self, key):
        try:
            self._text("DELETE", key)
        except FileNotFoundError:
            pass

    def delete_prefix(self, prefix):
        pool = gevent.pool.Pool(_S3_PARALLEL)
        jobs = [pool.spawn(self._try_delete, found.key) for found in self.list(prefix)]
        for job in jobs:
            _outcome(job)
        if prefix:
            self.delete(prefix)                                 # a marker that some tools leave for a folder

    def _try_delete(self, key):
        try:
            self.delete(key)
        except OSError as error:
            return error

    def list(self, prefix=""):
        query = {"list-type": "2", "max-keys": "1000", "prefix": prefix}
        while True:
            page = _xml(self._text("GET", "", sorted(query.items())))
            for item in page.iterfind("{*}Contents"):
                yield StoredFile(item.findtext("{*}Key"), int(item.findtext("{*}Size") or 0), _iso_seconds(item.findtext("{*}LastModified")))
            query["continuation-token"] = page.findtext("{*}NextContinuationToken")
            if not query["continuation-token"]:
                return

    def delete_leftovers(self, before):
        query = {"uploads": ""}
        while True:
            page = _xml(self._text("GET", "", sorted(query.items())))
            for item in page.iterfind("{*}Upload"):
                if _iso_seconds(item.findtext("{*}Initiated")) < before:
                    self._abandon(item.findtext("{*}Key"), (("uploadId", item.findtext("{*}UploadId")),))
            if page.findtext("{*}IsTruncated") != "true":
                return
            query |= {"key-marker": page.findtext("{*}NextKeyMarker"), "upload-id-marker": page.findtext("{*}NextUploadIdMarker")}


class _S3File(io.RawIOBase):
    """A stored object as a file to read from: a range request where reading begins, streamed from there on."""

    def __init__(self, storage, key):
        self.storage, self.key, self.at, self.answer = storage, key, 0, None

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        if offset != self.at:
            self._drop()
            self.at = offset
        return offset

    def read(self, size=-1):
        """`size` bytes, fewer only at the end."""
        if self.answer is None:
            self.answer = self.storage._ask("GET", self.key, headers={"Range": f"bytes={self.at}-"} if self.at else None)
        import urllib3
        try:
            data = self.answer.raw.read(None if size < 0 else size)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise StorageError(str(error)) from None
        self.at += len(data)
        return data

    def _drop(self):
        """Ends a download; what is left of it is not worth reading for the sake of the connection."""
        if self.answer is not None:
            self.answer.close()
            self.answer = None

    def close(self):
        self._drop()
        super().close()


def _s3_signature(settings):
    """SigV4 for `requests`: host, content-type and every x-amz-* header are signed, the body is not."""
    from requests_aws4auth import AWS4Auth

    class Signature(AWS4Auth):
        def __call__(self, request):
            body, request.body = request.body, None             # it would be hashed for nothing
            try:
                return super().__call__(request)
            finally:
                request.body = body

        @classmethod
        def get_canonical_headers(cls, request, include=None):
            request.headers["x-amz-content-sha256"] = "UNSIGNED-PAYLOAD"
            return super().get_canonical_headers(request, include)

    return Signature(settings["accessKey"], settings["secret"], settings["region"], "s3")


def _read_part(source):
    """The next S3_PART_BYTES of a file, fewer at its end; a file of this disk is read in a native thread."""
    def read():
        parts, missing = [], S3_PART_BYTES
        while missing and (data := source.read(missing)):
            parts.append(data)
            missing -= len(data)
        return b"".join(parts) if len(parts) != 1 else parts[0]
    return read() if isinstance(source, io.BytesIO) else in_thread(gevent.get_hub().threadpool, read)


def _check_size(total, promised):
    if promised is not None and total != promised:
        raise OSError(f"expected {promised} bytes, got {total}")


def _outcome(job):
    """What a greenlet returned; an error that it returned is raised."""
    value = job.get()
    if isinstance(value, Exception):
        raise value
    return value


def _s3_error(status, text, key):
    """`[key: a/b.txt] 404 NoSuchKey: The key does not exist.` and the raw answer; FileNotFoundError for what is not there."""
    code, message = (next(iter(_xml_texts(text, name)), "") for name in ("Code", "Message"))
    told = f"[key: {key}] {status} {code}: {message}\n(RAW: {text})"
    return FileNotFoundError(told + "\nresource not found") if status == 404 or code in _S3_MISSING else StorageError(told)


def _xml(text):
    from xml.etree import ElementTree                           # 10 ms
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError:
        raise StorageError(f"no XML: {text[:200]}") from None


def _xml_texts(text, name):
    """The texts of all elements of that name; none for what is no XML."""
    try:
        return [element.text or "" for element in _xml(text).iter() if element.tag.rpartition("}")[2] == name]
    except StorageError:
        return []


def _http_seconds(text):
    return parsedate_to_datetime(text).timestamp() if text else 0.0


def _iso_seconds(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() if text else 0.0


def try_storage(storage):
    """Saves, lists and deletes a file; raises OSError when one of them fails."""
    folder = f"pb_settings_test_{random_text(5)}"
    for what, work in (("upload", lambda: storage.save(f"{folder}/test.txt", b"test", "text/plain; charset=utf-8", "test.txt")),
                       ("delete", lambda: storage.delete_prefix(folder))):
        try:
            work()
        except OSError as error:
            raise OSError(f"failed to {what} a test file: {error}") from None


# --- Serving ------------------------------------------------------------------

# Types a browser may show in the page's own origin; all else is offered as a download.
_INLINE_TYPES = frozenset(
    [f"image/{kind}" for kind in "png jpg jpeg gif webp x-icon bmp".split()]
    + [f"video/{kind}" for kind in "webm mp4 3gpp quicktime x-ms-wmv".split()]
    + [f"audio/{kind}" for kind in "basic aiff mpeg midi mp3 wave wav x-wav x-mpeg x-m4a aac".split()]
    + ["application/pdf", "application/x-pdf"]
)
# By extension, where content alone cannot tell (case-sensitive, as in PocketBase)
_TYPES_BY_EXTENSION = {
    ".svg": "image/svg+xml",
    ".css": "text/css",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".docx": _OFFICE + "wordprocessingml.document",
    ".xlsx": _OFFICE + "spreadsheetml.sheet",
    ".pptx": _OFFICE + "presentationml.presentation",
}
_SERVED_HEADERS = {
    "Cache-Control": "max-age=2592000, stale-while-revalidate=86400",
    "Content-Security-Policy": "default-src 'none'; media-src 'self'; style-src 'unsafe-inline'; sandbox",
}


def served_headers(content_type, name, download=False):
    """Content-Type, Content-Disposition, Cache-Control and Content-Security-Policy of a stored file of that type and name."""
    disposition = "inline" if content_type in _INLINE_TYPES and not download else "attachment"
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    return {
        "Content-Type": _TYPES_BY_EXTENSION.get(os.path.splitext(name)[1], content_type),
        "Content-Disposition": f'{disposition}; filename="{quoted}"',
        **_SERVED_HEADERS,
    }


# --- Thumbs -------------------------------------------------------------------
# Made on first request, kept beside the file. Images are hostile until decoded: their claims are read first, and what they would cost
# in memory is taken from one account that all of them share, so that 80 photos at once need no more than two. Pillow works in native
# threads only. Whatever goes wrong, the caller serves the original.

DEFAULT_THUMB = "100x100"                       # allowed for every file field
THUMB_MEMORY = 176 << 20                        # bytes that all decodes together may take; an image that needs more keeps no thumb
THUMB_WAIT = float(os.environ.get("PB_THUMBS_MAX_WAIT") or 60)      # seconds a request waits before it gets the original
_THUMB_WORKERS = int(os.environ.get("PB_THUMBS_MAX_WORKERS") or max(2, os.cpu_count() or 1))
_HOPELESS_THUMBS = 10_000                       # remembered failures; stored files never change, so a second try is work for nothing

# stored type -> Pillow's module and class (asked directly, since Image.open would load all its plugins for a broken file),
# format and type of the thumb, bytes a pixel costs the decoder beside the image itself (libwebp holds two canvases and a copy)
THUMB_TYPES = {
    "image/png": ("PngImagePlugin", "PngImageFile", "PNG", "image/png", 0),
    "image/jpeg": ("JpegImagePlugin", "JpegImageFile", "JPEG", "image/jpeg", 0),
    "image/jpg": ("JpegImagePlugin", "JpegImageFile", "JPEG", "image/jpeg", 0),
    "image/gif": ("GifImagePlugin", "GifImageFile", "GIF", "image/gif", 0),
    "image/webp": ("WebPImagePlugin", "WebPImageFile", "PNG", "image/png", 10),
}
# Pillow's mode -> mode worked in, bytes a pixel costs at the peak (alpha is premultiplied in a copy)
_THUMB_MODES = {"L": ("L", 1), "1": ("L", 2), "RGB": ("RGB", 4), "CMYK": ("RGB", 8), "YCbCr": ("RGB", 8), "RGBA": ("RGBA", 8), "LA": ("LA", 8)}
_PROGRESSIVE_BYTES = 6                          # a pixel of a progressive JPEG: all coefficients are kept until the last scan
_EXIF_ORIENTATION = 0x0112
# EXIF orientation -> name in Image.Transpose that puts the image upright
_UPRIGHT = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}


class ThumbError(ValueError):
    """An image that no thumb is made of."""


def thumb_geometry(width, height, size):
    """((left, top, right, bottom) of the part to scale, (width, height) of the result) for an upright image and a thumb format.

    >>> thumb_geometry(60, 40, "30x40")         # WxH, cut from the middle; WxHt and WxHb from the top and the bottom
    ((15.0, 0, 45.0, 40), (30, 40))
    >>> thumb_geometry(60, 40, "30x40f")        # WxHf fits inside and never enlarges
    ((0, 0, 60, 40), (30, 20))
    >>> thumb_geometry(60, 40, "50x0")          # one side given, the other in proportion
    ((0, 0, 60, 40), (50, 33))
    """
    match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})([tbf]?)", size)
    if not match or not width or not height:
        raise ThumbError(f"no thumb {size} of {width}x{height}")
    wide, high, kind, whole = int(match[1]), int(match[2]), match[3], (0, 0, width, height)
    if kind == "f" and wide and high:
        if width <= wide and height <= high:
            return whole, (width, height)
        wide, high = (wide, int(wide * height / width)) if width * high > wide * height else (int(high * width / height), high)
    if not wide or not high:
        wide, high = wide or max(1, int(high * width / height + 0.5)), high or max(1, int(wide * height / width + 0.5))
        return whole, (wide, high)
    return whole if kind == "f" else _cover(width, height, wide, high, kind), (wide, high)


def _cover(width, height, wide, high, kind):
    """The largest part of an image that has the proportions wide x high."""
    if width * high > wide * height:
        part = height * wide / high
        return (width - part) / 2, 0, (width + part) / 2, height
    part = width * high / wide
    top = {"t": 0, "b": height - part}.get(kind, (height - part) / 2)
    return 0, top, width, top + part


@functools.cache
def _return_large_blocks():
    """Makes glibc give back blocks of a megabyte when they are freed. Its own threshold rises to 32 MB with use, after which the heaps
    of the worker threads keep the pixels of past images: 387 MB at the peak of 80 photos instead of 245."""
    import ctypes
    try:
        ctypes.CDLL(None).mallopt(-3, 1 << 20)                  # M_MMAP_THRESHOLD
    except (AttributeError, OSError, TypeError):                # another C library
        pass


def _open_image(path, content_type):
    """The image of a file with only its head read, its pixels not yet decoded."""
    _return_large_blocks()
    module, name = THUMB_TYPES[content_type][:2]
    plugin = __import__("PIL." + module, fromlist=[name])       # Pillow: 30 ms and 8 MB on first use
    return getattr(plugin, name)(path)


def _draft(image, size):
    """Lets a JPEG be decoded at 1/2, 1/4 or 1/8; (EXIF orientation, part, result size) as for thumb_geometry, after that."""
    turn = image.getexif().get(_EXIF_ORIENTATION, 1) if image.format == "JPEG" else 1
    width, height = image.size[::-1] if turn in (5, 6, 7, 8) else image.size
    (left, top, right, bottom), result = thumb_geometry(width, height, size)
    shrink = min((right - left) / result[0], (bottom - top) / result[1]) / 2        # twice the result, for a smooth last step
    if shrink > 1:
        image.draft(None, tuple(math.ceil(side / shrink) for side in image.size))
    new_width, new_height = image.size[::-1] if turn in (5, 6, 7, 8) else image.size
    x, y = new_width / width, new_height / height
    return turn, (left * x, top * y, min(right * x, new_width), min(bottom * y, new_height)), result


def thumb_cost(path, content_type, size):
    """Bytes of memory that making this thumb takes, by what the head of the file claims."""
    with _open_image(path, content_type) as image:
        claimed = image.size[0] * image.size[1]
        progressive = bool(image.info.get("progressive"))
        _, _, result = _draft(image, size)
        each = _THUMB_MODES.get(image.mode, ("", 9))[1] + THUMB_TYPES[content_type][4]
        return image.size[0] * image.size[1] * each + claimed * _PROGRESSIVE_BYTES * progressive + result[0] * (result[1] + image.size[1]) * 8


def render_thumb(path, content_type, size):
    """The encoded thumb of an image file: first frame, upright, triangle filter, without the original's metadata."""
    with _open_image(path, content_type) as opened:
        from PIL import Image
        turn, part, result = _draft(opened, size)
        opened.load()
        image = _plain(opened)
    if turn in _UPRIGHT:
        image = image.transpose(Image.Transpose[_UPRIGHT[turn]])
    if result != image.size or part != (0, 0, *image.size):
        image = image.resize(result, Image.Resampling.BILINEAR, part, None if image.mode in ("RGBA", "LA") else 2.0)
    image.info = {}
    out = io.BytesIO()
    image.save(out, THUMB_TYPES[content_type][2], **({"quality": 95} if THUMB_TYPES[content_type][2] == "JPEG" else {}))
    return out.getvalue()


def _plain(image):
    """In a mode that can be scaled: palettes resolved, 16 bits cut to 8."""
    if image.mode.startswith("I"):
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    mode = _THUMB_MODES.get(image.mode, ("RGBA",))[0]
    return image if mode == image.mode else image.convert(mode)


class _MemoryAccount:
    """What several tasks may take together; who comes first is served first, and who wants more than there is, never."""

    def __init__(self, total):
        self.total, self.used = total, 0
        self.door, self.returned = BoundedSemaphore(1), gevent.event.Event()

    def take(self, amount):
        if amount > self.total:
            raise ThumbError(f"it would take {amount >> 20} MB")
        with self.door:
            while self.used + amount > self.total:
                self.returned.clear()
                self.returned.wait()
            self.used += amount

    def give(self, amount):
        self.used -= amount
        self.returned.set()


class ThumbMaker:
    """Makes thumbs: each once however many ask for it, few at a time, within THUMB_MEMORY."""

    def __init__(self, workers=_THUMB_WORKERS, memory=THUMB_MEMORY):
        self.threads, self.workers = gevent.threadpool.ThreadPool(workers), BoundedSemaphore(workers)
        self.memory = _MemoryAccount(memory)
        self.making, self.hopeless = {}, set()

    def ensure(self, storage, source, target, size):
        """Makes the thumb `target` of the StoredFile `source`, unless it can't be made or takes too long; whether it is there."""
        if target in self.hopeless:
            return False
        job = self.making.get(target)
        if job is None:
            job = self.making[target] = gevent.spawn(self._make, storage, source, target, size)
        job.join(THUMB_WAIT)
        return job.value is True

    def _make(self, storage, source, target, size):
        try:
            data = self._rendered(storage, source, size)
            storage.run(storage.save, target, data, THUMB_TYPES[source.content_type][3])
            return True
        except FileNotFoundError:                   # deleted meanwhile
            return False
        except Exception as error:                  # whatever a decoder makes of a hostile file: OSError, SyntaxError, struct.error ...
            LOG.warning("no thumb %s: %s", target, error)
            if len(self.hopeless) >= _HOPELESS_THUMBS:
                self.hopeless.clear()
            if not isinstance(error, StorageError):
                self.hopeless.add(target)
            return False
        finally:
            del self.making[target]

    def _rendered(self, storage, source, size):
        with self.workers, storage.as_file(source) as path:
            cost = in_thread(self.threads, thumb_cost, path, source.content_type, size)
            self.memory.take(cost)
            try:
                return in_thread(self.threads, render_thumb, path, source.content_type, size)
            finally:
                self.memory.give(cost)


def thumb_key(key, size):
    """`c/r/a.png`, `100x100` -> `c/r/thumbs_a.png/100x100_a.png`."""
    folder, _, name = key.rpartition("/")
    return f"{folder}/thumbs_{name}/{size}_{name}"


# ============================================================================
#  8. Fields
# ============================================================================
# One class a field type: its column, its options and their checks, how input is
# cast, how a value is stored, loaded, validated and written as JSON.
#
# A value has one form inside (text, number, bool, list of texts, geo dict, JSON
# text) and one in the database; `store` and `load` go between them.  Records never
# branch on a type; they ask the field.

RESERVED_FIELD_NAMES = frozenset("null true false _rowid_ collectionId collectionName expand".split())
SAFE_INT = 9007199254740991         # 2**53 - 1: the largest whole number that JSON clients can hold
DEFAULT_TEXT_MAX = 5000             # characters
DEFAULT_EDITOR_BYTES = 5 << 20
DEFAULT_JSON_BYTES = 1 << 20
DEFAULT_FILE_BYTES = 5 << 20
INVALID_NAME_BYTES = 250            # shown of a name that is no file's
PASSWORD_MAX = 71                   # characters; bcrypt itself looks at 72 bytes
DEFAULT_ID_PATTERN = "^[a-z0-9]+$"
FORBIDDEN_ID_CHARACTERS = "./\\|\"'`<>:?*%$\0\t\n\r "
RESERVED_IDS = frozenset("CON PRN AUX NUL".split()) | {f"{d}{n}" for d in ("COM", "LPT") for n in range(1, 10)}

#: Options that (nearly) every type has: name -> (kind, default).
COMMON_OPTIONS = {"hidden": ("bool", False), "id": ("text", ""), "name": ("text", ""), "presentable": ("bool", False),
                  "required": ("bool", False), "system": ("bool", False), "help": ("text", "")}


class Upload(str):
    """A newly uploaded file inside a file field's value: as text its stored name, besides what is needed to save it."""

    original = ""
    size = 0
    mime = ""
    source = None           # file-like, positioned anywhere

    @classmethod
    def of(cls, name, original, size, mime, source):
        upload = cls(name)
        upload.original, upload.size, upload.mime, upload.source = original, size, mime, source
        return upload


class Field:
    """What all types share. Attributes are the options (`field.name`, `field.max_select`, ...)."""

    type = ""
    column = "TEXT DEFAULT '' NOT NULL"
    OPTIONS = {}
    listed = False                          # select, relation, file: single or multiple
    modifiers = ()                          # words of `apply`: "+", "-", "prepend", "autogenerate"
    zero = ""

    def __init__(self, data=None):
        data = data or {}
        for name, (kind, default) in self.all_options().items():
            value = fit(kind, data[name]) if name in data else (default.copy() if isinstance(default, list) else default)
            setattr(self, attribute_name(name), value)
        self.ready()

    @classmethod
    def all_options(cls):
        return {**COMMON_OPTIONS, **cls.OPTIONS}

    def ready(self):
        """Works out what follows from the options."""
        self.multiple = self.listed and self.max_select > 1

    def as_json(self):
        """The field object of a collection, keys sorted as on disk and in the API."""
        out = {name: getattr(self, attribute_name(name)) for name in self.all_options()}
        out["type"] = self.type
        return dict(sorted(out.items()))

    def column_sql(self):
        if self.listed and self.multiple:
            return "JSON DEFAULT '[]' NOT NULL"
        return self.column

    # values

    def cast(self, value):
        return cast_text(value)

    def load(self, stored):
        return read_text(stored)

    def store(self, value):
        return value

    def is_blank(self, value):
        return value == self.zero

    def apply(self, modifier, value, operand):
        """The value after `field+`, `field-`, `+field` or `field:autogenerate`."""
        raise KeyError(modifier)

    def check(self, value, context):
        """FieldError or None; `context` has .record, .db and .schema."""
        if self.is_blank(value):
            return FieldError("validation_required") if self.required else None
        return self.check_value(value, context)

    def check_value(self, value, context):
        return None

    def to_json(self, value):
        """The value as JSON text."""
        return quote_json(value)

    def exported(self, value):
        """The value as Python data equal to its JSON."""
        return value

    # options

    def check_options(self, collection, schema):
        """{option name or path: FieldError}; `collection` is the new state, `schema` the current one."""
        return {}

    def __repr__(self):
        return f"<{self.type} field {self.name}>"


def attribute_name(option):
    """`maxSelect` -> `max_select`, `convertURLs` -> `convert_urls`."""
    return re.sub(r"(?<=[a-z])([A-Z]+)", lambda m: "_" + m[1].lower(), option)


def _whole_range(field, *names):
    """0 ... 2**53-1 for size-like options."""
    errors = {}
    for name in names:
        error = first_error(getattr(field, attribute_name(name)), at_least_anyway(0), at_most(SAFE_INT))
        if error:
            errors[name] = error
    return errors


def _pattern_error(pattern):
    try:
        pattern and compile_pattern(pattern)
    except ValueError as error:
        return FieldError("validation_invalid_regex", str(error))
    return None


class TextField(Field):
    type = "text"
    OPTIONS = {"autogeneratePattern": ("text", ""), "max": ("int", 0), "min": ("int", 0), "pattern": ("text", ""), "primaryKey": ("bool", False)}
    modifiers = ("autogenerate",)

    def column_sql(self):
        return f"TEXT PRIMARY KEY DEFAULT {DIALECT['random_id']} NOT NULL" if self.primary_key else self.column

    def apply(self, modifier, value, operand):
        text = cast_text(operand)
        return text + generate_from_pattern(self.autogenerate_pattern) if self.autogenerate_pattern else text

    def autogenerated(self):
        return generate_from_pattern(self.autogenerate_pattern)

    def check(self, value, context):
        if not self.primary_key:
            return super().check(value, context)
        if not context.record.is_new and value != context.record.original["id"]:
            return FieldError("validation_pk_change")
        return self._check_taken(value, context) or super().check(value, context) or self._check_key(value, context)

    def _check_taken(self, value, context):
        """Keys that differ in letter case only would share a folder on some disks; the default pattern has no letter case."""
        record = context.record
        if not record.is_new or self.pattern == DEFAULT_ID_PATTERN or not value:
            return None
        taken = context.db.read(f"SELECT 1 FROM {quote_name(record.collection.name)} WHERE `id`=? COLLATE NOCASE LIMIT 1", (value,))
        return FieldError("validation_pk_invalid") if taken else None

    def check_value(self, value, context):
        size = len(value)
        if size < self.min:
            return FieldError("validation_min_text_constraint", min=self.min)
        if size > (self.max or DEFAULT_TEXT_MAX):
            return FieldError("validation_max_text_constraint", max=self.max or DEFAULT_TEXT_MAX)
        if self.pattern and not compile_pattern(self.pattern).search(value):
            return FieldError("validation_invalid_format")
        return None

    def _check_key(self, value, context):
        record = context.record
        if not record.is_new or self.pattern == DEFAULT_ID_PATTERN or not value:
            return None
        for character in value:
            if character in FORBIDDEN_ID_CHARACTERS:
                return FieldError("validation_forbidden_pk_character", f"'{character}' is not a valid primary key character.", ch=character)
        if value.upper() in RESERVED_IDS:
            return FieldError("validation_reserved_pk", f"The primary key '{value}' is reserved and cannot be used.", reserved=value)
        return None

    def check_options(self, collection, schema):
        errors = {}
        if self.primary_key:
            errors.update(self._check_key_options(collection))
        for name, *checks in (("min", at_least_anyway(0), at_most(SAFE_INT)),
                              ("max", at_least(max(self.min, 0)), at_most(SAFE_INT), satisfies(lambda v: v >= 0, "validation_invalid_value"))):
            error = first_error(getattr(self, name), *checks)
            if error:
                errors.setdefault(name, error)
        error = _pattern_error(self.pattern)
        if error:
            errors.setdefault("pattern", error)
        error = self._check_autogenerate()
        if error:
            errors["autogeneratePattern"] = error
        return errors

    def _check_key_options(self, collection):
        errors = {}
        if self.name != "id":
            errors["name"] = FieldError("validation_in_invalid", 'The primary key must be named "id".')
        if sum(1 for f in collection.fields if f.type == "text" and f.primary_key) > 1:
            errors["primaryKey"] = FieldError("validation_unsupported_composite_pk")
        if not self.pattern:
            errors["pattern"] = FieldError("validation_required")
        if not self.required:
            errors["required"] = FieldError("validation_required")
        if self.hidden:
            errors["hidden"] = FieldError("validation_empty")
        return errors

    def _check_autogenerate(self):
        if not self.autogenerate_pattern:
            return None
        error = _pattern_error(self.autogenerate_pattern)
        if error:
            return error
        try:
            samples = [generate_from_pattern(self.autogenerate_pattern) for _ in range(10)]
        except ValueError as unsupported:
            return FieldError("validation_invalid_autogenerate_pattern", str(unsupported))
        for sample in samples:
            if sample and self.check_value(sample, None):
                return FieldError("validation_invalid_autogenerate_pattern_value",
                                  f"The provided autogenerate pattern could produce invalid field values, ex.: {quote_json(sample)}.")
        return None


class EditorField(Field):
    type = "editor"
    OPTIONS = {"convertURLs": ("bool", False), "maxSize": ("int", 0)}

    def check_value(self, value, context):
        limit = self.max_size or DEFAULT_EDITOR_BYTES
        return FieldError("validation_content_size_limit", maxSize=limit) if len(value.encode()) > limit else None

    def check_options(self, collection, schema):
        return _whole_range(self, "maxSize")


class NumberField(Field):
    type = "number"
    column = "NUMERIC DEFAULT 0 NOT NULL"
    OPTIONS = {"max": ("number?", None), "min": ("number?", None), "onlyInt": ("bool", False)}
    modifiers = ("+", "-")
    zero = 0

    def cast(self, value):
        return cast_number(value)

    def load(self, stored):
        return read_number(stored)

    def store(self, value):
        return float(value) if isinstance(value, int) and abs(value) > SAFE_INT else value

    def apply(self, modifier, value, operand):
        step = self.cast(operand)
        return self.cast(float(value) + step if modifier == "+" else float(value) - step)

    def check(self, value, context):
        if value != value or value in (math.inf, -math.inf):
            return FieldError("validation_not_a_number")
        return super().check(value, context)

    def check_value(self, value, context):
        if self.only_int and (value != int(value) or abs(value) >= 2 ** 63):
            return FieldError("validation_only_int_constraint")
        if self.min is not None and value < self.min:
            return FieldError("validation_min_number_constraint", min=self.min)
        if self.max is not None and value > self.max:
            return FieldError("validation_max_number_constraint", max=self.max)
        return None

    def to_json(self, value):
        return format_number(value)

    def check_options(self, collection, schema):
        errors = {}
        for name in ("min", "max") if self.only_int else ():
            value = getattr(self, name)
            if value is not None and value != int(value):
                errors[name] = FieldError("validation_only_int_constraint")
        if self.min is not None and self.max is not None and self.max < self.min:
            errors.setdefault("max", FieldError("validation_min_number_constraint", min=self.min))
        return errors


class BoolField(Field):
    type = "bool"
    column = "BOOLEAN DEFAULT FALSE NOT NULL"
    zero = False

    def cast(self, value):
        return cast_bool(value)

    def load(self, stored):
        return read_bool(stored)

    def store(self, value):
        return 1 if value else 0

    def to_json(self, value):
        return "true" if value else "false"


def _check_domains(field):
    """onlyDomains and exceptDomains exclude each other; every entry is a domain."""
    errors = {}
    for name, domains in (("exceptDomains", field.except_domains), ("onlyDomains", field.only_domains)):
        if field.except_domains and field.only_domains:
            errors[name] = FieldError("validation_empty")
            continue
        for index, domain in enumerate(domains):
            if not is_domain(domain):
                errors[f"{name}.{index}"] = FieldError("validation_is_domain")
    return errors


def _domain_refused(field, domain):
    return (field.only_domains and domain not in field.only_domains) or (field.except_domains and domain in field.except_domains)


class EmailField(Field):
    type = "email"
    OPTIONS = {"exceptDomains": ("texts", []), "onlyDomains": ("texts", [])}

    def check_value(self, value, context):
        if not is_email(value):
            return FieldError("validation_is_email")
        if _domain_refused(self, value.rpartition("@")[2]):
            return FieldError("validation_email_domain_not_allowed")
        return None

    def check_options(self, collection, schema):
        return _check_domains(self)


class UrlField(Field):
    type = "url"
    OPTIONS = {"exceptDomains": ("texts", []), "onlyDomains": ("texts", [])}

    def check_value(self, value, context):
        if not is_url(value):
            return FieldError("validation_invalid_url")
        if _domain_refused(self, url_host(value)):
            return FieldError("validation_url_domain_not_allowed")
        return None

    def check_options(self, collection, schema):
        return _check_domains(self)


class DateField(Field):
    type = "date"
    OPTIONS = {"max": ("date", ""), "min": ("date", "")}

    def cast(self, value):
        return parse_date(value)

    def load(self, stored):
        return read_date(stored)

    def check_value(self, value, context):
        for limit, code, beyond in ((self.min, "validation_min_greater_equal_than_required", value < self.min),
                                    (self.max, "validation_max_less_equal_than_required", self.max and value > self.max)):
            if limit and beyond:
                error = FieldError(code, threshold=date_words(limit))
                error.params = {"threshold": date_rfc3339(limit)}
                return error
        return None


def date_words(text):
    """`2020-01-01 00:00:00.500Z` -> `2020-01-01 00:00:00.5 +0000 UTC`, the form inside messages."""
    return re.sub(r"\.?0*Z$", "", text) + " +0000 UTC"


def date_rfc3339(text):
    return re.sub(r"\.?0*Z$", "", text).replace(" ", "T") + "Z"


class AutodateField(Field):
    type = "autodate"
    OPTIONS = {"onCreate": ("bool", False), "onUpdate": ("bool", False)}
    required = False

    @classmethod
    def all_options(cls):
        return {name: kind for name, kind in {**COMMON_OPTIONS, **cls.OPTIONS}.items() if name not in ("required", "help")}

    def cast(self, value):
        return parse_date(value)

    def load(self, stored):
        return read_date(stored)

    def check_options(self, collection, schema):
        if self.on_create or self.on_update:
            return {}
        error = FieldError("validation_required", "Either onCreate or onUpdate must be enabled.")
        return {"onCreate": error, "onUpdate": error}


class ListedField(Field):
    """select, relation and file: one text, or with maxSelect > 1 a list of texts."""

    listed = True
    modifiers = ("+", "-", "prepend")

    def ready(self):
        super().ready()
        self.zero = [] if self.multiple else ""

    def given(self, value):
        """The texts that a request names."""
        return cast_list(value)

    def cast(self, value):
        values = self.given(value)
        return values if self.multiple else (values[-1] if values else "")

    def load(self, stored):
        return read_list(stored) if self.multiple else read_single(stored)

    def store(self, value):
        if self.multiple:
            return to_json(value) if value else "[]"
        return str(value) if type(value) is not str else value

    def items(self, value):
        """The value as a list, whichever form the field has."""
        return value if self.multiple else ([value] if value else [])

    def apply(self, modifier, value, operand):
        have, given = self.items(value), self.given(operand)
        if modifier == "-":
            values = [v for v in have if v not in given]
        else:
            values = list(dict.fromkeys(have + given if modifier == "+" else given + have))
        return values if self.multiple else (values[-1] if values else "")

    def to_json(self, value):
        return to_json(value) if self.multiple else quote_json(value)

    def exported(self, value):
        return [str(v) for v in value] if self.multiple else str(value)


class SelectField(ListedField):
    type = "select"
    OPTIONS = {"maxSelect": ("int", 0), "values": ("texts", [])}

    def check_value(self, value, context):
        values = self.items(value)
        if self.multiple and len(values) > self.max_select:
            return FieldError("validation_too_many_values", maxSelect=self.max_select)
        for item in values:
            if item not in self.values:
                return FieldError("validation_invalid_value", f"Invalid value {item}.", value=item)
        return None

    def check_options(self, collection, schema):
        errors = {}
        if not self.values:
            errors["values"] = FieldError("validation_required")
        error = first_error(self.max_select, at_least_anyway(0), at_most(max(len(self.values), 1)))
        if error:
            errors["maxSelect"] = error
        return errors


class RelationField(ListedField):
    type = "relation"
    OPTIONS = {"cascadeDelete": ("bool", False), "collectionId": ("text", ""), "maxSelect": ("int", 0), "minSelect": ("int", 0)}

    def check_value(self, value, context):
        ids = self.items(value)
        if self.min_select and len(ids) < self.min_select:
            return FieldError("validation_not_enough_values", minSelect=self.min_select)
        if self.multiple and len(ids) > self.max_select:
            return FieldError("validation_too_many_values", maxSelect=self.max_select)
        target = context.schema.find(self.collection_id)
        if target is None:
            return FieldError("validation_missing_rel_collection")
        found = context.db.read(f"SELECT count(*) FROM {quote_name(target.name)} WHERE `id` IN ({placeholders(ids)})", ids)[0][0]
        return FieldError("validation_missing_rel_records") if found != len(set(ids)) else None

    def check_options(self, collection, schema):
        errors = {}
        old = schema.find_exact(collection.id)
        old_field = old and next((f for f in old.fields if f.id == self.id), None)
        if not self.collection_id:
            errors["collectionId"] = FieldError("validation_required")
        elif old_field is not None and old_field.type == "relation" and old_field.collection_id != self.collection_id:
            errors["collectionId"] = FieldError("validation_field_relation_change")
        else:
            target = collection if collection.id == self.collection_id else schema.find_exact(self.collection_id)
            if target is None:
                errors["collectionId"] = FieldError("validation_field_relation_missing_collection")
            elif collection.type != "view" and target.type == "view":
                errors["collectionId"] = FieldError("validation_relation_field_non_view_base_collection")
        checks = (required,) if self.min_select > 0 else ()
        for name, tests in (("minSelect", (at_least_anyway(0),)), ("maxSelect", (*checks, at_least(self.min_select)))):
            error = first_error(getattr(self, attribute_name(name)), *tests)
            if error:
                errors[name] = error
        return errors


class FileField(ListedField):
    type = "file"
    OPTIONS = {"maxSelect": ("int", 0), "maxSize": ("int", 0), "mimeTypes": ("texts", []), "protected": ("bool", False), "thumbs": ("texts", [])}

    def given(self, value):
        """Uploads, and names to keep; lists in the list too."""
        while isinstance(value, list) and any(isinstance(item, list) for item in value):
            value = list(itertools.chain.from_iterable(item if isinstance(item, list) else [item] for item in value))
        return cast_list(value)

    def check_value(self, value, context):
        names, stored = self.items(value), self.items(context.record.original.get(self.name, self.zero))
        unknown = [name for name in names if not isinstance(name, Upload) and name not in stored]
        if unknown:
            names = [name.encode("utf-8", "replace")[:INVALID_NAME_BYTES].decode("utf-8", "replace") for name in unknown]
            return FieldError("validation_invalid_file", f"Invalid new files: [{' '.join(names)}].", invalidFiles=names)
        if self.multiple and len(names) > self.max_select:
            return FieldError("validation_too_many_files", maxSelect=self.max_select)
        for upload in names:
            error = isinstance(upload, Upload) and self.check_upload(upload)
            if error:
                return error
        return None

    def check_upload(self, upload):
        limit = self.max_size or DEFAULT_FILE_BYTES
        if upload.size > limit:
            return FieldError("validation_file_size_limit", file=upload.original[:300], maxSize=limit)
        if self.mime_types and upload.mime.partition(";")[0] not in [m.partition(";")[0] for m in self.mime_types]:
            return FieldError("validation_invalid_mime_type", f'"{upload}" mime type must be one of: {", ".join(self.mime_types)}.')
        return None

    def check_options(self, collection, schema):
        errors = _whole_range(self, "maxSelect", "maxSize")
        for index, size in enumerate(self.thumbs):
            if size in ("0x0", "0x0t", "0x0b", "0x0f"):
                errors[f"thumbs.{index}"] = FieldError("validation_not_in_invalid")
            elif size and not re.fullmatch(r"[0-9]+x[0-9]+[tbf]?", size):
                errors[f"thumbs.{index}"] = FieldError("validation_match_invalid")
        return errors


class JsonField(Field):
    """The value inside is JSON text; None stands for null."""

    type = "json"
    column = "JSON DEFAULT NULL"
    OPTIONS = {"maxSize": ("int", 0)}
    zero = None

    def cast(self, value):
        return cast_json(value)

    def load(self, stored):
        return None if stored is None else read_json(stored)

    def is_blank(self, value):
        return value in (None, "null", '""', "[]", "{}")

    def check(self, value, context):
        limit = self.max_size or DEFAULT_JSON_BYTES
        if value is not None:
            if not is_json(value):
                return FieldError("validation_invalid_json")
            if len(value.encode()) > limit:
                return FieldError("validation_json_size_limit", maxSize=limit)
        return FieldError("validation_required") if self.required and self.is_blank(value) else None

    def to_json(self, value):
        return "null" if value is None else read_json(value)

    def exported(self, value):
        return None if value is None else json.loads(value)

    def check_options(self, collection, schema):
        return _whole_range(self, "maxSize")


class GeoPointField(Field):
    type = "geoPoint"
    column = "JSON DEFAULT '{\"lon\":0,\"lat\":0}' NOT NULL"
    zero = {"lon": 0, "lat": 0}

    def cast(self, value):
        return cast_geo_point(value)

    def load(self, stored):
        return read_geo_point(stored)

    def store(self, value):
        return self.to_json(value)

    def check_value(self, value, context):
        if not -90 <= value["lat"] <= 90:
            return FieldError("validation_invalid_latitude")
        return FieldError("validation_invalid_longitude") if not -180 <= value["lon"] <= 180 else None

    def to_json(self, value):
        return f'{{"lon":{format_number(value["lon"])},"lat":{format_number(value["lat"])}}}'


class PasswordField(Field):
    """The value inside is the bcrypt hash; a password that a request set waits in the record's `passwords` until it is hashed."""

    type = "password"
    OPTIONS = {"cost": ("int", 0), "max": ("int", 0), "min": ("int", 0), "pattern": ("text", "")}

    def check(self, value, context):
        plain = context.record.passwords.get(self.name)
        if plain is None:
            return FieldError("validation_required") if self.required and not value else None
        return self.check_plain(plain)

    def check_plain(self, plain):
        """What a password must satisfy before it is hashed."""
        if not plain:
            return FieldError("validation_required") if self.required else None
        size, most = len(plain), self.max or PASSWORD_MAX
        if size < self.min:
            return FieldError("validation_min_text_constraint", min=self.min).without_params()
        if size > most:
            return FieldError("validation_max_text_constraint", f"Must be less than {most} character(s).")
        if self.pattern and not compile_pattern(self.pattern).search(plain):
            return FieldError("validation_invalid_format")
        return FieldError("validation_invalid_value") if len(plain.encode()) > 72 else None

    def to_json(self, value):
        return '""'

    def exported(self, value):
        return ""

    def check_options(self, collection, schema):
        errors = {}
        for name, *checks in (("min", at_least(1), at_most(PASSWORD_MAX)), ("max", at_least(self.min), at_most(PASSWORD_MAX)),
                              ("cost", at_least(4), at_most(31))):
            error = first_error(getattr(self, name), *checks)
            if error:
                errors[name] = error
        error = _pattern_error(self.pattern)
        if error:
            errors["pattern"] = error
        return errors


FIELD_TYPES = {cls.type: cls for cls in (TextField, NumberField, BoolField, EmailField, UrlField, EditorField, DateField, AutodateField,
                                         SelectField, JsonField, FileField, RelationField, PasswordField, GeoPointField)}


def field_from_json(data):
    """A Field of a field object; ShapeError for an unknown type or a wrong JSON type."""
    if not isinstance(data, dict) or data.get("type") not in FIELD_TYPES:
        raise ShapeError(f"missing or unknown field type in {data!r}")
    return FIELD_TYPES[data["type"]](data)


def checksum(text):
    """The CRC-32 that generated ids end in."""
    return str(zlib.crc32(text.encode()))


# ============================================================================
#  9. Filters
# ============================================================================
# Owns the filter language: client `filter` and `sort`, API rules, and the SQL they become. One text is parsed once, compiled
# once a schema version and kind of caller, and then only bound.
# Invariant: SQL text is made of constants, of names the schema holds (through quote_name) and of JSON paths reduced to word
# characters; every value travels as a bound parameter. What the caller may not see never reaches the SQL.
# Uses: ApiError of Errors. Reads collections only through `schema.find`; runs no statement itself.


FILTER_LENGTH_LIMIT = 3500      # bytes of a client filter; rules are written by superusers and have no such limit
EXPRESSION_LIMIT = 200          # comparisons in one text
RELATION_HOPS_LIMIT = 6         # relations on one path
FUNCTION_DEPTH_LIMIT = 3        # nested calls the scanner follows
SORT_LIMIT = 8                  # sort keys
SORT_LENGTH_LIMIT = 255         # bytes of one sort key
CACHED_SQL_LIMIT = 20000        # characters; 2000 plans of client texts then hold 40 MB at most


class FilterError(ValueError):
    """A text that is not a filter, or names what the caller cannot use; str() is the raw text shown in rule errors."""


class RequestInfo:
    """What `@request.*` sees. `headers` and `query` map names to first values, `body` holds normalised values, `auth` is a record."""
    __slots__ = ("context", "method", "headers", "query", "body", "auth", "superuser")

    def __init__(self, context="default", method="GET", headers=None, query=None, body=None, auth=None, superuser=False):
        self.context, self.method, self.auth, self.superuser = context, method, auth, superuser
        self.headers, self.query, self.body = headers or {}, query or {}, body or {}


def check_client_text(filter, sort):
    """Refuse (403) the texts that only superusers may send; the check is on the raw text, quotes do not help."""
    for word in ("@collection.", "@request."):
        if word in filter or word in sort:
            raise forbidden(f"Only superusers can filter by {word[:-1]}.")


# ---------------------------------------------------------------- parsing
# The tree: ("or", nodes) / ("and", nodes) / ("is", left, operator, right); an operand is (kind, value) with kind "identifier",
# "text" or "number", or ("function", name, operands). `&&` binds tighter than `||` because SQL's AND does.

_SPACE = re.compile(r"[ \t\n\0]+")
_IDENTIFIER = re.compile(r"[A-Za-z@_#][A-Za-z0-9_.:]*")
_NUMBER = re.compile(r"-?[0-9]*(?:\.[0-9]*)?")
_SIGNS = re.compile(r"[=?!><~]+")
_JOINS = re.compile(r"[&|]+")
_COMMENT = re.compile(r"//[^\n]*")
_BRACKETS = re.compile(r"""[()]|'(?:\\.|[^'\\])*(?:'|$)|"(?:\\.|[^"\\])*(?:"|$)""", re.DOTALL)
_ESCAPE = re.compile(r"\\([\\'\"nrt])")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t"}
OPERATORS = frozenset(any_ + sign for any_ in ("", "?") for sign in ("=", "!=", ">", ">=", "<", "<=", "~", "!~"))
_EXPECTED = {
    "left": "expected left operand (identifier, function, text or number), got {} ({})",
    "sign": "expected a sign operator, got {} ({})",
    "right": "expected right operand (identifier, function text or number), got {} ({})",
    "join": "expected && or ||, got {} ({})",
}
_UNFINISHED = "invalid or incomplete filter expression"


def _quoted(text):
    """A value inside an error text: double quotes, control characters escaped."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v", "\f": "\\f", "\a": "\\a", "\b": "\\b"}
    return '"' + "".join(escapes.get(c) or (c if c.isprintable() else f"\\x{ord(c):02x}") for c in text) + '"'


def _unexpected(char):
    return FilterError(f"unexpected character '{_quoted(char)[1:-1]}'")


def _scan_text(text, start):
    """The token at an opening quote, and where it ends."""
    quote, position = text[start], start + 1
    while position < len(text) and text[position] != quote:
        position += 2 if text[position] == "\\" and text[position + 1:position + 2] in ("\\", "'", '"', "n", "r", "t") else 1
    value = _ESCAPE.sub(lambda m: _ESCAPED.get(m[1], m[1]), text[start + 1:position])
    if position >= len(text):
        raise FilterError(f"invalid quoted text {_quoted(quote + value)}")
    return ("text", value), position + 1


def _scan_number(text, start):
    literal = _NUMBER.match(text, start)[0]
    if literal == "-" or literal.endswith("."):
        raise FilterError(f"invalid number {_quoted(literal)}")
    return ("number", literal), start + len(literal)


def _scan_identifier(text, start, depth=FUNCTION_DEPTH_LIMIT):
    name = _IDENTIFIER.match(text, start)[0]
    end = start + len(name)
    if name[-1] in ".:" or name in ("@", "_", "#"):
        raise FilterError(f"invalid identifier {_quoted(name)}")
    if text[end:end + 1] == "(":
        return _scan_function(text, name, end + 1, depth)
    return ("identifier", name), end


def _scan_function(text, name, position, depth):
    """The arguments after `name(`: texts, numbers, identifiers and calls between commas, comments allowed, one trailing comma too."""
    if depth <= 0:
        raise FilterError(f"max nested function arguments reached (max: {FUNCTION_DEPTH_LIMIT})")
    arguments, comma = [], True
    while position < len(text):
        char = text[position]
        if skip := _SPACE.match(text, position) or _comment(text, position):
            position = skip.end()
        elif char == ")":
            return ("function", name, tuple(arguments)), position + 1
        elif char == ",":
            if comma:
                raise FilterError(f"unexpected comma in function {_quoted(name)}")
            comma, position = True, position + 1
        elif not comma:
            raise FilterError(f"expected comma after the last argument in function {_quoted(name)}")
        else:
            argument, position = _scan_argument(text, name, position, depth)
            arguments.append(argument)
            comma = False
    raise FilterError(f"invalid or incomplete function {_quoted(name)} (expected ')')")


def _scan_argument(text, name, position, depth):
    char = text[position]
    try:
        if char in "'\"":
            kind, (token, end) = "text", _scan_text(text, position)
        elif char in "-0123456789":
            kind, (token, end) = "number", _scan_number(text, position)
        elif _IDENTIFIER.match(text, position):
            kind, (token, end) = "identifier", _scan_identifier(text, position, depth - 1)
        else:
            raise FilterError(f"unsupported argument character '{_quoted(char)[1:-1]}' in function {_quoted(name)}") from None
    except FilterError as error:
        if str(error).startswith("unsupported"):
            raise
        kind = "text" if char in "'\"" else "number" if char in "-0123456789" else "identifier"
        token = (_NUMBER if kind == "number" else _IDENTIFIER).match(text, position)
        shown = _quoted(token[0]) if token else _quoted(text[position:])
        raise FilterError(f"invalid {kind} argument {shown} in function {_quoted(name)}: {error}") from None
    return token, end


def _comment(text, position):
    if text[position] != "/":
        return None
    found = _COMMENT.match(text, position)
    if not found:
        raise FilterError("invalid comment")
    return found


def _check_brackets(text, start):
    """A group is cut out before it is read, so a missing bracket is told before any error inside."""
    depth = 0
    for found in _BRACKETS.finditer(text, start):
        if found[0] in "()":
            depth += 1 if found[0] == "(" else -1
            if not depth:
                return
    raise FilterError(f"invalid formatted group - missing {depth} closing bracket(s)")


def _scan(text, position):
    """The next operand, sign or join token and its end."""
    char = text[position]
    if char in "'\"":
        return _scan_text(text, position)
    if char in "-0123456789":
        return _scan_number(text, position)
    if char in "=?!><~":
        sign = _SIGNS.match(text, position)[0]
        if sign not in OPERATORS:
            raise FilterError(f"invalid sign operator {_quoted(sign)}")
        return ("sign", sign), position + len(sign)
    if char in "&|":
        join = _JOINS.match(text, position)[0]
        if join not in ("&&", "||"):
            raise FilterError(f"invalid join operator {_quoted(join)}")
        return ("join", join), position + len(join)
    if _IDENTIFIER.match(text, position):
        return _scan_identifier(text, position)
    raise _unexpected(char)


class _Group:
    """One bracket level while it is read: the finished parts, the join before the next, and the expression begun."""
    __slots__ = ("parts", "join", "step", "left", "sign")

    def __init__(self):
        self.parts, self.join, self.step, self.left, self.sign = [], "&&", "left", None, None

    def take(self, token):
        kind = token[0]
        if kind != (self.step if self.step in ("sign", "join") else kind) or (self.step in ("left", "right") and kind in ("sign", "join")):
            raise FilterError(_EXPECTED[self.step].format(_quoted(token[1]), kind))
        if self.step == "left":
            self.left, self.step = token, "sign"
        elif self.step == "sign":
            self.sign, self.step = token[1], "right"
        elif self.step == "right":
            self.add(("is", self.left, self.sign, token))
        else:
            self.join, self.step = token[1], "left"

    def add(self, node):
        self.parts.append((self.join, node))
        self.step = "join"

    def close(self):
        if not self.parts and self.step == "left":
            raise FilterError("empty filter expression")
        if self.step != "join":
            raise FilterError(_UNFINISHED)
        ors = [[]]
        for position, (join, node) in enumerate(self.parts):
            if position and join == "||":
                ors.append([])
            ors[-1].append(node)
        nodes = [ands[0] if len(ands) == 1 else ("and", tuple(ands)) for ands in ors]
        return nodes[0] if len(nodes) == 1 else ("or", tuple(nodes))


@functools.lru_cache(maxsize=256)
def parse_filter(text):
    """The immutable tree of a filter. parse_filter("a>1") -> ("is", ("identifier", "a"), ">", ("number", "1"))"""
    group, outer, position = _Group(), [], 0
    while position < len(text):
        char = text[position]
        if skip := _SPACE.match(text, position) or _comment(text, position):
            position = skip.end()
        elif char == "(":
            if not outer:
                _check_brackets(text, position)
            outer.append(group)
            group, position = _Group(), position + 1
        elif char == ")" and outer:
            node, group, position = group.close(), outer.pop(), position + 1
            group.add(node)     # in place of whatever expression was begun: `a=1 (b=2)` repeats the last join
        else:
            token, position = _scan(text, position)
            group.take(token)
    return group.close()


# ---------------------------------------------------------------- SQL pieces
# A piece is SQL with its parameters in textual order and the joins it reads. BASE stands for the row of the base table.

BASE = None
AUTO, NEVER, ALWAYS = "auto", "never", "always"     # does a NULL count as empty: by the other side, never (JSON), even for calls


class _Piece:
    __slots__ = ("text", "params", "refs")

    def __init__(self, text, params=(), refs=frozenset()):
        self.text, self.params, self.refs = text, params, refs


def _piece(template, *pieces):
    """_piece("{} = {}", a, b): pieces in the order of the template, so parameters keep the order of the text."""
    return _Piece(template.format(*[p.text for p in pieces]), tuple(itertools.chain.from_iterable(p.params for p in pieces)),
                  frozenset().union(*[p.refs for p in pieces]))


_EMPTY, _NULL = _Piece("''"), _Piece("NULL")


class _Join:
    """One joined row. `many`: can match more than one row, so it may not sit in the outer FROM without a DISTINCT."""
    __slots__ = ("alias", "source", "on", "many", "table", "number", "chain", "inner", "link")

    def __init__(self, alias, source, on, many, table, number, link=None):
        self.alias, self.source, self.on, self.many, self.table, self.number = quote_name(alias), source, on, many, table, number
        parents = (source.refs | on.refs) - {BASE}
        self.chain = frozenset({self}).union(*[p.chain for p in parents])
        self.inner = many or any(p.inner for p in parents)
        self.link = link        # back relations: (own field, does it hold a list, the id it points to)

    def column(self, name):
        return _Piece(f"{self.alias}.{quote_name(name)}", (), frozenset({self}))


class _Operand:
    """A resolved side. `state`: null, empty, known (a value that is not empty) or column. `missing`: the joins without whose row it
    is NULL. `again(space)` resolves it once more over fresh joins, None unless it has many values a record. `like`: what LIKE makes of
    it on its right: its parameters become patterns, it is concatenated, or it never matches."""
    __slots__ = ("piece", "state", "fallback", "fixed", "missing", "again", "guard", "like")

    def __init__(self, piece, state="column", fallback=AUTO, fixed=False, missing=frozenset(), again=None, guard=None, like=None):
        self.piece, self.state, self.fallback, self.fixed, self.missing = piece, state, fallback, fixed, missing
        self.again, self.guard, self.like = again, guard, like or ("pattern" if piece.params else "concatenated")

    def plain(self):
        """As the other side inside a match-all check: only its parameters tell whether it can be empty."""
        state = self.state if self.state in ("null", "empty") else "known" if self.fixed else "column"
        return _Operand(self.piece, state, missing=self.missing, fixed=self.fixed, like=self.like)


_NOTHING = _Operand(_NULL, "null")
_IS_SET = [_Operand(_Piece(word), "known", fixed=True) for word in ("FALSE", "TRUE")]    # words, since SQLite reads `IS TRUE` as a test
_TOKENS = {"null": _NOTHING, "true": _Operand(_Piece("1"), "known", fixed=True), "false": _Operand(_Piece("0"), "known", fixed=True)}


def _list_of(column):
    """The stored value as a JSON array: multi values as they are, anything else as its only element."""
    return _piece("CASE WHEN iif(json_valid({}), json_type({})='array', FALSE) THEN {} ELSE json_array({}) END", *[column] * 4)


def _length_of(column):
    return _piece("json_array_length(CASE WHEN iif(json_valid({}), json_type({})='array', FALSE) THEN {} ELSE "
                  "(CASE WHEN {} = '' OR {} IS NULL THEN json_array() ELSE json_array({}) END) END)", *[column] * 6)


def _json_at(column, keys=()):
    """The value at a path of a JSON column; a stored text that is no JSON counts as itself."""
    path = "".join(f"[{k}]" if k.isdigit() else "." + re.sub(r"[^\w.*\-@#]", "", k, flags=re.ASCII) for k in keys)
    return _piece(f"(CASE WHEN json_valid({{}}) THEN JSON_EXTRACT({{}}, '${path}') ELSE JSON_EXTRACT(json_object('pb', {{}}), '$.pb{path}') END)",
                  *[column] * 3)


# Parameters are (source, argument, pattern?): a constant or the number of a slot, and whether LIKE needs it as a pattern.

def _filter_constant(value):
    return _Operand(_Piece("?", ((None, value, False),)), "known" if value != "" else "empty", fixed=value != "")


_LIKE_SPECIAL = re.compile(r"(\\[\\%_])|([\\%_])")


def _like_pattern(value):
    """`a_b` -> `%a\\_b%`; a value with an unescaped % is a pattern already."""
    if isinstance(value, bool):
        value = "true" if value else "false"
    elif isinstance(value, float):
        value = f"{value:.0f}" if value.is_integer() else format(decimal.Decimal(repr(value)), "f")
    value = str(value)
    if any(m[2] == "%" for m in _LIKE_SPECIAL.finditer(value)):
        return value
    return "%" + _LIKE_SPECIAL.sub(lambda m: m[1] or "\\" + m[2], value) + "%"


def _equality(left, right, positive):
    """The null-safe comparison, with the joins whose missing row makes it not true, and those whose missing row makes its NOT not true."""
    certain = frozenset().union(*(a.missing for a, b in ((left, right), (right, left)) if b.state in ("known", "empty") and not b.missing))
    if NEVER in (left.fallback, right.fallback):
        condition = _piece("{} %s {}" % ("IS" if positive else "IS NOT"), left.piece, right.piece)
        return (condition, certain, frozenset()) if positive else (condition, frozenset(), certain)
    empty = [o.state in ("null", "empty") for o in (left, right)]
    pieces = [_EMPTY if e else o.piece for e, o in zip(empty, (left, right))]
    both = left.missing | right.missing
    if all(empty) or any(o.state == "known" and o.fallback != ALWAYS for o in (left, right)):
        return (_piece("{} = {}", *pieces), both, both) if positive else (_piece("{} IS NOT {}", *pieces), frozenset(), certain)
    if any(empty):
        value = pieces[empty[0]]
        template = "({} = '' OR {} IS NULL)" if positive else "({} IS NOT '' AND {} IS NOT NULL)"
        return (_piece(template, value, value), frozenset(), both) if positive else (_piece(template, value, value), both, frozenset())
    return _piece("COALESCE({}, '') %s COALESCE({}, '')" % ("=" if positive else "IS NOT"), *pieces), frozenset(), frozenset()


def _compare(left, operator, right):
    """(condition, joins it needs to be true, joins its NOT needs to be true) of one comparison without the match-all part."""
    if operator in ("=", "!="):
        return _equality(left, right, operator == "=")
    needed = left.missing | right.missing
    if operator not in ("~", "!~"):
        return _piece("{} %s {}" % operator, left.piece, right.piece), needed, needed
    word = "LIKE" if operator == "~" else "NOT LIKE"
    if right.like == "never":
        return _piece("{} %s NULL" % word, left.piece), needed, needed
    if right.like == "concatenated":
        return _piece("{} %s ('%%' || {} || '%%') ESCAPE '\\'" % word, left.piece, right.piece), needed, needed
    pattern = _Piece(right.piece.text, tuple((source, value, True) for source, value, _ in right.piece.params), right.piece.refs)
    return _piece("{} %s {} ESCAPE '\\'" % word, left.piece, pattern), needed, needed


# ---------------------------------------------------------------- conditions

class _Condition:
    """A node of the WHERE tree. `needs`: joins whose row must exist for it to be true."""
    __slots__ = ("kind", "piece", "items", "refs", "needs")

    def __init__(self, kind, piece=None, items=(), needs=frozenset()):
        self.kind, self.piece, self.items = kind, piece, items
        if kind == "leaf":
            self.refs, self.needs = piece.refs, needs
        else:
            self.refs = frozenset().union(*[i.refs for i in items])
            sets = [i.needs for i in items]
            self.needs = frozenset().union(*sets) if kind == "and" else frozenset.intersection(*sets)


def _leaf(piece, needs=frozenset()):
    return _Condition("leaf", piece, needs=needs)


def _all_of(items):
    flat = [part for item in items for part in (item.items if item.kind == "and" else (item,))]
    return flat[0] if len(flat) == 1 else _Condition("and", items=tuple(flat))


def _any_of(items):
    return items[0] if len(items) == 1 else _Condition("or", items=tuple(items))


def _written(condition):
    """The condition over joins that are all in scope."""
    if condition.kind == "leaf":
        return condition.piece
    word = " AND " if condition.kind == "and" else " OR "
    return _piece("(" + word.join(["{}"] * len(condition.items)) + ")", *map(_written, condition.items))


# ---------------------------------------------------------------- @request values

MACROS = {
    "@now": lambda now: _date_text(now),
    "@yesterday": lambda now: _date_text(now - datetime.timedelta(days=1)),
    "@tomorrow": lambda now: _date_text(now + datetime.timedelta(days=1)),
    "@todayStart": lambda now: f"{now:%Y-%m-%d} 00:00:00.000Z",
    "@todayEnd": lambda now: f"{now:%Y-%m-%d} 23:59:59.999Z",
    "@monthStart": lambda now: f"{now:%Y-%m}-01 00:00:00.000Z",
    "@monthEnd": lambda now: f"{_last_day(now):%Y-%m-%d} 23:59:59.999Z",
    "@yearStart": lambda now: f"{now:%Y}-01-01 00:00:00.000Z",
    "@yearEnd": lambda now: f"{now:%Y}-12-31 23:59:59.999Z",
    "@second": lambda now: now.second,
    "@minute": lambda now: now.minute,
    "@hour": lambda now: now.hour,
    "@day": lambda now: now.day,
    "@month": lambda now: now.month,
    "@year": lambda now: now.year,
    "@weekday": lambda now: now.isoweekday() % 7,
}


def _last_day(moment):
    return (moment.replace(day=28) + datetime.timedelta(days=4)).replace(day=1) - datetime.timedelta(days=1)


def _date_text(moment):
    return f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def _macro(name):
    value = MACROS[name]
    return lambda info: value(datetime.datetime.now(datetime.UTC))


_ABSENT = object()


def _dig(value, keys):
    """The member at a path of dicts and lists, _ABSENT when there is none."""
    for key in keys:
        if isinstance(value, dict):
            value = value.get(key, _ABSENT)
        elif isinstance(value, (list, tuple)) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            return _ABSENT
    return value


def _json_text(value):
    return json.dumps(_shortest(value), ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _shortest(value):
    """Whole floats become integers, as ECMAScript prints them."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return int(value)
    if isinstance(value, dict):
        return {k: _shortest(v) for k, v in value.items()}
    return [_shortest(v) for v in value] if isinstance(value, (list, tuple)) else value


def _to_number(text):
    """A text that reads as a number is one, any other stays text."""
    try:
        return float(text) if text.isascii() and text == text.strip() else text
    except ValueError:
        return text


def _bindable(value):
    """A request value as SQLite takes it: numbers as floats, lists and maps as JSON text."""
    if value is None or value is _ABSENT:
        return None
    if isinstance(value, (str, bool)):
        return value
    return float(value) if isinstance(value, (int, float)) else _json_text(value)


def _value_at(place, keys, number=False, as_json=False, lower=False):
    """The getter of one `@request.query|headers|body` value."""
    def get(info):
        value = _dig(getattr(info, place), keys)
        if as_json and value is not _ABSENT:
            return _json_text(value)
        if lower and not isinstance(value, str):    # a known field as text: 5 is "5" and not "5.0", lists and missing ones are ""
            return _json_text(value) if isinstance(value, (bool, int, float)) else ""
        return _to_number(value) if number and isinstance(value, str) else _bindable(value)
    return get


def _as_list(value):
    return [] if value is _ABSENT else list(value) if isinstance(value, (list, tuple)) else [value]


def _list_at(key, read):
    return lambda info: read(_as_list(info.body.get(key, _ABSENT)))


# ---------------------------------------------------------------- resolving names

_NAME = re.compile(r"\w+[\w.:]*", re.ASCII)
_REQUEST_NAME = re.compile(r"@request\.(auth|body|query|headers)\.([\w.:]*\w)", re.ASCII)
_COLLECTION_NAME = re.compile(r"@collection\.(\w+)(?::(\w+))?\.([\w.:]*\w)", re.ASCII)
_BACK_RELATION_NAME = re.compile(r"(\w+)_via_(\w+)", re.ASCII)
MODIFIERS = frozenset(("lower", "length", "each", "isset", "changed"))
_LIST_TYPES = frozenset(("select", "file", "relation"))
_AUTH_VALUES = frozenset(("email", "emailVisibility", "verified"))


class _Unresolved(FilterError):
    """A name that leads nowhere: an error in a plain path, NULL inside `@request.*`."""


def _split_modifier(name):
    """"a:lower" -> ("a", "lower"); a name with two colons is no field's name and stays whole."""
    parts = name.split(":")
    if len(parts) != 2:
        return name, ""
    if parts[1] not in MODIFIERS:
        raise FilterError(f"unknown modifier in {_quoted(name)}")
    return parts


class _Space:
    """A set of joins: the query's own (shared by path, and checked for what the caller may list) or a fresh one of a match-all check."""
    __slots__ = ("compiler", "joins", "prefix")

    def __init__(self, compiler, prefix=""):
        self.compiler, self.joins, self.prefix = compiler, {}, prefix

    def join(self, key, source, on, many, table=None, link=None):
        """The join of this path; `on(alias)` writes its condition."""
        found = self.joins.get(key)
        if found is None:
            alias = self.prefix + key
            found = _Join(alias, source, on(quote_name(alias)), many, table, next(self.compiler.counter), link)
            self.joins[key] = found
            if table:
                self.compiler.tables.add(table)
        return found


def _each_row(space, column, key):
    """One row an element of a list column."""
    return space.join(key + "[]", _piece("json_each({})", _list_of(column)), lambda alias: _Piece("1"), True)


class _Place:
    """Where a path stands: a collection seen through a row (of the base table or of a join)."""
    __slots__ = ("collection", "ref", "alias", "key", "many")

    def __init__(self, collection, ref, alias, key, many=False):
        self.collection, self.ref, self.alias, self.key, self.many = collection, ref, alias, key, many

    def column(self, name):
        return _Piece(f"{self.alias}.{quote_name(name)}", (), frozenset({self.ref}))


class _Scope:
    """Resolves the names of one text (rule, filter or sort) against one place. `trusted`: hidden fields and all collections allowed."""

    def __init__(self, compiler, place, trusted):
        self.compiler, self.place, self.trusted, self.count = compiler, place, trusted, 0

    # -- operands

    def operand(self, node):
        kind, value = node[0], node[1]
        if kind == "function":
            if value not in FUNCTIONS:
                raise FilterError(f"unknown function {_quoted(value)}")
            return FUNCTIONS[value](self, node[2])
        if kind == "text":
            return _filter_constant(value)
        return _filter_constant(float(value)) if kind == "number" else self.identifier(value)

    def identifier(self, name):
        try:
            return self.resolve(name)
        except FilterError:
            if name.lower() in _TOKENS:
                return _TOKENS[name.lower()]
            if name in MACROS:
                return self.compiler.slot(name, _macro(name))
            raise

    def resolve(self, name):
        if name in ("@request.context", "@request.method"):
            word = name.rpartition(".")[2]
            return self.compiler.slot(name, lambda info: getattr(info, word))
        if found := _REQUEST_NAME.fullmatch(name):
            return _REQUEST_PARTS[found[1]](self, found[1], found[2].split("."))
        if found := _COLLECTION_NAME.fullmatch(name):
            return self.collection_path(name, *found.groups())
        if not _NAME.fullmatch(name):
            raise _Unresolved(f"failed to resolve field {_quoted(name)}")
        return self.path(lambda space: self.place, name.split("."))

    def path(self, start, keys):
        """The operand of a path from `start(space)`; resolved again over fresh joins when it can have many values."""
        def walk(space):
            return _Walk(self, space).go(start(space), keys)
        operand, many = walk(self.compiler.space)
        if many:
            operand.again = lambda space: walk(space)[0]
        return operand

    def nullable_path(self, start, keys):
        try:
            return self.path(start, keys)
        except _Unresolved:
            return _NOTHING

    def collection_path(self, name, target, alias, rest):
        collection = self.compiler.schema.find(target)
        if collection is None:
            raise FilterError(f"failed to load collection {_quoted(target)} from field path {_quoted(name)}")
        key = f"{self.place.key}@collection.{collection.name}:{alias or ''}"

        def start(space):
            join = space.join(key, _Piece(quote_name(collection.name)), lambda alias: _Piece("1"), True, collection.name)
            return _Place(collection, join, join.alias, key, True)
        return self.path(start, rest.split("."))

    # -- @request

    def auth_path(self, _, keys):
        info = self.compiler.info
        if info.auth is None:
            return _NOTHING
        collection, name = info.auth.collection, ".".join(keys)
        if name == "id":
            return self.compiler.slot("auth.id", lambda info: info.auth.id)
        if name in ("collectionId", "collectionName"):
            return _filter_constant(collection.id if name == "collectionId" else collection.name)
        if name in _AUTH_VALUES:
            return self.compiler.slot("auth." + name, lambda info: _bindable(info.auth.get(name)))
        key = f"{self.place.key}@auth.{collection.name}"

        def start(space):
            identity = self.compiler.slot("auth.id", lambda info: info.auth.id).piece
            join = space.join(key, _Piece(quote_name(collection.name)), lambda alias: _piece(alias + ".`id` = {}", identity), False, collection.name)
            return _Place(collection, join, join.alias, key)
        return self.nullable_path(start, keys)

    def is_number(self, name):
        field = self.compiler.base.field(name)
        return field is not None and field.type == "number"

    def request_value(self, place, keys, number=False, as_json=False, text=False):
        """A value of query, headers or body, with :isset and :lower."""
        last, modifier = _split_modifier(keys[-1])
        keys = [*keys[:-1], last]
        name = f"{place}.{'.'.join(keys)}"
        if modifier == "isset":
            found = self.compiler.slot(name + ":isset", lambda info: None if _dig(getattr(info, place), keys) is _ABSENT else 1)
            return _IS_SET[found.state == "known"]
        if modifier not in ("", "lower"):
            raise FilterError(f"invalid modifier sequence {last}:{modifier}")
        lower = modifier == "lower"
        operand = self.compiler.slot(f"{name}:{modifier}", _value_at(place, keys, number, as_json, lower and text))
        if lower and operand.state == "known":
            return _Operand(_piece("LOWER({})", operand.piece), "known", fixed=True)
        return operand

    def sent_value(self, place, keys):
        return self.request_value(place, keys, self.is_number(keys[-1].partition(":")[0]))

    def body_value(self, _, keys):
        name, modifier = _split_modifier(keys[0]) if len(keys) == 1 else (keys[0], _split_modifier(keys[-1])[1])
        field = self.compiler.base.field(name)
        if modifier in ("length", "each", "changed"):
            if len(keys) > 1 or field is None:
                if len(keys) > 1 and field is not None and field.type == "relation":
                    return self.body_relation(field, keys[1:])
                raise FilterError(f"invalid modifier sequence {keys[-1]}")
            return self.changed(field) if modifier == "changed" else self.body_list(field, modifier)
        if len(keys) > 1 and field is not None and field.type == "relation":
            return self.body_relation(field, keys[1:])
        number = self.is_number(keys[-1].partition(":")[0])
        whole = len(keys) == 1 and field is not None
        return self.request_value("body", keys, number, whole and field.type == "json", whole)

    def body_list(self, field, modifier):
        """:length and :each of the submitted list."""
        if field.type not in _LIST_TYPES:
            raise FilterError(f"field {_quoted(field.name)} doesn't support multivalue operations")
        if modifier == "length":
            return self.compiler.slot(f"body.{field.name}:length", _list_at(field.name, len))
        key = f"{self.place.key}@body.{field.name}[]"

        def walk(space):
            sent = self.compiler.slot(f"body.{field.name}:each", _list_at(field.name, _json_text)).piece
            join = space.join(key, _piece("json_each({})", sent), lambda alias: _Piece("1"), True)
            state = "column" if space.prefix else "known"
            return _Operand(join.column("value"), state, fixed=True, missing=frozenset({join}),
                            like="concatenated" if space.prefix else "never")
        operand = walk(self.compiler.space)
        operand.again = walk if field.multiple else None
        return operand

    def body_relation(self, field, keys):
        """`@request.body.rel.field`: the records whose ids were submitted; a list needs no single relation field to be many."""
        target = self.compiler.schema.find(field.collection_id)
        ids = self.compiler.slot(f"body.{field.name}:ids", _list_at(field.name, lambda ids: _json_text(ids) if any(ids) else None))
        if ids.state == "null" or target is None:
            return _NOTHING
        key = f"{self.place.key}@body.{field.name}"

        def start(space):
            join = space.join(key, _Piece(quote_name(target.name)),
                              lambda alias: _piece(alias + ".`id` IN (SELECT value FROM json_each({}))", ids.piece), True, target.name)
            return _Place(target, join, join.alias, key, field.multiple)
        return self.nullable_path(start, keys)

    def changed(self, field):
        """`@request.body.x:changed`: the key was sent and differs from the column, as one boolean."""
        sent = self.request_value("body", [field.name + ":isset"])
        differs = self.comparison(("is", ("identifier", "@request.body." + field.name), "!=", ("identifier", field.name)))
        return _Operand(_piece("({} = 1 AND {})", sent.piece, _written(differs)), fallback=NEVER, like="concatenated")

    # -- conditions

    def condition(self, node):
        if node[0] == "is":
            self.count += 1
            if self.count > EXPRESSION_LIMIT:
                raise FilterError("max filter expressions limit reached")
            return self.comparison(node)
        return (_all_of if node[0] == "and" else _any_of)([self.condition(item) for item in node[1]])

    def comparison(self, node):
        """One expression: the comparison, its match-all check, and the visibility of emails it looks at."""
        _, left_node, operator, right_node = node
        left, right = self.side("left", left_node), self.side("right", right_node)
        piece, needs, _ = _compare(left, operator.lstrip("?"), right)
        parts = [_leaf(piece, needs)]
        if operator[0] != "?" and (left.again or right.again):
            parts.append(_leaf(self.match_all(left, operator, right, operator in ("!=", "!~") or not needs)))
        parts += [_leaf(side.guard) for side in (left, right) if side.guard]
        return _all_of(parts)

    def side(self, which, node):
        try:
            return self.operand(node)
        except FilterError as error:
            shown = json.dumps(float(node[1])) if node[0] == "number" else node[1]
            raise FilterError(f"invalid {which} operand {_quoted(shown)} - {error}") from None

    def match_all(self, left, operator, right, common):
        """NOT EXISTS a value of this record for which the comparison fails; both sides many: no pair of values. When the comparison holds
        for most records (`common`), the few it fails for are listed once instead."""
        spaces = _Space(self.compiler, "~"), _Space(self.compiler, "~~")
        sides = [side.again(space) if side.again else side.plain() for side, space in zip((left, right), spaces)]
        for side, original in zip(sides, (left, right)):
            if original.again:
                side.state, side.like = "column", "concatenated"
        piece, _, needs = _compare(sides[0], operator, sides[1])
        joins = [join for space in spaces for join in space.joins.values()]
        broken = _piece("NOT ({})", piece)
        if common:
            root, ids = self.compiler.linked_ids(joins, broken, needs)
            if root in _chains(needs):
                return _piece("{} NOT IN {}", root.link[2], ids)
        return _exists(joins, broken, needs, "NOT EXISTS")


_REQUEST_PARTS = {"auth": _Scope.auth_path, "body": _Scope.body_value, "query": _Scope.sent_value, "headers": _Scope.sent_value}


class _Walk:
    """Follows one path through relations. -> (operand, can it have many values a record)"""

    def __init__(self, scope, space):
        self.scope, self.space, self.schema = scope, space, scope.compiler.schema

    def go(self, place, keys):
        for hop, key in enumerate(keys[:-1]):
            field = self.field(place, key)
            if field is not None and field.type in ("json", "geoPoint"):
                piece = _json_at(place.column(key), keys[hop + 1:])
                return self.value(place, piece, NEVER), place.many
            if hop >= RELATION_HOPS_LIMIT:
                raise FilterError(f"max nested relations reached for field {_quoted(key)}")
            if field is None:
                place = self.back_relation(place, key)
                continue
            if field.type != "relation":
                raise FilterError(f"field {_quoted(key)} is not a valid relation")
            if keys[hop + 1:] == ["id"] and not field.multiple:
                return self.value(place, place.column(key)), place.many
            place = self.relation(place, field)
        return self.last(place, keys[-1])

    def field(self, place, name):
        field = place.collection.field(name)
        if field is not None and field.hidden and not self.scope.trusted:
            raise FilterError(f"non-filterable field {_quoted(name)}")
        return field

    def value(self, place, piece, fallback=AUTO):
        return _Operand(piece, fallback=fallback, missing=frozenset({place.ref}) - {BASE})

    def last(self, place, key):
        name, modifier = _split_modifier(key)
        field = self.field(place, name)
        if field is None:
            raise _Unresolved(f"unknown field {_quoted(name)}")
        column, many = place.column(name), place.many
        is_list = field.type in _LIST_TYPES
        if modifier == "each" and is_list:
            join = _each_row(self.space, column, f"{place.key}.{name}")
            operand, many = _Operand(join.column("value"), missing=frozenset({join})), many or field.multiple
        elif modifier == "length" and is_list:
            operand = _Operand(_length_of(column))
        else:
            is_json = field.type == "json"
            piece = _json_at(column) if is_json else column
            operand = self.value(place, _piece("LOWER({})", piece) if modifier == "lower" else piece, NEVER if is_json else AUTO)
        if name == "email" and place.collection.type == "auth" and not self.scope.trusted:
            operand.guard = _piece("{} = TRUE", place.column("emailVisibility"))
        return operand, many

    def target(self, collection, place, key, source, on, many, any_value, link=None):
        """The place behind a join; what a client joins must also be listable for it."""
        join = self.space.join(key, source, on, many, collection.name, link)
        if not self.scope.trusted and not self.space.prefix:
            self.scope.compiler.listed.setdefault(key, (join, collection))
        return _Place(collection, join, join.alias, key, any_value)

    def relation(self, place, field):
        collection = self.schema.find(field.collection_id)
        if collection is None:
            raise FilterError(f"failed to load field {_quoted(field.name)} collection")
        key, value = f"{place.key}.{field.name}", place.column(field.name)
        many = collection.type == "view"        # nothing keeps the ids of a view unique
        if field.multiple:
            value = _each_row(self.space, value, key).column("value")
            many = True
        return self.target(collection, place, key, _Piece(quote_name(collection.name)), lambda alias: _piece(alias + ".`id` = {}", value),
                           many, place.many or field.multiple)

    def back_relation(self, place, key):
        """`posts_via_author`: the records of posts whose author is this record."""
        found = _BACK_RELATION_NAME.fullmatch(key)
        if not found:
            raise _Unresolved(f"failed to resolve field {_quoted(key)}")
        collection = self.schema.find(found[1])
        if collection is None:
            raise _Unresolved(f"failed to load back relation field {_quoted(key)} collection")
        field = collection.field(found[2])
        if field is None:
            raise _Unresolved(f"missing back relation field {_quoted(found[2])}")
        if field.type != "relation":
            raise _Unresolved(f"invalid back relation field {_quoted(found[2])}")
        if field.hidden and not self.scope.trusted:
            raise FilterError(f"non-filterable back relation field {_quoted(found[2])}")
        new = place.ref is BASE and self.scope.compiler.source is not None      # nothing refers to a record that is being created
        if field.collection_id != place.collection.id or new:
            raise _Unresolved(f"invalid collection reference of a back relation field {_quoted(found[2])}")
        identity = place.column("id")

        def on(alias):
            if not field.multiple:
                return _piece(f"{alias}.{quote_name(field.name)} = {{}}", identity)
            own = _Piece(f"{alias}.{quote_name(field.name)}")
            return _piece("{} IN (SELECT value FROM json_each({}))", identity, _list_of(own))
        any_value = place.many or field.multiple or not collection.has_unique_index(field.name)
        return self.target(collection, place, f"{place.key}.{key}", _Piece(quote_name(collection.name)), on, True, any_value,
                           (field.name, field.multiple, identity))


# ---------------------------------------------------------------- functions

def _geo_distance(scope, arguments):
    """geoDistance(lonA, latA, lonB, latB): kilometres on a sphere of 6371 km; the clamp keeps rounding out of acos' domain."""
    if len(arguments) != 4:
        raise FilterError(f"[geoDistance] expected 4 arguments, got {len(arguments)}")
    resolved = []
    for number, argument in enumerate(arguments):
        if argument[0] not in ("identifier", "number"):
            raise FilterError(f"[geoDistance] argument {number} must be an identifier or number")
        try:
            resolved.append(scope.operand(argument))
        except FilterError as error:
            raise FilterError(f"[geoDistance] failed to resolve argument {number}: {error}") from None
    lon_a, lat_a, lon_b, lat_b = (r.piece for r in resolved)
    piece = _piece("(6371 * acos(min(1, max(-1, cos(radians({})) * cos(radians({})) * cos(radians({}) - radians({})) + "
                   "sin(radians({})) * sin(radians({}))))))", lat_a, lat_b, lon_b, lon_a, lat_a, lat_b)
    return _Operand(piece, fallback=NEVER, fixed=any(r.fixed for r in resolved), missing=frozenset().union(*(r.missing for r in resolved)))


def _strftime(scope, arguments):
    """strftime(format[, time, modifier...]): SQLite's own, its NULL counts as empty."""
    if not 1 <= len(arguments) <= 10:
        limit = "expected at least 1 arguments, got 0" if not arguments else f"too many arguments (max allowed 10, got {len(arguments)})"
        raise FilterError(f"[strftime] {limit}")
    if arguments[0][0] != "text":
        raise FilterError("[strftime] expects the first argument to be a format string")
    if len(arguments) > 1 and arguments[1][0] == "function":
        raise FilterError("[strftime] expects the second argument to be of a valid time-value type")
    for number, argument in enumerate(arguments[2:]):
        if argument[0] != "text":
            raise FilterError(f"[strftime] invalid modifier argument {number} - can be only string")
    try:
        operands = [scope.operand(a) for a in arguments]
    except FilterError as error:
        raise FilterError(f"[strftime] failed to resolve time-value argument: {error}") from None

    def call(time):
        pieces = [operands[0].piece, *([time.piece] if time else ()), *(o.piece for o in operands[2:])]
        return _Operand(_piece(f"strftime({','.join(['{}'] * len(pieces))})", *pieces), fallback=ALWAYS, fixed=True,
                        missing=time.missing if time else frozenset())
    time = operands[1] if len(operands) > 1 else None
    operand = call(time)
    if time and time.again:
        operand.again = lambda space: call(time.again(space))
    return operand


FUNCTIONS = {"geoDistance": _geo_distance, "strftime": _strftime}


# ---------------------------------------------------------------- compiling
# Joins that can repeat a record (multiple and back relations, @collection, :each) do not enter the outer FROM: what they decide
# is written as EXISTS over them, which gives the same records as LEFT JOIN with DISTINCT (some row of the joins makes the
# WHERE true) without comparing whole rows, and keeps the order of the base table. EXISTS is drawn as deep into the tree as the
# joins that expressions share allow: over OR always, over AND when the parts share no such join.
# When nothing but the link of a back relation looks outside, the EXISTS is turned round into `id IN (SELECT link ...)`: the other
# table is read once, by its own indexes, instead of once a record. 100k posts, 200k comments, no index on comments.post:
# comments_via_post.author?="x" 11 ms, comments_via_post.n!="c1" 0.25 s; asked a record at a time the latter takes minutes.
# Sorting by such a join needs its rows: then, and for views whose rows need not be unique, the plain DISTINCT form is used.
# Without `sort` rows come in rowid order when the query has no joins, else in id order: PocketBase's joins bring DISTINCT, for which
# SQLite walks the id index, and its clients see that order. Where its planner starts from another table its order is an accident
# of the plan; here it is still the id order.

def _chains(joins):
    return frozenset().union(*[join.chain for join in joins])


def _joined(joins, needs):
    """The FROM items of the joins, needed ones first and as inner joins; the condition of the first is not in it."""
    needed = _chains(needs)
    pieces = []
    for join in sorted(joins, key=lambda j: (j not in needed, j.number)):
        item = _piece("{} " + join.alias, join.source)
        if join not in needed:
            pieces.append(_piece(("" if pieces else "(SELECT 1) ") + "LEFT JOIN {} ON {}", item, join.on))
        else:
            pieces.append(_piece("JOIN {} ON {}", item, join.on) if pieces else item)
    return pieces


def _exists(joins, condition, needs, word="EXISTS"):
    first = min(joins, key=lambda j: (j not in _chains(needs), j.number))
    where = [first.on, condition] if first in _chains(needs) and first.on.text != "1" else [condition]
    items = _joined(joins, needs)
    piece = _piece(word + " (SELECT 1 FROM" + " {}" * len(items) + " WHERE " + " AND ".join(["{}"] * len(where)) + ")", *items, *where)
    return _Piece(piece.text, piece.params, piece.refs - frozenset(joins))


class _Compiler:
    """Compiles one query. Values are only looked at for their kind (NULL, empty or not), and each look is kept in `trace`, so that the
    result serves every request whose values are of the same kinds."""

    def __init__(self, schema, collection, info, source=None, one=False):
        self.schema, self.base, self.info, self.source, self.one = schema, collection, info, source, one
        self.alias = source or quote_name(collection.name)
        self.plain = source is None and collection.type != "view"
        self.counter, self.tables, self.listed = itertools.count(), {collection.name}, {}
        self.space, self.slots, self.trace = _Space(self), {}, []
        self.place = _Place(collection, BASE, self.alias, collection.name)

    def slot(self, key, getter):
        """The operand of a value that comes with the request."""
        number = self.slots.get(key)
        if number is None:
            number = self.slots[key] = len(self.trace)
            value = getter(self.info)
            self.trace.append((getter, _kind(value), value))
        kind = self.trace[number][1]
        if kind == "null":
            return _NOTHING
        return _Operand(_Piece("?", ((number, None, False),)), kind, fixed=kind == "known")

    def scope(self, trusted, place=None):
        return _Scope(self, place or self.place, trusted)

    def conditions(self, rule, filter, trusted):
        parts = []
        if rule:
            parts.append(self.scope(True).condition(parse_filter(rule)))
        if filter:
            if not trusted and len(filter.encode()) > FILTER_LENGTH_LIMIT:
                raise FilterError("the filter is too long")
            parts.append(self.scope(trusted).condition(parse_filter(filter)))
        return parts

    def listable(self):
        """What a client joined must be listable for it: each joined row passes the list rule of its collection."""
        for key, (join, collection) in self.listed.items():
            if collection.list_rule is None:
                raise FilterError(f"disallowed relation collection {_quoted(collection.name)}")
            if collection.list_rule:
                place = _Place(collection, join, join.alias, key + "!")
                identity = join.column("id")
                rule = self.scope(True, place).condition(parse_filter(collection.list_rule))
                yield _any_of([_leaf(_piece("({} = '' OR {} IS NULL)", identity, identity)), rule])

    def sort(self, text, trusted):
        tokens = text.split(",")
        if len(tokens) > SORT_LIMIT:
            raise FilterError(f"too many sort keys (max {SORT_LIMIT})")
        return [self.sort_key(token.strip(), trusted) for token in tokens] if text else []

    def sort_key(self, token, trusted):
        """`-a.b` -> the ORDER BY term of a path, @random or @rowid."""
        name, direction = (token[1:], "DESC" if token[0] == "-" else "ASC") if token[:1] in ("-", "+") else (token, "ASC")
        if name == "@random":
            return _Piece("RANDOM()")
        if len(name.encode()) > SORT_LENGTH_LIMIT:
            raise FilterError("the sort key is too long")
        if name == "@rowid":
            if not self.plain:
                raise FilterError("views have no @rowid")
            return _Piece(f"{self.alias}.`_rowid_` {direction}", (), frozenset({BASE}))
        operand = self.scope(trusted).resolve(name)
        if operand.state != "column" or operand.piece.params:
            raise FilterError(f"invalid sort field {_quoted(name)}")
        return _piece("{} " + direction, operand.piece)

    def plan(self, rule, filter, sort):
        trusted = self.info.superuser
        parts = self.conditions(rule, filter, trusted)
        order = self.sort(sort, trusted)
        parts += self.listable()
        where = _all_of(parts) if parts else None
        refs = frozenset().union(*[o.refs for o in order])
        spread = any(ref and ref.inner for ref in refs) or (not self.plain and self.base.type == "view")
        if where is not None:
            where = _written(where) if spread else self.decided(where)
            refs |= where.refs
        joins = sorted(_chains(ref for ref in refs if ref), key=lambda j: j.number)
        if not order and self.space.joins and self.plain and not self.one:
            order = [_Piece(self.alias + ".`id`")]
        clauses = [_piece("LEFT JOIN {} " + join.alias + " ON {}", join.source, join.on) for join in joins]
        parts = _lines(clauses, " "), where or _Piece(""), _lines(order, ", ")
        return Plan(*parts, any(j.inner for j in joins), self.deciding_tables(parts))

    def deciding_tables(self, parts):
        """The tables whose rows alone decide what the query finds; None if there is more to it: the clock, chance, or what a view does."""
        views = self.base.type == "view" or any(c is not None and c.type == "view" for c in map(self.schema.find, self.tables))
        return None if views or any(map(_unsteady, (part.text for part in parts))) else frozenset(self.tables)

    # -- what the joins that repeat records decide

    def decided(self, condition):
        """The condition with every repeating join inside an EXISTS."""
        if not any(ref and ref.inner for ref in condition.refs):
            return _written(condition)
        if condition.kind == "or":
            return _piece("(" + " OR ".join(["{}"] * len(condition.items)) + ")", *map(self.decided, condition.items))
        groups = _share_joins(condition.items if condition.kind == "and" else (condition,))
        pieces = [self.decided(g[0]) if len(g) == 1 and g[0].kind == "or" else self.any_row(g) for g in groups]
        return pieces[0] if len(pieces) == 1 else _piece("(" + " AND ".join(["{}"] * len(pieces)) + ")", *pieces)

    def any_row(self, conditions):
        condition = _all_of(conditions)
        reached = _chains(ref for ref in condition.refs if ref)
        inner = [join for join in reached if join.inner]
        if not inner:
            return _written(condition)
        written, needs = _written(condition), condition.needs & frozenset(inner)
        return self.turned_round(inner, written, needs) or _exists(inner, written, needs)

    def turned_round(self, inner, written, needs):
        """The EXISTS as a set of ids, None when it looks outside elsewhere than in the link of its root. A condition that can be true of
        missing rows is asked once for those, for the records that nothing links to."""
        root, ids = self.linked_ids(inner, written, needs)
        if root is None:
            return None
        record = root.link[2]
        if root in _chains(needs):
            return _piece("{} IN {}", record, ids)
        _, everyone = self.linked_ids([root], _Piece("1"), frozenset())
        nobody = _Join(root.alias[1:-1], root.source, _Piece("0"), True, root.table, root.number)
        missing = _exists([nobody if join is root else join for join in inner], written, frozenset())
        missing = _Piece(missing.text, missing.params)
        return _piece("({} IN {} OR (({} NOT IN {} OR {} IS NULL) AND {}))", record, ids, record, everyone, record, missing)

    def linked_ids(self, inner, written, needs):
        """(root, "(SELECT ids ...)"): the records that rows of a back relation link to when they meet a condition which looks at nothing
        but those rows; (None, None) when there is no such root."""
        roots = [join for join in inner if not any(parent in inner for parent in join.chain - {join})]
        if self.one or len(roots) != 1 or not roots[0].link:
            return None, None
        root, (field, is_list, _) = roots[0], roots[0].link
        looked_at = written.refs.union(*[join.source.refs | join.on.refs for join in inner if join is not root])
        if not looked_at <= frozenset(inner):
            return None, None
        value = column = root.column(field)
        each = _Piece("")
        if is_list:
            value, each = _Piece("`#`.`value`"), _piece(" JOIN json_each({}) `#`", _list_of(column))
        first, *rest = _joined(inner, needs | {root})
        piece = _piece("(SELECT {} FROM {}{}" + " {}" * len(rest) + " WHERE {} IS NOT NULL AND {})", value, first, each, *rest, value, written)
        return root, _Piece(piece.text, piece.params)


def _share_joins(conditions):
    """The conditions in groups, two being together when they look at the same row of a repeating join."""
    groups = []
    for condition in conditions:
        reached = {join for ref in condition.refs if ref for join in ref.chain if join.inner}
        together = [group for group in groups if group[0] & reached] if reached else []
        members = [member for group in together for member in group[1]] + [condition]
        groups = [group for group in groups if group not in together] + [(reached.union(*[group[0] for group in together]), members)]
    return [members for _, members in groups]


def _lines(pieces, separator):
    return _piece(separator.join(["{}"] * len(pieces)), *pieces)


_unsteady = re.compile(r"\b(?:strftime|random)\(", re.I).search


def _kind(value):
    return "null" if value is None else "empty" if value == "" and isinstance(value, str) else "known"


# ---------------------------------------------------------------- plans

class Plan:
    """The SQL of a query without its values; compared by identity, so statements built on it can be cached by it."""
    __slots__ = ("joins", "where", "order", "distinct", "tables", "params", "fixed", "__weakref__")

    def __init__(self, joins, where, order, distinct, tables):
        self.joins, self.where, self.order, self.distinct, self.tables = joins.text, where.text, order.text, distinct, tables
        self.params = joins.params, where.params, order.params
        constant = not any(source is not None for params in self.params for source, _, _ in params)
        self.fixed = Query(self, *(_bound(params, ()) for params in self.params)) if constant else None

    def bind(self, values):
        """The query with these values; a plan without any is one shared Query."""
        if self.fixed is not None:
            return self.fixed
        joins, where, order = self.params
        return Query(self, _bound(joins, values), _bound(where, values), _bound(order, values))


def _bound(params, values):
    if not params:
        return []
    bound = []
    for source, constant, pattern in params:
        value = constant if source is None else values[source]
        bound.append(_like_pattern(value) if pattern else value)
    return bound


class Query:
    """SQL parts for one request: `FROM table <joins> WHERE <where> ORDER BY <order>`, each with its parameters. Treat as read-only."""
    __slots__ = ("plan", "params_joins", "params_where", "params_order", "joins", "where", "order", "distinct", "tables")

    def __init__(self, plan, params_joins, params_where, params_order):
        self.plan, self.params_joins, self.params_where, self.params_order = plan, params_joins, params_where, params_order
        self.joins, self.where, self.order, self.distinct, self.tables = plan.joins, plan.where, plan.order, plan.distinct, plan.tables


class _Step:
    """A plan cache entry: the value to look at next and where each of its kinds leads, or the plan."""
    __slots__ = ("getter", "next", "plan")

    def __init__(self):
        self.getter, self.next, self.plan = None, {}, None


@functools.lru_cache(maxsize=2000)
def _first_step(schema, version, collection, auth, superuser, rule, filter, sort, source, one):
    return _Step()


def plan_query(schema, collection, info, *, rule=None, filter="", sort="", source=None, one=False):
    """The Query for a rule AND a client filter, sorted. `source` names a table standing for the collection's own (the row a create rule
    looks at); `one` says that the caller pins single records, so starting from other tables cannot pay.
    Raises FilterError. `SELECT c.* FROM c <joins> WHERE <where>`, DISTINCT when query.distinct."""
    auth = info.auth
    step = _first_step(schema, schema.version, collection, auth and auth.collection.id, info.superuser, rule, filter, sort, source, one)
    values = []
    while (getter := step.getter) is not None:
        value = getter(info)
        values.append(value)
        following = step.next.get("null" if value is None else "empty" if value == "" else "known")
        if following is None:
            return _compile_step(step, values, schema, collection, info, rule, filter, sort, source, one)
        step = following
    if step.plan is None:
        return _compile_step(step, values, schema, collection, info, rule, filter, sort, source, one)
    fixed = step.plan.fixed
    return step.plan.bind(values) if fixed is None else fixed


def _compile_step(step, values, schema, collection, info, rule, filter, sort, source, one):
    """Compile for values of these kinds and lay the way to the plan."""
    compiler = _Compiler(schema, collection, info, source, one)
    plan = compiler.plan(rule, filter, sort)
    if len(plan.joins) + len(plan.where) > CACHED_SQL_LIMIT:
        return plan.bind([value for _, _, value in compiler.trace])
    for number, (getter, kind, _) in enumerate(compiler.trace):
        if number < len(values) - (step.getter is not None):
            continue
        step.getter = getter
        step = step.next.setdefault(kind, _Step())
    step.plan = plan
    return plan.bind([value for _, _, value in compiler.trace])


def check_rule(schema, collection, text):
    """Raise FilterError when the text cannot be a rule of this collection; its fields are the ones to be saved, not the stored ones."""
    if text:
        _Compiler(_WithCollection(schema, collection), collection, RequestInfo(superuser=True)).plan(text, "", "")


class _WithCollection:
    """The schema as it will be once `collection` is saved."""

    def __init__(self, schema, collection):
        self.schema, self.collection = schema, collection

    def find(self, name):
        if name == self.collection.id or name.lower() == self.collection.name.lower():
            return self.collection
        return self.schema.find(name)


# ---------------------------------------------------------------- plain tables

class _Columns(_Scope):
    """Names of a fixed set of columns, for tables that are no collections (collections, logs)."""

    def __init__(self, compiler, columns, json_columns):
        super().__init__(compiler, None, True)
        self.columns, self.json_columns = columns, json_columns

    def resolve(self, name):
        first, dot, rest = name.partition(".")
        if dot and first in self.json_columns:
            return _Operand(_json_at(_Piece(self.columns[first]), rest.split(".")), fallback=NEVER)
        if name not in self.columns:
            raise _Unresolved(f"failed to resolve field {_quoted(name)}")
        return _Operand(_Piece(self.columns[name]))


class _ColumnsCompiler(_Compiler):
    def __init__(self, columns, json_columns):
        self.info, self.slots, self.trace, self.counter, self.tables = RequestInfo(superuser=True), {}, [], itertools.count(), set()
        self.columns, self.json_columns, self.listed, self.base, self.plain = columns, json_columns, {}, None, True
        self.space = _Space(self)

    def scope(self, trusted, place=None):
        return _Columns(self, self.columns, self.json_columns)

    def sort_key(self, token, trusted):
        if token in ("@rowid", "+@rowid", "-@rowid"):
            return _Piece("`_rowid_` " + ("DESC" if token[0] == "-" else "ASC"))
        return super().sort_key(token, trusted)

    def deciding_tables(self, parts):
        """None: what superusers list rarely is not worth remembering."""


def plan_simple(columns, filter="", sort="", json_columns=()):
    """The Query of a superuser's list over plain columns: {"name": "`name`"} maps what the text may say to SQL."""
    compiler = _ColumnsCompiler(columns, json_columns)
    plan = compiler.plan(None, filter, sort)
    return plan.bind([value for _, _, value in compiler.trace])


# ============================================================================
#  10. OAuth2
# ============================================================================
# Owns what is said to other servers when somebody signs in with an account held elsewhere: the provider table, the address to
# send the browser to, code for token, token for user, id tokens and their keys, and the guarded download of avatars.
# Invariant: a user comes only from the provider that was asked, and an e-mail only if that provider vouches for it.
# It knows no records: linking and creating are done by who calls. May use chapters 1-2; HTTP by requests, imported on first use.
# Sources: RFC 6749, RFC 7636 (PKCE), RFC 9700 (security practice), OpenID Connect Core 1.0, RFC 7517 and 8725 (keys, tokens).



OAUTH2_SECONDS = 30  # for a whole sign-in: token, user, extra calls, keys
_OAUTH2_BODY = 4 << 20  # bytes of one answer, decoded; user infos have some kB
_TOKEN_FAILED = "Failed to fetch OAuth2 token."
_USER_FAILED = "Failed to fetch OAuth2 user."
_APPLE_ISSUER = "https://appleid.apple.com"
_APPLE_KEYS = "https://appleid.apple.com/auth/keys"
_GITEE_EMAILS = "https://gitee.com/api/v5/emails"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


@contextmanager
def _within(seconds, error):
    """Raise error when the block takes longer. A Timeout is no Exception, so nothing inside can mistake it for a failed attempt."""
    timer = gevent.Timeout.start_new(seconds)
    try:
        yield
    except gevent.Timeout as fired:
        if fired is not timer:
            raise
        raise error from None
    finally:
        timer.close()


class OAuth2Error(ApiError):
    """A failed sign-in: message is for the visitor, raw for the log (it holds no secret)."""

    def __init__(self, message, detail):
        super().__init__(400, message, None, detail)


# ---- user info paths
# A row of PROVIDERS says where a value is by a path: "data.0.name" walks objects and lists. Alternatives:
#   "#id"                    the value must be a JSON number, and becomes decimal text (all others must be text)
#   ("first", "last")        the texts joined by a space
# email_if: conditions that must hold, "verified" being exactly true, "~verified" anything that reads as true ("1", 1, "true").
# require: (path, value) without which the account is turned down. A missing value is "", a wrong type fails the sign-in.

def user_info_value(info, path):
    """Return the value at a path, or None: user_info_value({"data": [{"id": 1}]}, "data.0.id") -> 1"""
    for step in path.split("."):
        if isinstance(info, dict):
            info = info.get(step)
        elif isinstance(info, list) and step.isdigit() and int(step) < len(info):
            info = info[int(step)]
        else:
            return None
    return info


def user_info_text(info, path):
    """Return the text that a mapping row asks for."""
    if isinstance(path, tuple):
        return " ".join(user_info_text(info, one) for one in path).strip()
    value = user_info_value(info, path.lstrip("#")) if path else None
    if path.startswith("#") and isinstance(value, int) and not isinstance(value, bool):
        return str(value) if value else ""  # 0 is what servers send for nobody; it must not become an account
    if value is not None and (path.startswith("#") or not isinstance(value, str)):
        raise OAuth2Error(_USER_FAILED, f"user info value {path} has the wrong type")
    return value or ""


def user_info_holds(info, condition):
    """Tell whether an email_if condition holds."""
    value = user_info_value(info, condition.lstrip("~"))
    if condition.startswith("~"):
        return _reads_as_true(value)
    if value is not None and not isinstance(value, bool):
        raise OAuth2Error(_USER_FAILED, f"user info value {condition} is no boolean")
    return value is True


def _reads_as_true(value):
    return value in ("1", "t", "T", "true", "TRUE", "True") if isinstance(value, str) else isinstance(value, (bool, int, float)) and value != 0


# ---- calls to providers

def _http_call(method, url, message, authorization="", headers=None, **options):
    """Return (status, content type, body) of one call to a provider; its addresses come from superusers and may be internal."""
    import requests

    def sign(request):  # as auth, not as header: else requests prefers a password it finds in ~/.netrc
        if authorization:
            request.headers["Authorization"] = authorization
        return request
    headers = {"Accept": "application/json", "User-Agent": "PocketBase", **(headers or {})}
    try:
        with requests.request(method, url, headers=headers, auth=sign, stream=True, timeout=OAUTH2_SECONDS, **options) as answer:
            body = bytearray()
            for piece in answer.iter_content(65536):
                body += piece
                if len(body) > _OAUTH2_BODY:
                    raise OAuth2Error(message, "the provider's answer is too large")
            kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            return answer.status_code, kind, bytes(body)
    except (requests.RequestException, ValueError, OSError) as error:  # ValueError: addresses that are none
        raise OAuth2Error(message, f"{url}: {type(error).__name__}") from error


def _json_or_fail(body, message):
    try:
        value = json.loads(body, parse_constant=_refuse_json_constant)
        # half a surrogate pair in a name would break every later encoding
        return json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError):
        raise OAuth2Error(message, "the provider's answer is no JSON") from None


def _refuse_json_constant(name):
    raise ValueError(f"{name} is no JSON")


# ---- id tokens

_ALGORITHMS = {  # what a key may sign with, by its curve or type; never none, never HMAC with a public key as its secret (RFC 8725 2.1)
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "P-256": ("ES256",), "P-384": ("ES384",), "P-521": ("ES512",), "Ed25519": ("EdDSA",), "Ed448": ("EdDSA",),
}
_ID_TOKEN_BYTES = 64 << 10
_RSA_BITS = 2048  # RFC 7518 3.3
_KEYS_SECONDS = 600  # how long fetched keys serve
_REFETCH_SECONDS = 10  # between two fetches for unknown key ids, which anybody could make up
_KEY_SETS = 64  # addresses remembered


class KeySets:
    """The JWKS of providers by address: cached for ten minutes, fetched anew at once when a token names an unknown key."""

    def __init__(self):
        self._sets = {}  # url: (keys, fetched at, last fetched for an unknown id)
        self._places = {}  # issuer: (url, found at)

    def key(self, url, kid, algorithm):
        """Return the JWK (dict) with this id that may sign with this algorithm. Raises OAuth2Error."""
        now = time.monotonic()
        keys, fetched, asked = self._sets.get(url, ((), float("-inf"), float("-inf")))
        fresh = now - fetched <= _KEYS_SECONDS
        found = _fitting_key(keys, kid, algorithm) if fresh else None
        if found is None and (not fresh or now - asked > _REFETCH_SECONDS):
            keys = self._fetch(url)
            self._sets[url] = (keys, now, now if fresh else asked)
            while len(self._sets) > _KEY_SETS:
                del self._sets[next(iter(self._sets))]
            found = _fitting_key(keys, kid, algorithm)
        if found is None:
            raise OAuth2Error(_USER_FAILED, f"no key {kid[:100]!r} for {algorithm} at {url}")
        return found

    def url(self, issuer):
        """Return where an issuer publishes its keys: jwks_uri of a document that must name the issuer (OpenID Connect Discovery 4)."""
        url, found_at = self._places.get(issuer, ("", 0))
        if not url or time.monotonic() - found_at > _KEYS_SECONDS:
            status, _, body = _http_call("GET", issuer.rstrip("/") + "/.well-known/openid-configuration", _USER_FAILED)
            document = _json_or_fail(body, _USER_FAILED) if status < 400 else None
            url = user_info_value(document, "jwks_uri")
            if user_info_value(document, "issuer") != issuer or not isinstance(url, str) or not url:
                raise OAuth2Error(_USER_FAILED, f"no discovery document of {issuer}: status {status}")
            self._places[issuer] = (url, time.monotonic())
        return url

    def _fetch(self, url):
        status, _, body = _http_call("GET", url, _USER_FAILED)
        keys = user_info_value(_json_or_fail(body, _USER_FAILED), "keys") if status < 400 else None
        if not isinstance(keys, list):
            raise OAuth2Error(_USER_FAILED, f"no keys at {url}: status {status}")
        return [key for key in keys if isinstance(key, dict)]


key_sets = KeySets()


def _fitting_key(keys, kid, algorithm):
    """Return the first key with this id that is for signing and, by its own alg and its type, for this algorithm."""
    return next((key for key in keys if key.get("kid") == kid and key.get("use") in (None, "", "sig") and key.get("alg") in (None, "", algorithm)
                 and algorithm in _ALGORITHMS.get(str(key.get("crv") or key.get("kty")), ())), None)


def verify_id_token(token, provider, issuers=(), keys_url="", nonce=None, need_exp=False):
    """Return the claims of an id token after all checks of OpenID Connect Core 3.1.3.7 that the arguments allow.

    issuers: accepted iss values; keys_url: the JWKS that must have signed it; nonce: the value that was sent, if one was.
    Raises OAuth2Error (text: Failed to fetch OAuth2 user.)
    """
    claims = check_id_token_claims(_unverified_claims(token), provider["clientId"], issuers, need_exp)
    if nonce is not None and not hmac.compare_digest(str(claims.get("nonce")).encode(), nonce.encode()):
        raise OAuth2Error(_USER_FAILED, "id token: wrong nonce")
    if keys_url:
        _check_signature(token, keys_url)
    return claims


def _unverified_claims(token):
    return _token_part(token, 1)


def _token_part(token, index):
    """Return a part of a JWT as dict, without any check but of its form."""
    parts = token.split(".") if isinstance(token, str) and len(token) <= _ID_TOKEN_BYTES else []
    try:
        if len(parts) != 3:
            raise ValueError("not three parts")
        value = json.loads(base64.b64decode(parts[index] + "=" * (-len(parts[index]) % 4), b"-_", validate=True))
        if not isinstance(value, dict):
            raise ValueError("no object")
        return value
    except (ValueError, RecursionError) as error:
        raise OAuth2Error(_USER_FAILED, f"id token: missing or garbled ({type(error).__name__})") from None


def check_id_token_claims(claims, client_id, issuers=(), need_exp=False):
    """Check times, audience and issuer; return the claims. Clocks may differ by five minutes (PB_ID_TOKEN_LEEWAY: seconds)."""
    now, leeway = time.time(), _leeway()
    for name, late in (("exp", True), ("nbf", False), ("iat", False)):
        at = claims.get(name)
        if at is None and not (need_exp and name == "exp"):
            continue
        if not isinstance(at, (int, float)) or isinstance(at, bool) or (now >= at + leeway if late else now < at - leeway):
            raise OAuth2Error(_USER_FAILED, f"id token: {name} is not acceptable")
    audience = claims.get("aud")
    audience = audience if isinstance(audience, list) else [audience]
    # one token for several parties is for the one it was issued to (OpenID Connect Core 3.1.3.7, 4-5)
    if client_id not in audience or not client_id or (len(audience) > 1 and claims.get("azp", client_id) != client_id):
        raise OAuth2Error(_USER_FAILED, "id token: it is for somebody else")
    if issuers and claims.get("iss") not in issuers:
        raise OAuth2Error(_USER_FAILED, "id token: wrong issuer")
    return claims


def _leeway():
    try:
        return int(os.environ.get("PB_ID_TOKEN_LEEWAY", ""))
    except ValueError:
        return 300


def _check_signature(token, keys_url):
    import jwt
    header = _token_part(token, 0)
    kid, algorithm = header.get("kid"), header.get("alg")
    if not isinstance(kid, str) or not kid or not isinstance(algorithm, str) or "crit" in header:  # crit: RFC 7515 4.1.11, we know none
        raise OAuth2Error(_USER_FAILED, "id token: header without key id or algorithm")
    key = key_sets.key(keys_url, kid, algorithm)
    try:
        public = jwt.PyJWK(key, algorithm=algorithm).key
        if key["kty"] == "RSA" and public.key_size < _RSA_BITS:
            raise OAuth2Error(_USER_FAILED, "id token: the key is too short")
        jwt.api_jws.decode(token, key=public, algorithms=[algorithm])
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError) as error:  # of keys that are none, too
        raise OAuth2Error(_USER_FAILED, f"id token: {type(error).__name__}") from None


def _oidc_claims(call):
    """Return the id token's claims for an OIDC provider that was configured without a user info address."""
    issuers = call.provider["extra"].get("issuers") or []
    issuers = issuers.split() if isinstance(issuers, str) else issuers
    keys_url, token = call.provider["extra"].get("jwksURL") or "", call.token.get("id_token")
    if issuers and not keys_url:
        # Stricter than PocketBase, which then checks no signature: the issuer publishes where its keys are, so they are used.
        claims = check_id_token_claims(_unverified_claims(token), call.provider["clientId"], issuers)
        keys_url = key_sets.url(claims["iss"])
    return verify_id_token(token, call.provider, issuers, keys_url)


# ---- what is odd: functions (user, call) that finish a mapped user. call: see _UserCall

def _apple_profile(call):
    return verify_id_token(call.token.get("id_token"), call.provider, [_APPLE_ISSUER], _APPLE_KEYS, need_exp=True)


def _oidc_profile(call):
    """User info, or the id token when no address for it is configured. When both came they must agree (OpenID Connect Core 5.3.2)."""
    if not call.provider["userInfoURL"]:
        return _oidc_claims(call)
    info = _fetched_profile(call)
    try:
        subject = _unverified_claims(call.token.get("id_token")).get("sub")
    except OAuth2Error:
        return info
    if subject != info.get("sub"):
        raise OAuth2Error(_USER_FAILED, "user info and id token are of different users")
    return info


def _finish_microsoft(user, call):
    """The e-mail of a work account is whatever its administrator typed, so only claims that Microsoft checked count when asked for."""
    rule = call.provider["extra"].get("idTokenEmailClaim")
    if rule not in ("verified_primary_email", "email_and_xms_edov", "any_verified", "email"):
        return
    try:  # straight from the token endpoint, so TLS stands in for the signature (OpenID Connect Core 3.1.3.7, 6)
        claims = check_id_token_claims(_unverified_claims(call.token.get("id_token")), call.provider["clientId"])
    except OAuth2Error:
        claims = {}
    primary, email = claims.get("verified_primary_email"), claims.get("email")
    checked = email if _reads_as_true(claims.get("xms_edov")) else None
    chosen = {"verified_primary_email": primary, "email_and_xms_edov": checked, "email": email,
              "any_verified": primary if primary and isinstance(primary, str) else checked}[rule]
    user["email"] = chosen if isinstance(chosen, str) else ""


def _finish_yandex(user, call):
    avatar = user_info_text(call.info, "default_avatar_id")
    if avatar and not user_info_holds(call.info, "is_avatar_empty"):
        user["avatarURL"] = f"https://avatars.yandex.net/get-yapic/{avatar}/islands-200"


def _finish_instagram(user, call):
    if "permissions" in call.token:
        call.info["permissions"] = call.token["permissions"]


def _finish_github(user, call):
    """The profile's e-mail need not be confirmed; the list says which is. Without permission to read it there is none."""
    status, body = call.get(call.provider["userInfoURL"] + "/emails")
    if status >= 400 and status not in (401, 403, 404):
        raise OAuth2Error(_USER_FAILED, f"e-mail list: status {status}")
    rows = _rows(_json_or_fail(body, _USER_FAILED)) if status < 400 else []
    user["email"] = next((_as_text(row.get("email")) for row in rows if row.get("verified") is True and row.get("primary") is True), "")


def _finish_gitlab(user, call):
    confirmed = user_info_value(call.info, "confirmed_at")  # unconfirmed is null
    if not (isinstance(confirmed, str) and re.match(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)\Z", confirmed)):
        user["email"] = ""


def _finish_bitbucket(user, call):
    status, body = call.get(call.provider["userInfoURL"] + "/emails")
    rows = _rows(user_info_value(_json_or_fail(body, _USER_FAILED), "values")) if status < 400 else []
    user["email"] = next((_as_text(row.get("email")) for row in rows if row.get("is_primary") is True and row.get("is_confirmed") is True), "")


def _finish_gitee(user, call):
    if re.match(r"[^@\s]+@[^@\s]+\.[^@\s.]+\Z", user["email"]):
        return
    status, body = call.get(_GITEE_EMAILS)
    try:
        rows = _rows(json.loads(body)) if status < 400 else []
    except (ValueError, OAuth2Error):
        rows = []
    user["email"] = next((_as_text(row.get("email")) for row in rows
                          if row.get("state") == "confirmed" and "primary" in (row.get("scope") or ())), "")


def _finish_discord(user, call):
    number, avatar = user_info_text(call.info, "discriminator"), user_info_text(call.info, "avatar")
    user["name"] = user["name"] or user["username"] + (f"#{number}" if number not in ("", "0") else "")
    if avatar:
        user["avatarURL"] = f"https://cdn.discordapp.com/avatars/{user['id']}/{avatar}.png"


def _finish_vk(user, call):
    user["email"] = _as_text(call.token.get("email"))


def _finish_wakatime(user, call):
    if not user_info_holds(call.info, "data.photo_public"):
        user["avatarURL"] = ""


def _finish_mailcow(user, call):
    user["username"] = user["username"].partition("@")[0]


def _as_text(value):
    return value if isinstance(value, str) else ""


def _rows(value):
    if not isinstance(value, (list, type(None))):
        raise OAuth2Error(_USER_FAILED, "the provider's e-mail list is no list")
    return [row for row in value or () if isinstance(row, dict)]


# ---- the providers

_PROVIDER_DEFAULTS = {"authURL": "", "tokenURL": "", "userInfoURL": "", "scopes": "", "pkce": True, "authParams": {}, "headers": {}, "query": "",
                      "id": "id", "name": "", "username": "", "email": "", "email_if": (), "avatar": "", "require": (), "finish": None,
                      "profile": None}

_OIDC = dict(displayName="OIDC", scopes="openid email profile", id="sub", name="name", username="preferred_username", email="email",
             email_if=("~email_verified",), avatar="picture", profile=_oidc_profile)

PROVIDERS = {name: {**_PROVIDER_DEFAULTS, **row} for name, row in {
    "apple": dict(
        displayName="Apple", authURL="https://appleid.apple.com/auth/authorize", tokenURL="https://appleid.apple.com/auth/token",
        scopes="name email", authParams={"response_mode": "form_post"},
        id="sub", name="name", email="email", email_if=("~email_verified",), profile=_apple_profile),
    "google": dict(
        displayName="Google", authURL="https://accounts.google.com/o/oauth2/v2/auth", tokenURL="https://oauth2.googleapis.com/token",
        userInfoURL="https://www.googleapis.com/oauth2/v3/userinfo",
        scopes="https://www.googleapis.com/auth/userinfo.profile https://www.googleapis.com/auth/userinfo.email",
        id="sub", name="name", email="email", email_if=("email_verified",), avatar="picture"),
    "microsoft": dict(
        displayName="Microsoft", authURL="https://login.microsoftonline.com/common/oauth2/v2.0/authorize",
        tokenURL="https://login.microsoftonline.com/common/oauth2/v2.0/token", userInfoURL="https://graph.microsoft.com/v1.0/me",
        scopes="User.Read", id="id", name="displayName", email="mail", finish=_finish_microsoft),
    "yandex": dict(
        displayName="Yandex", authURL="https://oauth.yandex.com/authorize", tokenURL="https://oauth.yandex.com/token",
        userInfoURL="https://login.yandex.ru/info", scopes="login:email login:avatar login:info",
        name="real_name", username="login", email="default_email", finish=_finish_yandex),
    "facebook": dict(
        displayName="Facebook", authURL="https://www.facebook.com/v3.2/dialog/oauth", tokenURL="https://graph.facebook.com/v3.2/oauth/access_token",
        userInfoURL="https://graph.facebook.com/me?fields=name,email,picture.type(large)", scopes="email",
        name="name", email="email", avatar="picture.data.url"),
    "instagram2": dict(
        displayName="Instagram", authURL="https://www.instagram.com/oauth/authorize", tokenURL="https://api.instagram.com/oauth/access_token",
        userInfoURL="https://graph.instagram.com/me?fields=id,username,account_type,user_id,name,profile_picture_url,"
                    "followers_count,follows_count,media_count",
        scopes="instagram_business_basic", id="user_id", name="name", username="username", avatar="profile_picture_url", finish=_finish_instagram),
    "github": dict(
        displayName="GitHub", authURL="https://github.com/login/oauth/authorize", tokenURL="https://github.com/login/oauth/access_token",
        userInfoURL="https://api.github.com/user", scopes="read:user user:email",
        id="#id", name="name", username="login", avatar="avatar_url", finish=_finish_github),
    "gitlab": dict(
        displayName="GitLab", authURL="https://gitlab.com/oauth/authorize", tokenURL="https://gitlab.com/oauth/token",
        userInfoURL="https://gitlab.com/api/v4/user", scopes="read_user",
        id="#id", name="name", username="username", email="email", avatar="avatar_url", finish=_finish_gitlab),
    "bitbucket": dict(
        displayName="Bitbucket", authURL="https://bitbucket.org/site/oauth2/authorize", tokenURL="https://bitbucket.org/site/oauth2/access_token",
        userInfoURL="https://api.bitbucket.org/2.0/user", scopes="account", pkce=False,
        id="uuid", name="display_name", username="username", avatar="links.avatar.href", require=("account_status", "active"),
        finish=_finish_bitbucket),
    "gitee": dict(
        displayName="Gitee", authURL="https://gitee.com/oauth/authorize", tokenURL="https://gitee.com/oauth/token",
        userInfoURL="https://gitee.com/api/v5/user", scopes="user_info emails",
        id="#id", name="name", username="login", email="email", avatar="avatar_url", finish=_finish_gitee),
    "gitea": dict(
        displayName="Gitea/Forgejo", authURL="https://gitea.com/login/oauth/authorize", tokenURL="https://gitea.com/login/oauth/access_token",
        userInfoURL="https://gitea.com/api/v1/user", scopes="read:user user:email",
        id="#id", name="full_name", username="login", avatar="avatar_url", require=("active", True), finish=_finish_github),
    "discord": dict(
        displayName="Discord", authURL="https://discord.com/api/oauth2/authorize", tokenURL="https://discord.com/api/oauth2/token",
        userInfoURL="https://discord.com/api/users/@me", scopes="identify email",
        name="global_name", username="username", email="email", email_if=("verified",), finish=_finish_discord),
    "twitter": dict(
        displayName="X/Twitter", authURL="https://x.com/i/oauth2/authorize", tokenURL="https://api.x.com/2/oauth2/token",
        userInfoURL="https://api.x.com/2/users/me?user.fields=id,name,username,profile_image_url,confirmed_email",
        scopes="users.read users.email tweet.read",
        id="data.id", name="data.name", username="data.username", email="data.confirmed_email", avatar="data.profile_image_url"),
    "kakao": dict(
        displayName="Kakao", authURL="https://kauth.kakao.com/oauth/authorize", tokenURL="https://kauth.kakao.com/oauth/token",
        userInfoURL="https://kapi.kakao.com/v2/user/me", scopes="account_email profile_nickname profile_image",
        id="#id", username="properties.nickname", email="kakao_account.email",
        email_if=("kakao_account.is_email_valid", "kakao_account.is_email_verified"), avatar="properties.profile_image"),
    "vk": dict(
        displayName="ВКонтакте", authURL="https://oauth.vk.com/authorize", tokenURL="https://oauth.vk.com/access_token",
        userInfoURL="https://api.vk.com/method/users.get?fields=photo_max,screen_name&v=5.131", scopes="email", pkce=False,
        id="#response.0.id", name=("response.0.first_name", "response.0.last_name"), username="response.0.screen_name",
        avatar="response.0.photo_max", require=("response.0", dict), finish=_finish_vk),
    "linear": dict(
        displayName="Linear", authURL="https://linear.app/oauth/authorize", tokenURL="https://api.linear.app/oauth/token",
        userInfoURL="https://api.linear.app/graphql", scopes="read", pkce=False,
        query="query Me { viewer { id displayName name email avatarUrl active } }",
        id="data.viewer.id", name="data.viewer.name", username="data.viewer.displayName", email="data.viewer.email",
        avatar="data.viewer.avatarUrl", require=("data.viewer.active", True)),
    "notion": dict(
        displayName="Notion", authURL="https://api.notion.com/v1/oauth/authorize", tokenURL="https://api.notion.com/v1/oauth/token",
        userInfoURL="https://api.notion.com/v1/users/me", headers={"Notion-Version": "2022-06-28"},
        id="bot.owner.user.id", name="bot.owner.user.name", email="bot.owner.user.person.email", avatar="bot.owner.user.avatar_url"),
    "monday": dict(
        displayName="monday.com", authURL="https://auth.monday.com/oauth2/authorize", tokenURL="https://auth.monday.com/oauth2/token",
        userInfoURL="https://api.monday.com/v2", scopes="me:read",
        query="query { me { id enabled name email is_verified photo_small } }",
        id="data.me.id", name="data.me.name", email="data.me.email", email_if=("data.me.is_verified",), avatar="data.me.photo_small",
        require=("data.me.enabled", True)),
    "lark": dict(
        displayName="Lark", authURL="https://accounts.feishu.cn/open-apis/authen/v1/authorize",
        tokenURL="https://open.feishu.cn/open-apis/authen/v2/oauth/token", userInfoURL="https://open.feishu.cn/open-apis/authen/v1/user_info",
        id="data.union_id", name="data.name", avatar="data.avatar_url"),
    "box": dict(
        displayName="Box", authURL="https://account.box.com/api/oauth2/authorize", tokenURL="https://api.box.com/oauth2/token",
        userInfoURL="https://api.box.com/2.0/users/me", scopes="root_readonly",
        name="name", email="login", avatar="avatar_url", require=("status", "active")),
    "spotify": dict(
        displayName="Spotify", authURL="https://accounts.spotify.com/authorize", tokenURL="https://accounts.spotify.com/api/token",
        userInfoURL="https://api.spotify.com/v1/me", scopes="user-read-private",  # its e-mail is never verified
        name="display_name", avatar="images.0.url"),
    "trakt": dict(
        displayName="Trakt", authURL="https://trakt.tv/oauth/authorize", tokenURL="https://api.trakt.tv/oauth/token",
        userInfoURL="https://api.trakt.tv/users/settings",
        headers={"Content-type": "application/json", "trakt-api-key": "{clientId}", "trakt-api-version": "2"},
        id="user.ids.uuid", name="user.name", username="user.username", avatar="user.images.avatar.full"),
    "twitch": dict(
        displayName="Twitch", authURL="https://id.twitch.tv/oauth2/authorize", tokenURL="https://id.twitch.tv/oauth2/token",
        userInfoURL="https://api.twitch.tv/helix/users", scopes="user:read:email", headers={"Client-Id": "{clientId}"},
        id="data.0.id", name="data.0.display_name", username="data.0.login", email="data.0.email", avatar="data.0.profile_image_url",
        require=("data.0", dict)),
    "patreon": dict(
        displayName="Patreon", authURL="https://www.patreon.com/oauth2/authorize", tokenURL="https://www.patreon.com/api/oauth2/token",
        userInfoURL="https://www.patreon.com/api/oauth2/v2/identity?fields%5Buser%5D=full_name,email,vanity,image_url,is_email_verified",
        scopes="identity identity[email]", id="data.id", name="data.attributes.full_name", username="data.attributes.vanity",
        email="data.attributes.email", email_if=("data.attributes.is_email_verified",), avatar="data.attributes.image_url"),
    "strava": dict(
        displayName="Strava", authURL="https://www.strava.com/oauth/authorize", tokenURL="https://www.strava.com/api/v3/oauth/token",
        userInfoURL="https://www.strava.com/api/v3/athlete", scopes="profile:read_all",
        id="#id", name=("firstname", "lastname"), username="username", avatar="profile"),
    "wakatime": dict(
        displayName="WakaTime", authURL="https://wakatime.com/oauth/authorize", tokenURL="https://wakatime.com/oauth/token",
        userInfoURL="https://wakatime.com/api/v1/users/current", scopes="email",
        id="data.id", name="data.display_name", username="data.username", email="data.email", email_if=("data.is_email_confirmed",),
        avatar="data.photo", finish=_finish_wakatime),
    "livechat": dict(
        displayName="LiveChat", authURL="https://accounts.livechat.com/", tokenURL="https://accounts.livechat.com/token",
        userInfoURL="https://accounts.livechat.com/v2/accounts/me",
        id="account_id", name="name", email="email", email_if=("email_verified",), avatar="avatar_url"),
    "mailcow": dict(
        displayName="mailcow", scopes="profile",
        name="full_name", username="username", email="email", require=("active", 1), finish=_finish_mailcow),
    "planningcenter": dict(
        displayName="Planning Center", authURL="https://api.planningcenteronline.com/oauth/authorize",
        tokenURL="https://api.planningcenteronline.com/oauth/token", userInfoURL="https://api.planningcenteronline.com/people/v2/me",
        scopes="people", id="data.id", name="data.attributes.name", avatar="data.attributes.avatar",
        require=("data.attributes.status", "active")),
    "oidc": _OIDC, "oidc2": _OIDC, "oidc3": _OIDC,
}.items()}


def provider_list():
    """Return what GET /api/collections/meta/oauth2-providers answers."""
    return [{"name": name, "displayName": row["displayName"], "logo": provider_logo(name)} for name, row in PROVIDERS.items()]


def provider_logo(name):
    """Return a neutral mark as SVG text: a rounded square with the provider's first letter."""
    letter = PROVIDERS[name]["displayName"][0].upper()
    return ('<svg xmlns="http://www.w3.org/2000/svg" width="24" height="24" viewBox="0 0 24 24"><rect width="24" height="24" rx="6" fill="#5a6372"/>'
            '<text x="12" y="17" font-family="sans-serif" font-size="14" font-weight="bold" text-anchor="middle" fill="#fff">'
            f"{letter}</text></svg>")


def provider_config(row):
    """Merge an item of a collection's oauth2.providers with its row of the table; None when the name is unknown.

    Keys: name, displayName, clientId, clientSecret, authURL, tokenURL, userInfoURL, pkce, extra.
    """
    known = PROVIDERS.get(row["name"])
    if known is None:
        return None
    merged = {key: row.get(key) or known[key] for key in ("displayName", "authURL", "tokenURL", "userInfoURL")}
    pkce = row.get("pkce")
    return {"name": row["name"], "clientId": row.get("clientId") or "", "clientSecret": row.get("clientSecret") or "", **merged,
            "pkce": known["pkce"] if pkce is None else pkce, "extra": row.get("extra") or {}}


# ---- sending the browser away

def new_oauth2_state():
    return random_text(30, _LETTERS)


def new_code_verifier():
    return random_text(43, _LETTERS)  # the least that RFC 7636 4.1 allows: 256 bits


def code_challenge(verifier):
    """Return the S256 challenge (RFC 7636 4.2)."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def auth_url(provider, state, challenge=""):
    """Return the provider's address without the final value: the client appends its own encoded redirect URL."""
    row = PROVIDERS[provider["name"]]
    scopes = row["scopes"]
    if provider["name"] == "microsoft" and provider["extra"].get("idTokenEmailClaim"):
        scopes += " openid"  # else there is no id token
    params = {"client_id": provider["clientId"], "response_type": "code", "state": state, **row["authParams"]}
    if scopes:
        params["scope"] = scopes
    if challenge:
        params.update(code_challenge=challenge, code_challenge_method="S256")
    base = provider["authURL"]
    return base + ("&" if "?" in base else "?") + urlencode(sorted(params.items())) + "&redirect_uri="


def auth_method(provider):
    """Return one item of auth-methods, with a state and a verifier that the client keeps and nobody else knows."""
    state, verifier = new_oauth2_state(), new_code_verifier() if provider["pkce"] else ""
    challenge = code_challenge(verifier) if verifier else ""
    url = auth_url(provider, state, challenge)
    return {"name": provider["name"], "displayName": provider["displayName"], "logo": provider_logo(provider["name"]), "state": state,
            "authURL": url, "authUrl": url, "codeVerifier": verifier, "codeChallenge": challenge,
            "codeChallengeMethod": "S256" if verifier else ""}


# ---- code for token, token for user

def oauth2_sign_in(provider, code, verifier="", redirect_url=""):
    """Return the user that the provider names for this code, within 30 seconds for all calls together.

    The result has the keys of the answer's meta: id, name, username, email, avatarURL, accessToken, refreshToken, expiry, rawUser.
    Raises OAuth2Error with the public text of the step that failed.
    """
    until = time.monotonic() + OAUTH2_SECONDS
    token = exchange_code(provider, code, verifier, redirect_url)
    return fetch_user(provider, token, max(0.1, until - time.monotonic()))


def exchange_code(provider, code, verifier="", redirect_url="", seconds=OAUTH2_SECONDS):
    """Return the token answer (dict with access_token). Credentials go by HTTP Basic first, then in the form (RFC 6749 2.3.1)."""
    form = {"code": code, "grant_type": "authorization_code"}
    if provider["pkce"]:
        form["code_verifier"] = verifier
    if redirect_url:
        form["redirect_uri"] = redirect_url
    basic = base64.b64encode(f"{quote_plus(provider['clientId'])}:{quote_plus(provider['clientSecret'])}".encode()).decode()
    in_form = {**form, "client_id": provider["clientId"], "client_secret": provider["clientSecret"]}
    with _within(seconds, OAuth2Error(_TOKEN_FAILED, "the token endpoint took too long")):
        try:
            return _post_token_form(provider["tokenURL"], form, "Basic " + basic)
        except OAuth2Error:
            return _post_token_form(provider["tokenURL"], in_form, "")


def _post_token_form(url, form, authorization):
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    # a redirect would carry code, verifier and secret to an address nobody configured (RFC 9700 4.12)
    status, kind, body = _http_call("POST", url, _TOKEN_FAILED, authorization, headers=headers, data=urlencode(sorted(form.items())),
                                    allow_redirects=False)
    if kind in ("application/x-www-form-urlencoded", "text/plain"):
        token = {name: values[0] for name, values in parse_qs(body.decode(errors="replace")).items()}
    else:
        token = _json_or_fail(body, _TOKEN_FAILED) if status < 300 else {}
    access = token.get("access_token") if isinstance(token, dict) else None
    if status >= 300 or not access or not isinstance(access, str):
        raise OAuth2Error(_TOKEN_FAILED, f"token endpoint: status {status}, {_error_of(body)}")
    return token


def _error_of(body):
    """Return the RFC 6749 5.2 error of an answer for the log; the rest of it may hold secrets."""
    try:
        answer = json.loads(body)
        return ": ".join(str(answer[key])[:200] for key in ("error", "error_description") if key in answer) or "no access token"
    except (ValueError, TypeError, RecursionError):
        return "no readable error"


class _UserCall:
    """One fetch_user: provider config, token answer, the user info and authorised calls. Finish functions may replace info."""

    def __init__(self, provider, token):
        self.provider, self.token, self.info = provider, token, None

    def get(self, url, **options):
        kind = str(self.token.get("token_type") or "Bearer")
        kind = {"bearer": "Bearer", "mac": "MAC", "basic": "Basic"}.get(kind.lower(), kind)
        method = "POST" if "data" in options else "GET"
        status, _, body = _http_call(method, url, _USER_FAILED, f"{kind} {self.token['access_token']}", allow_redirects=method == "GET", **options)
        return status, body


def fetch_user(provider, token, seconds=OAUTH2_SECONDS):
    """Return the user that a token answer stands for; see oauth2_sign_in."""
    call, row = _UserCall(provider, token), PROVIDERS[provider["name"]]
    with _within(seconds, OAuth2Error(_USER_FAILED, "the user info took too long")):
        call.info = (row["profile"] or _fetched_profile)(call)
        return _mapped_user(call, row)


def _fetched_profile(call):
    row = PROVIDERS[call.provider["name"]]
    headers = {name: value.replace("{clientId}", call.provider["clientId"]) for name, value in row["headers"].items()}
    options = {"headers": headers}
    if row["query"]:
        options = {"headers": {"Content-Type": "application/json"}, "data": json.dumps({"query": row["query"]})}
    status, body = call.get(call.provider["userInfoURL"], **options)
    if status >= 400:
        raise OAuth2Error(_USER_FAILED, f"user info: status {status}")
    info = _json_or_fail(body, _USER_FAILED)
    if not isinstance(info, dict):
        raise OAuth2Error(_USER_FAILED, "user info is no JSON object")
    return info


def _mapped_user(call, row):
    info = call.info
    if row["require"]:
        path, wanted = row["require"]
        value = user_info_value(info, path)
        if not (isinstance(value, dict) if wanted is dict else type(value) is type(wanted) and value == wanted):
            raise OAuth2Error(_USER_FAILED, f"user info: {path} is not as required")
    user = {key: user_info_text(info, row[path]) for key, path in
            (("id", "id"), ("name", "name"), ("username", "username"), ("email", "email"), ("avatarURL", "avatar"))}
    if not all(user_info_holds(info, condition) for condition in row["email_if"]):
        user["email"] = ""
    if row["finish"]:
        row["finish"](user, call)
    token = call.token
    return {**user, "accessToken": token["access_token"], "refreshToken": _as_text(token.get("refresh_token")),
            "expiry": _expiry_text(token.get("expires_in")), "rawUser": call.info}


def _expiry_text(seconds):
    try:
        at = time.time() + float(seconds) if seconds else 0
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at)) + ".%03dZ" % (at * 1000 % 1000) if at else ""
    except (TypeError, ValueError, OverflowError, OSError):
        return ""


def apple_client_secret(client_id, team_id, key_id, private_key, seconds):
    """Return the signed client secret that Apple wants instead of a password (ES256; at most six months).

    private_key: PEM text of the .p8 file. Raises OAuth2Error.
    """
    import jwt
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    reason, now = "invalid key: Key must be a PEM encoded PKCS1 or PKCS8 key", int(time.time())
    try:
        key = load_pem_private_key(private_key.strip().encode(), None)
        reason = "key is not a valid ECDSA private key"
        if isinstance(key, ec.EllipticCurvePrivateKey):
            reason = "key is invalid"
            if isinstance(key.curve, ec.SECP256R1):
                claims = {"iss": team_id, "sub": client_id, "aud": [_APPLE_ISSUER], "exp": now + seconds, "iat": now}
                return jwt.encode(claims, key, "ES256", headers={"kid": key_id})
    except (ValueError, TypeError) as error:  # TypeError: the key is encrypted
        raise OAuth2Error(f"Failed to generate client secret. Raw error: \n{reason}.", reason) from error
    raise OAuth2Error(f"Failed to generate client secret. Raw error: \n{reason}.", reason)


# ---- downloads from addresses that a visitor chose
# An avatar address comes from a profile anybody can edit, so the server must not become his hand inside our network (SSRF).
# The name is resolved once, the result checked, and that very address connected to: a second answer of the name server
# (DNS rebinding) is never asked for. Redirects start over. Proxies of the environment are not used, they would resolve themselves.

_FETCH_BYTES = 32 << 20
_FETCH_SECONDS = 10
_FETCH_REDIRECTS = 5
_EMBEDDED_IPV4 = (  # IPv6 ranges that lead to an IPv4 address: (range, bits behind it)
    (ipaddress.ip_network("::/96"), 0), (ipaddress.ip_network("::ffff:0:0/96"), 0), (ipaddress.ip_network("::ffff:0:0:0/96"), 0),
    (ipaddress.ip_network("64:ff9b::/96"), 0), (ipaddress.ip_network("2002::/16"), 80))
_NOT_PUBLIC = tuple(map(ipaddress.ip_network, (  # what ipaddress calls global in some Python versions, or is none of our business
    "192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16", "fec0::/10")))


class FetchError(Exception):
    """A download that failed or was refused."""


def is_public_address(address):
    """Tell whether an IP address (text) belongs to the public Internet, and so does an IPv4 address inside an IPv6 one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6:
        for network, shift in _EMBEDDED_IPV4:
            if ip in network:
                return is_public_address(str(ipaddress.IPv4Address(int(ip) >> shift & 0xFFFFFFFF)))
    if any(ip in network for network in _NOT_PUBLIC):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_loopback or ip.is_link_local or ip.is_unspecified)


def public_addresses(host, port):
    """Return the addresses of a host; FetchError if it has none or any of them is not public."""
    try:
        found = [row[4][0] for row in std_socket.getaddrinfo(host, port, type=std_socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise FetchError(f"cannot resolve {host!r}") from error
    for address in found:
        if not is_public_address(address):
            raise FetchError(f"{host!r} is not a public address")
    if not found:
        raise FetchError(f"cannot resolve {host!r}")
    return found


def safe_fetch(url, max_bytes=_FETCH_BYTES, seconds=_FETCH_SECONDS):
    """Return (data, content type) of a public http(s) address. Raises FetchError; takes at most these bytes and seconds."""
    until = time.monotonic() + seconds
    with _within(seconds, FetchError("the download took too long")):
        for _ in range(_FETCH_REDIRECTS + 1):
            answer = _open_pinned(url, until)
            try:
                target = answer.headers.get("Location") if answer.status in (301, 302, 303, 307, 308) else None
                if target is None:
                    return _read_answer(answer, max_bytes, until)
                url = _joined_url(url, target)
            finally:
                answer.close()
    raise FetchError("too many redirects")


def _joined_url(url, target):
    try:
        return urljoin(url, target)
    except ValueError as error:
        raise FetchError("invalid redirect") from error


def _open_pinned(url, until):
    """Connect to the checked address of the URL's host, ask, and return the answer with its body unread."""
    import certifi
    import urllib3
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError as error:
        raise FetchError("invalid URL") from error
    if parts.scheme not in ("http", "https") or not host or not port:
        raise FetchError("only http and https URLs can be fetched")
    left = max(0.1, until - time.monotonic())
    options = {"timeout": urllib3.Timeout(connect=left, read=left), "retries": False}
    address = public_addresses(host, port)[0]
    if parts.scheme == "https":  # the certificate must be the name's, though we connect to an address
        pool = urllib3.HTTPSConnectionPool(address, port, server_hostname=host, assert_hostname=host, cert_reqs="CERT_REQUIRED",
                                           ca_certs=certifi.where(), **options)
    else:
        pool = urllib3.HTTPConnectionPool(address, port, **options)
    name = f"[{host}]" if ":" in host else host
    headers = {"Host": name if parts.port is None else f"{name}:{port}", "Accept-Encoding": "identity", "User-Agent": "PocketBase"}
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        return pool.urlopen("GET", path, headers=headers, redirect=False, preload_content=False, decode_content=False)
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise FetchError(f"cannot fetch from {host!r}: {type(error).__name__}") from error


def _read_answer(answer, max_bytes, until):
    import urllib3
    if not 200 <= answer.status < 400:
        raise FetchError(f"status {answer.status}")
    if (answer.length_remaining or 0) > max_bytes:
        raise FetchError("the file is too large")
    data = bytearray()
    try:
        while piece := answer.read1(65536):  # one receive at a time, so that a slow sender meets the clock
            data += piece
            if len(data) > max_bytes:
                raise FetchError("the file is too large")
            if time.monotonic() > until:
                raise FetchError("the download took too long")
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise FetchError(f"the download broke off: {type(error).__name__}") from error
    return bytes(data), answer.headers.get("Content-Type", "")


# ============================================================================
#  11. Collections
# ============================================================================
# The schema model: what a collection is, how submitted JSON becomes one, every
# check, and how a change reaches the tables (DDL sync, indexes, SQL views).
#
# A Collection never changes once it is in a Schema, and a Schema is replaced as a
# whole: whoever holds one sees a consistent state, and everything compiled from a
# collection (SQL, encoders, plans) may hang on the object and dies with it.

RULES = {"listRule": "list_rule", "viewRule": "view_rule", "createRule": "create_rule", "updateRule": "update_rule", "deleteRule": "delete_rule"}

_TEMPLATE_SHAPE = {"subject": "text", "body": "text"}
_TOKEN_SHAPE = {"secret": "text", "duration": "int"}
PROVIDER_SHAPE = {"pkce": "bool?", "name": "text", "clientId": "text", "clientSecret": "text", "authURL": "text", "tokenURL": "text",
                  "userInfoURL": "text", "displayName": "text", "extra": "map"}
TOKEN_KINDS = ("authToken", "passwordResetToken", "emailChangeToken", "verificationToken", "fileToken")
TEMPLATE_PATHS = ("authAlert.emailTemplate", "otp.emailTemplate", "verificationTemplate", "resetPasswordTemplate", "confirmEmailChangeTemplate")

#: The options of an auth collection, in their order on disk and in the API.
AUTH_SHAPE = {
    "authRule": "text?", "manageRule": "text?",
    "authAlert": {"enabled": "bool", "emailTemplate": _TEMPLATE_SHAPE},
    "oauth2": {"providers": [PROVIDER_SHAPE], "mappedFields": {"id": "text", "name": "text", "username": "text", "avatarURL": "text"},
               "enabled": "bool"},
    "passwordAuth": {"enabled": "bool", "identityFields": "texts"},
    "mfa": {"enabled": "bool", "duration": "int", "rule": "text"},
    "otp": {"enabled": "bool", "duration": "int", "length": "int", "emailTemplate": _TEMPLATE_SHAPE},
    **dict.fromkeys(TOKEN_KINDS, _TOKEN_SHAPE),
    "verificationTemplate": _TEMPLATE_SHAPE, "resetPasswordTemplate": _TEMPLATE_SHAPE, "confirmEmailChangeTemplate": _TEMPLATE_SHAPE,
}

COLLECTION_SHAPE = {"id": "text", **dict.fromkeys(RULES, "text?"), "name": "text", "type": "text", "fields": "any", "indexes": "texts",
                    "created": "date", "updated": "date", "system": "bool"}

_THANKS = "<p>\n  Thanks,<br/>\n  {APP_NAME} team\n</p>"


def _button_mail(opening, path, label, doubt):
    link = '<a class="btn" href="{APP_URL}/_/#/auth/' + path + '/{TOKEN}" target="_blank" rel="noopener">' + label + "</a>"
    return f"<p>Hello,</p>\n{opening}\n<p>\n  {link}\n</p>\n<p><i>{doubt}</i></p>\n{_THANKS}" if doubt else ""


AUTH_DEFAULTS = {
    "authRule": "",
    "authAlert": {"enabled": True, "emailTemplate": {
        "subject": "Login from a new location",
        "body": "<p>Hello,</p>\n<p>We noticed a login to your {APP_NAME} account from a new location:</p>\n<p><em>{ALERT_INFO}</em></p>\n"
                "<p><strong>If this wasn't you, you should immediately change your {APP_NAME} account password to revoke access from all other "
                "locations.</strong></p>\n<p>If this was you, you may disregard this email.</p>\n" + _THANKS}},
    "passwordAuth": {"enabled": True, "identityFields": ["email"]},
    "mfa": {"duration": 600},
    "otp": {"duration": 180, "length": 8, "emailTemplate": {
        "subject": "OTP for {APP_NAME}",
        "body": "<p>Hello,</p>\n<p>Your one-time password is: <strong>{OTP}</strong></p>\n"
                "<p><i>If you didn't ask for the one-time password, you can ignore this email.</i></p>\n" + _THANKS}},
    "authToken": {"duration": 432000}, "passwordResetToken": {"duration": 1800}, "emailChangeToken": {"duration": 1800},
    "verificationToken": {"duration": 86400}, "fileToken": {"duration": 180},
    "verificationTemplate": {"subject": "Verify your {APP_NAME} email", "body": _button_mail(
        "<p>Thank you for joining us at {APP_NAME}.</p>\n<p>Click on the button below to verify your email address.</p>",
        "confirm-verification", "Verify", "If you didn't recently register, please ignore this email.")},
    "resetPasswordTemplate": {"subject": "Reset your {APP_NAME} password", "body": _button_mail(
        "<p>Click on the button below to reset your password.</p>",
        "confirm-password-reset", "Reset password", "If you didn't ask to reset your password, please ignore this email.")},
    "confirmEmailChangeTemplate": {"subject": "Confirm your {APP_NAME} new email address", "body": _button_mail(
        "<p>Click on the button below to confirm your new email address.</p>",
        "confirm-email-change", "Confirm new email", "If you didn't ask to change your email address, please ignore this email.")},
}

ID_FIELD = {"autogeneratePattern": "[a-z0-9]{15}", "id": "text3208210256", "max": 15, "min": 15, "name": "id", "pattern": DEFAULT_ID_PATTERN,
            "primaryKey": True, "required": True, "system": True, "type": "text"}

#: System fields of auth collections, in the order in which missing ones are appended.
AUTH_FIELDS = (
    {"hidden": True, "id": "password901924565", "min": 8, "name": "password", "required": True, "system": True, "type": "password"},
    {"autogeneratePattern": "[a-zA-Z0-9]{50}", "hidden": True, "id": "text2504183744", "max": 60, "min": 30, "name": "tokenKey", "required": True,
     "system": True, "type": "text"},
    {"id": "email3885137012", "name": "email", "required": True, "system": True, "type": "email"},
    {"id": "bool1547992806", "name": "emailVisibility", "system": True, "type": "bool"},
    {"id": "bool256245529", "name": "verified", "system": True, "type": "bool"},
)
#: Flags forced on system fields at every save.
FORCED_FLAGS = {
    "id": {"system": True, "required": True, "primary_key": True, "hidden": False},
    "password": {"system": True, "hidden": True, "required": True},
    "tokenKey": {"system": True, "hidden": True, "required": True},
    "email": {"system": True, "hidden": False},
    "emailVisibility": {"system": True},
    "verified": {"system": True},
}
SUPERUSERS = "_superusers"


class Collection:
    """One collection. `options`: the auth options, `{"viewQuery": ...}` of a view, or {}."""

    def __init__(self, id="", name="", type="base", fields=(), indexes=(), rules=None, created="", updated="", system=False, options=None):
        self.id, self.name, self.type, self.system = id, name, type, system
        self.fields, self.indexes = list(fields), list(indexes)
        for key, attribute in RULES.items():
            setattr(self, attribute, (rules or {}).get(key))
        self.created, self.updated = created, updated
        self.options = options if options is not None else default_options(type)
        self.ready()

    def ready(self):
        """Works out what follows from the fields; call after changing them."""
        self.by_name = {field.name: field for field in self.fields}
        self.is_auth = self.type == "auth"
        self.is_view = self.type == "view"
        self.compiled = {}              # what other chapters derive from this state: SQL, encoders
        return self

    def field(self, name):
        return self.by_name.get(name)

    def rules(self):
        return {key: getattr(self, attribute) for key, attribute in RULES.items()}

    @property
    def auth_rule(self):
        return self.options.get("authRule")

    @property
    def manage_rule(self):
        return self.options.get("manageRule")

    @property
    def file_fields(self):
        return [f for f in self.fields if f.type == "file"]

    def unique_index(self, name):
        """The single-column UNIQUE index over a field, or None."""
        for text in self.indexes:
            index = parse_index(text)
            if index and index.unique and len(index.columns) == 1 and index.columns[0].name.lower() == name.lower():
                return index
        return None

    def has_unique_index(self, name):
        cache = self.compiled.setdefault("unique", {})
        if name not in cache:
            cache[name] = self.unique_index(name) is not None
        return cache[name]

    def copy(self):
        twin = Collection(self.id, self.name, self.type, [field_from_json(f.as_json()) for f in self.fields], self.indexes, self.rules(),
                          self.created, self.updated, self.system, copy.deepcopy(self.options))
        return twin

    def as_json(self):
        """What the API shows: secrets left out."""
        out = {"id": self.id, **self.rules(), "name": self.name, "type": self.type, "fields": [f.as_json() for f in self.fields],
               "indexes": self.indexes, "created": self.created, "updated": self.updated, "system": self.system}
        options = copy.deepcopy(self.options)
        if self.is_auth:
            for kind in TOKEN_KINDS:
                options[kind].pop("secret", None)
            for provider in options["oauth2"]["providers"]:
                provider.pop("clientSecret", None)
        return out | options

    def stored_options(self):
        """The `options` column: like the API's, with the secrets (empty ones left out)."""
        options = copy.deepcopy(self.options)
        if self.is_auth:
            for holder in [options[kind] for kind in TOKEN_KINDS]:
                if not holder["secret"]:
                    del holder["secret"]
            for provider in options["oauth2"]["providers"]:
                if not provider["clientSecret"]:
                    del provider["clientSecret"]
        return options

    def __repr__(self):
        return f"<{self.type} collection {self.name}>"


def default_options(type):
    if type == "auth":
        options = fit_object(AUTH_SHAPE, copy.deepcopy(AUTH_DEFAULTS))
        options["authAlert"]["enabled"] = True
        for kind in TOKEN_KINDS:
            options[kind]["secret"] = random_text(50, ALPHANUMERIC)
        return options
    return {"viewQuery": ""} if type == "view" else {}


class Schema:
    """All collections of a moment, in row order; `version` grows with every change."""

    _versions = itertools.count(1)

    def __init__(self, collections_):
        self.all = list(collections_)
        self.version = next(Schema._versions)
        self._by_id = {c.id: c for c in self.all}
        self._by_name = {c.name.lower(): c for c in self.all}

    def find(self, name_or_id):
        """By id, else by name in any letter case; None when there is none."""
        return self._by_id.get(name_or_id) or self._by_name.get(name_or_id.lower())

    def find_exact(self, id):
        return self._by_id.get(id)

    def referencing(self, collection):
        """(collection, relation field) pairs that point at a collection, sorted by collection name."""
        key = "referencing"
        if key not in collection.compiled:
            pairs = ((c, f) for c in sorted(self.all, key=lambda c: c.name) for f in c.fields)
            collection.compiled[key] = [(c, f) for c, f in pairs if f.type == "relation" and f.collection_id == collection.id]
        return collection.compiled[key]

    def with_changes(self, *changed, removed=()):
        """A Schema with some collections replaced, added or removed. The others are kept, what was compiled from them is not."""
        new = {c.id: c for c in changed}
        kept = [new.pop(c.id, None) or c.ready() for c in self.all if c.id not in removed]
        return Schema(kept + list(new.values()))


def load_schema(db):
    """The Schema of the `_collections` table; PlainError for a row that cannot be understood."""
    rows = db.read("SELECT `id`,`name`,`type`,`fields`,`indexes`,`listRule`,`viewRule`,`createRule`,`updateRule`,`deleteRule`,`created`,`updated`,"
                   "`system`,`options` FROM `_collections` ORDER BY `_rowid_`")
    return Schema(_collection_from_row(row) for row in rows)


def _collection_from_row(row):
    id, name, type, fields, indexes, *rules, created, updated, system, options = row
    try:
        loaded = [field_from_json(_without_nulls(f)) for f in _stored_json(fields, [])]
        shape = AUTH_SHAPE if type == "auth" else {"viewQuery": "text"} if type == "view" else {}
        options = fit_object(shape, _without_nulls(_stored_json(options, {})))
    except (ValueError, KeyError) as error:
        raise PlainError(f"failed to load collection {name}: {error}") from None
    return Collection(id, name, type, loaded, _stored_json(indexes, []), dict(zip(RULES, rules)), read_date(created), read_date(updated),
                      bool(system), options)


def _stored_json(text, empty):
    return (json.loads(text) if text else None) or empty


def _without_nulls(data):
    """Old versions wrote null for empty lists; absent means the zero value as well."""
    if isinstance(data, dict):
        return {k: _without_nulls(v) for k, v in data.items() if v is not None}
    return [_without_nulls(v) for v in data] if isinstance(data, list) else data


# ---- from submitted JSON to a collection

INVALID_TYPE_DATA = "Failed to load the collection type data due to invalid formatting."
INVALID_DATA = "Failed to load the submitted data due to invalid formatting."


def collection_from_data(data, old=None):
    """A Collection of a request body, merged over `old`; ApiError 400 for what cannot be read."""
    try:
        head = fit_object({"type": "text", "name": "text"}, data, fold=True)
    except ShapeError as error:
        raise bad_request(INVALID_DATA if old else INVALID_TYPE_DATA, raw=str(error)) from None
    collection = old.copy() if old else Collection(type=head["type"] or "base")
    if not old and collection.type not in ("base", "auth", "view"):
        collection.options = {}
    try:
        return _merge_collection(collection, data)
    except ShapeError as error:
        raise bad_request(INVALID_DATA, raw=str(error)) from None


def _merge_collection(collection, data):
    current = collection.as_json() | {"fields": None}
    form = fit_object(COLLECTION_SHAPE, data, current, fold=True)
    collection.id, collection.name, collection.system = form["id"], form["name"], form["system"]
    collection.type = form["type"] or "base" if collection.id == "" and not collection.created else form["type"] or collection.type
    collection.created, collection.indexes = form["created"], form["indexes"]
    for rule, attribute in RULES.items():
        setattr(collection, attribute, form[rule])
    folded = {key.lower(): value for key, value in data.items()}
    if "fields" in folded and not collection.type == "view":
        collection.fields = field_list([] if folded["fields"] is None else folded["fields"])
    shape = AUTH_SHAPE if collection.type == "auth" else {"viewQuery": "text"} if collection.type == "view" else {}
    if set(shape) != set(collection.options):          # another type was asked for: the check refuses it
        collection.options = zero_of(shape)
    if shape:
        collection.options = _merge_options(shape, collection.options, data)
    return collection.ready()


def _merge_options(shape, current, data):
    """Deep merge; OAuth2 providers are matched by name, so that a secret survives an edit that leaves it out."""
    merged = fit_object(shape, data, current, fold=True)
    if "oauth2" in shape:
        known = {p["name"]: p for p in current["oauth2"]["providers"]}
        sent = next((v for k, v in data.items() if k.lower() == "oauth2"), None) or {}
        providers = next((v for k, v in sent.items() if k.lower() == "providers"), None)
        if providers is not None:
            merged["oauth2"]["providers"] = [fit_object(PROVIDER_SHAPE, p, known.get(p.get("name")), fold=True) for p in (p or {} for p in providers)]
    return merged


def field_list(items):
    """A fields list as it is built one by one: same id or (without an id) same name replaces in place."""
    if not isinstance(items, list):
        raise ShapeError("fields must be a list")
    fields = []
    for item in items:
        field = field_from_json(item)
        place = next((i for i, f in enumerate(fields) if (f.id == field.id if field.id else f.name == field.name)), None)
        if not field.id:
            field.id = fields[place].id if place is not None else free_field_id(field, fields)
        if place is None:
            fields.append(field)
        else:
            fields[place] = field
    return fields


def free_field_id(field, fields):
    """`type + crc32(name)`, with 2, 3, ... appended while it is taken."""
    taken = {f.id for f in fields}
    base = field.type + checksum(field.name)
    return next(id for id in itertools.chain([base], (f"{base}{n}" for n in itertools.count(2))) if id not in taken)


def complete_collection(collection, old, schema, now):
    """What a save fills in: id, dates, missing system fields and indexes, forced flags, secrets, index table names."""
    provisional = collection.id
    if not collection.id:
        base = "pbc_" + checksum(collection.type + collection.name)
        candidates = itertools.chain([base], (f"{base}{n}" for n in itertools.count(2)))
        collection.id = next(id for id in candidates if schema.find_exact(id) is None)
    collection.created = old and collection.created or now
    collection.updated = now
    if not collection.is_view:
        _complete_fields(collection)
    if collection.is_auth:
        _complete_auth(collection, old)
    _complete_indexes(collection, provisional)
    return collection.ready()


def _complete_fields(collection):
    fields = collection.fields
    for number, wanted in enumerate((ID_FIELD, *(AUTH_FIELDS if collection.is_auth else ()))):
        place = next((i for i, f in enumerate(fields) if f.name == wanted["name"]), None)
        if place is not None and fields[place].type == wanted["type"]:
            continue
        default = field_from_json(wanted)
        if place is not None and number:            # a wrong type under a system name gives way but keeps its id
            default.id = fields[place].id
            fields[place] = default
            continue
        if any(f.id == default.id for f in fields):
            default.id = free_field_id(default, fields)
        fields.insert(0 if number == 0 else len(fields), default)
    for field in fields:
        if field.name == "id" or collection.is_auth:
            for flag, value in FORCED_FLAGS.get(field.name, {}).items():
                setattr(field, flag, value)
        if field.name == "id" and field.type == "text" and not field.pattern:
            field.pattern = DEFAULT_ID_PATTERN


def _complete_auth(collection, old):
    options = collection.options
    if old and (old.auth_rule or "") != (collection.auth_rule or ""):
        options["authToken"]["secret"] = random_text(50, ALPHANUMERIC)      # every issued token dies with the rule it was issued under
    mapped = options["oauth2"]["mappedFields"]
    names = {f.name for f in collection.fields}
    for key, name in mapped.items():
        if name not in names:
            mapped[key] = ""
    if collection.name == SUPERUSERS:
        options["oauth2"] = zero_of(AUTH_SHAPE["oauth2"])
        options["passwordAuth"]["enabled"] = True
        if options["otp"]["enabled"]:
            options["mfa"]["enabled"] = True


def _complete_indexes(collection, provisional):
    if collection.is_view:
        return
    for place, text in enumerate(collection.indexes):
        index = parse_index(text)
        if index and index.table != collection.name:
            index.table = collection.name
            collection.indexes[place] = index.sql()
    if not collection.is_auth:
        return
    for name, where in (("tokenKey", ""), ("email", " WHERE `email` != ''")):
        if collection.unique_index(name) is None:
            index_name = f"idx_{name}_{collection.id}"[:64]
            collection.indexes.append(f"CREATE UNIQUE INDEX {quote_name(index_name)} ON {quote_name(collection.name)} (`{name}`){where}")


def scaffold(type):
    """What the dashboard starts a new collection from."""
    collection = Collection(type=type)
    if type != "view":
        _complete_fields(collection)
    out = collection.as_json()
    if type == "auth":
        mark = random_text(10)
        out["indexes"] = [f"CREATE UNIQUE INDEX `idx_tokenKey_{mark}` ON `` (`tokenKey`)",
                          f"CREATE UNIQUE INDEX `idx_email_{mark}` ON `` (`email`) WHERE `email` != ''"]
    return out


# ---- indexes

class IndexColumn:
    __slots__ = ("name", "collate", "sort")

    def __init__(self, name, collate="", sort=""):
        self.name, self.collate, self.sort = name, collate, sort

    def sql(self):
        name = self.name if "(" in self.name or " " in self.name else quote_name(self.name)
        return name + (f" COLLATE {self.collate}" if self.collate else "") + (f" {self.sort}" if self.sort else "")


class Index:
    """A parsed CREATE INDEX; `sql()` is its canonical text."""

    __slots__ = ("unique", "optional", "schema", "name", "table", "columns", "where")

    def sql(self):
        parts = [c.sql() for c in self.columns]
        inside = parts[0] if len(parts) == 1 else "\n  " + ",\n  ".join(parts) + "\n"
        return ("CREATE " + ("UNIQUE " if self.unique else "") + "INDEX " + ("IF NOT EXISTS " if self.optional else "")
                + (quote_name(self.schema) + "." if self.schema else "") + f"{quote_name(self.name)} ON {quote_name(self.table)} ({inside})"
                + (f" WHERE {self.where}" if self.where else ""))

    def definition(self):
        """The canonical text apart from the name: equal for two indexes that do the same."""
        twin = Index()
        twin.unique, twin.optional, twin.schema, twin.name = self.unique, False, "", ""
        twin.table, twin.columns, twin.where = self.table.lower(), self.columns, self.where
        return twin.sql()


_INDEX_HEAD = re.compile(r"^\s*create\s+(unique\s+)?index\s+(if\s+not\s+exists\s+)?(\S*)\s+on\s+([^\s(]*)\s*\(", re.I)
_INDEX_COLUMN = re.compile(r"^(.+?)(?:\s+collate\s+([\w]+))?(?:\s+(asc|desc))?$", re.I | re.S)


@functools.lru_cache(maxsize=2000)
def _parse_index(text):
    head = _INDEX_HEAD.match(text)
    if not head:
        return None
    end = _closing_paren(text, head.end())
    where = end is not None and re.fullmatch(r"\s*(?:where\s+(.+?))?\s*;?\s*", text[end + 1:], re.I | re.S)
    if not where:
        return None
    index = Index()
    schema, _, name = head[3].rpartition(".")
    index.unique, index.optional = bool(head[1]), bool(head[2])
    index.schema, index.name, index.table = (part.strip("`\"'[]") for part in (schema, name, head[4]))
    index.where = (where[1] or "").strip()
    index.columns = [_index_column(part) for part in split_outside(text[head.end():end], ",") if part.strip()]
    return index if index.name and index.columns and all(index.columns) else None


def _index_column(text):
    match = _INDEX_COLUMN.match(text.strip())
    if not match:
        return None
    name = match[1].strip()
    return IndexColumn(name if "(" in name else name.strip("`\"'[]"), match[2] or "", (match[3] or "").upper())


def parse_index(text):
    """`create index a on t (b)` -> Index (a copy that may be changed), or None when it is not one."""
    index = _parse_index(text)
    return copy.copy(index) if index else None


def _closing_paren(text, start):
    depth, quote = 1, ""
    for place in range(start, len(text)):
        character = text[place]
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"`":
            quote = character
        elif character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
            if not depth:
                return place
    return None


def split_outside(text, separators):
    """Splits at any of the separator characters that stand outside of quotes and parentheses."""
    parts, current, depth, quote = [], "", 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"`":
            quote = character
        elif character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
        elif character in separators and not depth:
            parts.append(current)
            current = ""
            continue
        current += character
    return [*parts, current]


# ---- checks

COLLECTION_NAME_CHECKS = (required, length(1, 255), matches(r"\A[A-Za-z0-9_]+\Z"),
                          satisfies(lambda v: "_via_" not in v.lower(), "validation_found_via"))


def check_collection(collection, old, schema, db):
    """Nested FieldErrors of a collection's new state; empty when it may be saved."""
    errors = {}
    for part in (_check_identity, _check_fields, _check_rules, _check_indexes, _check_auth_options):
        for path, error in part(collection, old, schema, db).items():
            put_error(errors, path, error) if isinstance(error, FieldError) else errors.setdefault(path, error)
    return errors


def _check_identity(collection, old, schema, db):
    errors = {}
    error = first_error(collection.id, length(1, 100), matches(r"\A\w+\Z"))
    if not error and not old and schema.find_exact(collection.id):
        error = FieldError("validation_invalid_or_existing_id")
    if error:
        errors["id"] = error
    if old and collection.system != old.system:
        errors["system"] = FieldError("validation_collection_system_flag_change")
    if collection.type not in ("base", "auth", "view"):
        errors["type"] = FieldError("validation_in_invalid")
    elif old and collection.type != old.type:
        errors["type"] = FieldError("validation_collection_type_change")
    error = first_error(collection.name, *COLLECTION_NAME_CHECKS) or _check_name_use(collection, old, schema, db)
    if error:
        errors["name"] = error
    return errors


def _check_name_use(collection, old, schema, db):
    if old and old.system and old.name != collection.name:
        return FieldError("validation_collection_system_name_change")
    other = schema.find(collection.name)
    if other is not None and other.id != collection.id:
        same_name = other.name.lower() == collection.name.lower()
        return FieldError("validation_collection_name_exists" if same_name else "validation_collection_name_id_duplicate")
    renamed = not old or old.name.lower() != collection.name.lower()
    if renamed and db.read("SELECT 1 FROM sqlite_master WHERE type IN ('table','view') AND lower(name)=lower(?)", (collection.name,)):
        return FieldError("validation_collection_name_invalid")
    return None


def _check_fields(collection, old, schema, db):
    fields = collection.fields
    if not fields:
        return {"fields": FieldError("validation_required")}
    errors = (_check_duplicates(fields) or _check_kept_system_fields(collection, old)
              or _check_system_fields(collection) or _check_field_changes(collection, old))
    if errors:
        return errors
    if collection.is_auth:
        reserved = [i for i, field in enumerate(fields) if field.name in ("passwordConfirm", "oldPassword")]
        if reserved:
            return {f"fields.{index}.name": FieldError("validation_reserved_field_name") for index in reserved}
    for index, field in enumerate(fields):
        for name, error in (_check_common_options(field) | field.check_options(collection, schema)).items():
            errors.setdefault(f"fields.{index}.{name}", error)
    return errors


def _check_duplicates(fields):
    ids, names = set(), set()
    for index, field in enumerate(fields):
        if field.id in ids:
            return {f"fields.{index}.id": FieldError("validation_duplicated_field_id", f'Duplicated or invalid field id "{field.id}".')}
        if field.name.lower() in names:
            return {f"fields.{index}.name": FieldError("validation_duplicated_field_name", fieldName=field.name)}
        ids.add(field.id)
        names.add(field.name.lower())
    return {}


def _check_system_fields(collection):
    id_field = collection.field("id")
    if id_field is None or id_field.type != "text" or not id_field.primary_key:
        return {"fields": FieldError("validation_missing_primary_key")}
    for wanted in AUTH_FIELDS if collection.is_auth else ():
        field = collection.field(wanted["name"])
        if field is None or field.type != wanted["type"]:
            return {"fields": FieldError(f"validation_missing_{wanted['name']}_field", f'System "{wanted["name"]}" field is required.')}
        if wanted["name"] in ("password", "tokenKey") and not (field.system and field.hidden):
            return {f"fields.{field.name}": FieldError("validation_must_be_system_and_hidden")}
        if not field.system:
            return {f"fields.{field.name}": FieldError("validation_must_be_system")}
    return {}


def _check_kept_system_fields(collection, old):
    new = {f.id: f for f in collection.fields}
    for field in old.fields if old and not collection.is_view else ():
        if field.system and (field.id not in new or new[field.id].name != field.name):
            return {"fields": FieldError("validation_system_field_change")}
    return {}


def _check_field_changes(collection, old):
    if not old or collection.is_view:
        return {}
    before = {f.id: f for f in old.fields}
    for index, field in enumerate(collection.fields):
        earlier = before.get(field.id)
        if earlier is None:
            continue
        if earlier.type != field.type:
            return {f"fields.{index}": FieldError("validation_field_type_change")}
        if field.type == "autodate" and earlier.system:
            for flag in ("onCreate", "onUpdate"):
                if getattr(field, attribute_name(flag)) != getattr(earlier, attribute_name(flag)):
                    return {f"fields.{index}.{flag}": FieldError("validation_values_mismatch")}
    return {}


def _check_common_options(field):
    name_checks = (required, length(1, 100), matches(r"\A[A-Za-z0-9_]+\Z"),
                   satisfies(lambda v: v not in RESERVED_FIELD_NAMES, "validation_not_in_invalid"),
                   satisfies(lambda v: "_via_" not in v.lower(), "validation_found_via"))
    errors = collect_errors({"id": field.id, "name": field.name}, {"id": (required, length(1, 100)), "name": name_checks})
    error = field.type != "autodate" and first_error(field.help, length(1, 300))
    return errors | ({"help": error} if error else {})


def _check_rules(collection, old, schema, db):
    errors = {}
    wider = schema.with_changes(collection)
    rules = {**collection.rules(), **({"authRule": collection.auth_rule, "manageRule": collection.manage_rule} if collection.is_auth else {})}
    if collection.is_auth and collection.options["mfa"]["enabled"] and _enough_for_mfa(collection):
        rules["mfa.rule"] = collection.options["mfa"]["rule"]
    earlier = old and {**old.rules(), "authRule": old.auth_rule, "manageRule": old.manage_rule, "mfa.rule": old.options.get("mfa", {}).get("rule")}
    for path, rule in rules.items():
        if path == "manageRule" and rule == "":
            errors[path] = FieldError("validation_nil_or_not_empty_required")
        elif collection.is_view and path in ("createRule", "updateRule", "deleteRule"):
            if rule is not None:
                errors[path] = FieldError("validation_nil")
        elif old and old.system and rule != earlier[path]:
            errors[path] = FieldError("validation_collection_system_rule_change")
        elif rule:
            error = _rule_error(wider, collection, rule)
            if error:
                errors[path] = error
    return errors


def _rule_error(schema, collection, rule):
    try:
        check_rule(schema, collection, rule)
    except ValueError as error:
        return FieldError("validation_invalid_rule", f"Invalid rule. Raw error: {error}")
    return None


def _check_indexes(collection, old, schema, db):
    if collection.is_view:
        return {"indexes": FieldError("validation_indexes_not_supported")} if collection.indexes else {}
    names, definitions = set(), set()
    for place, text in enumerate(collection.indexes):
        index = parse_index(text)
        if index is None:
            return {f"indexes.{place}": FieldError("validation_invalid_index_expression")}
        error = None
        if index.name.lower() in names:
            error = FieldError("validation_duplicated_index_name")
        elif index.definition() in definitions:
            error = FieldError("validation_duplicated_index_definition")
        else:
            error = _check_index_owner(index, collection, schema)
        if error:
            return {f"indexes.{place}": error}
        names.add(index.name.lower())
        definitions.add(index.definition())
    return _check_required_indexes(collection, old)


def _check_index_owner(index, collection, schema):
    for other in schema.all:
        if other.id == collection.id:
            continue
        for text in other.indexes:
            taken = parse_index(text)
            if taken and taken.name.lower() == index.name.lower():
                return FieldError("validation_existing_index_name", usedTableName=other.name)
    return None


def _check_required_indexes(collection, old):
    """Unique indexes over system fields must survive, and auth collections need theirs."""
    if old:
        have = [_unique_columns(text) for text in collection.indexes]
        for text in old.indexes:
            columns = _unique_columns(text)
            system = [c for c in columns or () if (f := old.field(c)) is not None and f.system]
            if system and columns not in have:
                return {"indexes": FieldError("validation_invalid_unique_system_field_index", fieldName=system[0])}
    for name in ("tokenKey", "email") if collection.is_auth else ():
        if collection.unique_index(name) is None:
            return {"indexes": FieldError("validation_missing_required_unique_index", fieldName=name)}
    return {}


def _unique_columns(text):
    index = parse_index(text)
    return [c.name for c in index.columns] if index and index.unique else None


AUTH_OPTION_CHECKS = {
    **{f"{kind}.secret": (required, length(30, 255)) for kind in TOKEN_KINDS},
    **{f"{kind}.duration": (required, at_least(10), at_most(94670856)) for kind in TOKEN_KINDS},
    **{f"{path}.{part}": (required,) for path in TEMPLATE_PATHS for part in ("subject", "body")},
}
OTP_CHECKS = {"otp.duration": (required, at_least(10), at_most(86400)), "otp.length": (required, at_least(4))}
MFA_CHECKS = {"mfa.duration": (required, at_least(10), at_most(86400))}
PROVIDER_CHECKS = {"name": (required,), "clientId": (required,), "clientSecret": (required,),
                   **{url: (satisfies(lambda v: is_url(v), "validation_is_url"),) for url in ("authURL", "tokenURL", "userInfoURL")}}


def _check_auth_options(collection, old, schema, db):
    if not collection.is_auth:
        return {}
    options = collection.options
    errors = collect_errors(options, AUTH_OPTION_CHECKS)
    if options["otp"]["enabled"]:
        errors = _merged(errors, collect_errors(options, OTP_CHECKS))
    if options["mfa"]["enabled"]:
        errors = _merged(errors, collect_errors(options, MFA_CHECKS))
    if options["oauth2"]["enabled"]:
        _check_providers(options["oauth2"]["providers"], errors)
    names = options["passwordAuth"]["identityFields"]
    if options["passwordAuth"]["enabled"] and not all(names or [""]):
        put_error(errors, "passwordAuth.identityFields", FieldError("validation_required"))
    return errors or _check_auth_together(collection)


def _merged(errors, more):
    for path, error in more.items():
        if isinstance(error, dict):
            errors[path] = _merged(errors.get(path, {}), error)
        else:
            errors.setdefault(path, error)
    return errors


def _check_providers(providers, errors):
    names = set()
    for place, provider in enumerate(providers):
        found = collect_errors(provider, PROVIDER_CHECKS)
        name = provider["name"]
        if name and name not in PROVIDERS:
            found["name"] = FieldError("validation_missing_provider", name=name)
        elif name in names:
            found["name"] = FieldError("validation_duplicated_provider", name=name)
        names.add(name)
        for key, error in found.items():
            put_error(errors, f"oauth2.providers.{place}.{key}", error)


def _enough_for_mfa(collection):
    return sum(collection.options[kind]["enabled"] for kind in ("passwordAuth", "oauth2", "otp")) > 1


def _check_auth_together(collection):
    options, errors = collection.options, {}
    if options["mfa"]["enabled"] and not _enough_for_mfa(collection):
        put_error(errors, "mfa.enabled", FieldError("validation_mfa_not_enough_auths"))
    for name in options["passwordAuth"]["identityFields"] if options["passwordAuth"]["enabled"] else ():
        if collection.field(name) is None:
            put_error(errors, "passwordAuth.identityFields", FieldError("validation_missing_field", fieldName=name))
        elif collection.unique_index(name) is None:
            put_error(errors, "passwordAuth.identityFields", FieldError("validation_missing_unique_constraint", fieldName=name))
    return errors


# ---- from a collection to the database

def save_collection_row(tx, collection, is_new):
    values = (collection.system, collection.type, collection.name, to_json([f.as_json() for f in collection.fields]), to_json(collection.indexes),
              *collection.rules().values(), to_json(collection.stored_options()), collection.created, collection.updated)
    if is_new:
        tx.write("INSERT INTO `_collections` (`system`,`type`,`name`,`fields`,`indexes`,"
                 "`listRule`,`viewRule`,`createRule`,`updateRule`,`deleteRule`,`options`,`created`,`updated`,`id`) "
                 "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)", (*values, collection.id))
    else:
        tx.write("UPDATE `_collections` SET `system`=?,`type`=?,`name`=?,`fields`=?,`indexes`=?,"
                 "`listRule`=?,`viewRule`=?,`createRule`=?,`updateRule`=?,`deleteRule`=?,`options`=?,`created`=?,`updated`=? "
                 "WHERE `id`=?", (*values, collection.id))


def run_ddl(tx, sql, what=""):
    """A schema statement; what SQLite refuses becomes a PlainError that begins with `what`."""
    try:
        tx.heavy(sql)
    except sqlite3.Error as error:
        raise PlainError(what + sqlite_message(error)) from None


def sync_table(tx, collection, old):
    """Brings the collection's table (or SQL view) to its new state; data stays. Raises PlainError or ApiError (indexes)."""
    tx.touch(collection.name, *([old.name] if old else []))
    if collection.is_view:
        return sync_view(tx, collection, old)
    exists = old and tx.read("SELECT 1 FROM sqlite_master WHERE type='table' AND lower(name)=lower(?)", (old.name,))
    if not exists:
        create_table(tx, collection)
        return create_indexes(tx, collection)
    same = (old.name.lower() == collection.name.lower() and old.indexes == collection.indexes
            and [f.as_json() for f in old.fields] == [f.as_json() for f in collection.fields])
    if same:
        return None
    drop_indexes(tx, old)
    if old.name.lower() != collection.name.lower():
        run_ddl(tx, f"ALTER TABLE {quote_name(old.name)} RENAME TO {quote_name(collection.name)}")
    _sync_columns(tx, collection, old)
    return create_indexes(tx, collection)


def create_table(tx, collection):
    columns = ", ".join(f"{quote_name(f.name)} {f.column_sql()}" for f in sorted(collection.fields, key=lambda f: f.name))
    run_ddl(tx, f"CREATE TABLE {quote_name(collection.name)} ({columns})")


def drop_indexes(tx, collection):
    for text in collection.indexes:
        index = parse_index(text)
        if index:
            run_ddl(tx, f"DROP INDEX IF EXISTS {quote_name(index.name)}")


def create_indexes(tx, collection):
    errors = {}
    for place, text in enumerate(collection.indexes):
        index = parse_index(text)
        try:
            run_ddl(tx, index.sql())
        except PlainError as error:
            errors[str(place)] = FieldError("validation_invalid_index_expression", f"Failed to create index {index.name} - {error}.")
    if errors:
        raise ApiError(400, "", {"indexes": errors})


def _sync_columns(tx, collection, old):
    """Columns dropped, added and renamed over temporary names, so that names may be swapped; then single <-> multiple."""
    table = quote_name(collection.name)
    before = {f.id: f for f in old.fields}
    after = {f.id: f for f in collection.fields}
    for id, field in before.items():
        if id not in after:
            run_ddl(tx, f"ALTER TABLE {table} DROP COLUMN {quote_name(field.name)}", f"failed to drop column {field.name} - ")
    pending, converted = [], []
    for id, field in after.items():
        earlier = before.get(id)
        temporary = field.name + random_text(5)
        if earlier is None:
            run_ddl(tx, f"ALTER TABLE {table} ADD COLUMN {quote_name(temporary)} {field.column_sql()}", f"failed to add column {field.name} - ")
        elif earlier.name != field.name:
            run_ddl(tx, f"ALTER TABLE {table} RENAME COLUMN {quote_name(earlier.name)} TO {quote_name(temporary)}",
                    f"failed to rename column {earlier.name} - ")
        if earlier is None or earlier.name != field.name:
            pending.append((temporary, field.name))
        if earlier is not None and earlier.listed and earlier.multiple != field.multiple:
            converted.append(field)
    for temporary, name in pending:
        run_ddl(tx, f"ALTER TABLE {table} RENAME COLUMN {quote_name(temporary)} TO {quote_name(name)}", f"failed to rename column {name} - ")
    if converted:
        _convert_columns(tx, table, converted)


#: stored value -> stored value when a select, relation or file field changes between single and multiple.
_TO_MULTIPLE = ("CASE WHEN coalesce({c}, '') = '' THEN '[]' WHEN json_valid({c}) AND json_type({c}) = 'array' THEN {c} ELSE json_array({c}) END")
_TO_SINGLE = ("CASE WHEN coalesce({c}, '[]') = '[]' THEN '' WHEN json_valid({c}) AND json_type({c}) = 'array' "
              "THEN coalesce(json_extract({c}, '$[#-1]'), '') ELSE {c} END")


def _convert_columns(tx, table, fields):
    views = tx.read("SELECT name, sql FROM sqlite_master WHERE type='view'")
    for name, _ in views:
        run_ddl(tx, f"DROP VIEW {quote_name(name)}")
    for field in fields:
        name, away = quote_name(field.name), quote_name("_" + field.name + random_text(5))
        run_ddl(tx, f"ALTER TABLE {table} RENAME COLUMN {name} TO {away}")
        run_ddl(tx, f"ALTER TABLE {table} ADD COLUMN {name} {field.column_sql()}")
        run_ddl(tx, f"UPDATE {table} SET {name} = {(_TO_MULTIPLE if field.multiple else _TO_SINGLE).format(c=away)}")
        run_ddl(tx, f"ALTER TABLE {table} DROP COLUMN {away}")
    for _, sql in views:
        run_ddl(tx, sql)


def drop_table(tx, collection):
    run_ddl(tx, f"DROP {'VIEW' if collection.is_view else 'TABLE'} IF EXISTS {quote_name(collection.name)}")
    tx.touch(collection.name)


# ---- views

def sync_view(tx, collection, old):
    if old:
        drop_table(tx, old)
    create_view(tx, collection.name, collection.options["viewQuery"])


def create_view(tx, name, query):
    """The SQL view of a query; an `id` that SQLite does not know as TEXT is cast."""
    query = query.strip(" \t\r\n;")
    if "--" in query.rpartition("\n")[2]:
        query += "\n"                       # a comment in the last line must not swallow the parenthesis
    run_ddl(tx, f"CREATE VIEW {quote_name(name)} AS SELECT * FROM ({query})")
    try:
        columns = tx.read(f"SELECT name, type FROM pragma_table_info({sql_text(name)})")
    except sqlite3.Error as error:
        raise PlainError(sqlite_message(error)) from None
    if ("id", "TEXT") not in columns and any(c[0] == "id" for c in columns):
        shown = ",".join("CAST(`id` as TEXT) `id`" if c[0] == "id" else quote_name(c[0]) for c in columns)
        run_ddl(tx, f"DROP VIEW {quote_name(name)}")
        run_ddl(tx, f"CREATE VIEW {quote_name(name)} AS SELECT {shown} FROM ({query})")
    return [c[0] for c in columns]


def sql_text(text):
    return "'" + text.replace("'", "''") + "'"


MISSING_VIEW_ID = "missing required id column (you can use `(ROW_NUMBER() OVER()) as id` if you don't have one)"


class ViewError(PlainError):
    """A view query that works but cannot make a collection; `fields` are those it would have."""

    def __init__(self, message, fields):
        super().__init__(message)
        self.fields = fields


class _Rollback(Exception):
    """Ends a trial inside a savepoint; carries its result out."""


def derive_view(tx, schema, query):
    """Fields and the first ten rows of a view query: tried out in the database and undone. PlainError for a bad query."""
    if len([part for part in split_outside(_without_comments(query), ";") if part.strip()]) > 1:
        raise PlainError("multiple statements are not supported")

    def trial(tx):
        name = "_view_" + random_text(10)
        names = create_view(tx, name, query)
        columns = parse_view_columns(query)
        fields = [_view_field(schema, columns, column, index) for index, column in enumerate(names)]
        try:
            rows = tx.read(f"SELECT * FROM {quote_name(name)} LIMIT 10")
        except sqlite3.Error as error:
            raise PlainError(sqlite_message(error)) from None
        raise _Rollback(names, fields, rows)
    try:
        tx.transaction(trial)
    except _Rollback as done:
        names, fields, rows = done.args
    if "id" not in names:
        raise ViewError(MISSING_VIEW_ID, fields)
    ids = [row[names.index("id")] for row in rows]
    if any(id in (None, "") for id in ids):
        raise PlainError("the query could return records with empty or invalid ids")
    if len(set(ids)) != len(ids):
        raise PlainError("the query could return records with non-unique ids")
    for index, field in enumerate(fields):
        error = _check_common_options(field).get("name")
        if error:
            raise ViewError(f'invalid field "{field.name}" ({index}): name: {plain_message(error)}', fields)
    return fields, rows


_VIEW_STOPS = frozenset("where group having order limit with".split())
_JOIN_WORDS = frozenset("left right full inner outer cross natural".split())


def _without_comments(query):
    return re.sub(r"('(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`)|/\*.*?\*/|--[^\n]*", lambda m: m[1] or " ", query, flags=re.S).strip(" \t\r\n;")


class ViewColumn:
    """One output column of a view query as its text tells: the expression, its alias, and the tables of the query."""

    __slots__ = ("expression", "tables")

    def __init__(self, expression, tables):
        self.expression, self.tables = expression, tables


def parse_view_columns(query):
    """`select a.id, count(*) as n from x a` -> {"id": ViewColumn("a.id"), "n": ViewColumn("count(*)")}; a light parser that only looks at names."""
    columns, tables, part, words = [], [], "", []

    def close_item():
        if words and part == "select":
            columns.append(_view_identifier(words))
        elif words and part in ("from", "join"):
            tables.append(_view_identifier(words))
        words.clear()
    for token in _view_tokens(_without_comments(query)):
        word = token.lower()
        if word == "select" and part == "select":
            continue                        # of a union: its columns go on with the item before
        if word == "," or word in ("select", "from", "join", "on") or word in _VIEW_STOPS or (word in _JOIN_WORDS and part != "select"):
            close_item()
            if word in ("select", "from", "join", "on"):
                part = word
            elif word in _VIEW_STOPS:
                part = ""
        elif not (word == "distinct" and part == "select" and not words):
            words.append(token)
    close_item()
    for expression, _ in columns:
        if expression == "*" or expression.endswith(".*"):
            raise PlainError("wildcard columns (*) are not supported - manually type the collection field names you want the view query to have")
    named = {alias.lower(): table for table, alias in reversed(tables)}
    first = tables[0][0] if tables else ""
    return {alias: ViewColumn(expression, (first, named)) for expression, alias in columns}


def _view_tokens(text):
    """Words; anything in parentheses or quotes belongs to the word it touches; commas are tokens."""
    for piece in split_outside(text.replace("\r", " "), " \t\n"):
        inner = split_outside(piece, ",")
        for number, word in enumerate(inner):
            if number:
                yield ","
            if word:
                yield word


def _view_identifier(words):
    """(expression, alias) of `expr`, `expr alias` or `expr as alias`."""
    trim = "`\"'[]"
    if len(words) == 3 and words[1].lower() != "as":
        raise PlainError(f'invalid identifier part - expected "as", got {words[1]}')
    if len(words) > 3:
        raise PlainError(f"invalid identifier parts [{' '.join(words)}]")
    if len(words) == 1:
        return words[0], words[0].rpartition(".")[2].strip(trim)
    return words[0], words[-1].strip(trim)


#: expression pattern -> options of the inferred field.
_VIEW_TYPES = (
    (re.compile(r"^count\(", re.I), {"type": "number", "onlyInt": True}),
    (re.compile(r"^total\(", re.I), {"type": "number"}),
    (re.compile(r"^cast\(.*\s+as\s+(real|decimal|numeric)\s*\)$", re.I | re.S), {"type": "number"}),
    (re.compile(r"^cast\(.*\s+as\s+(int|integer)\s*\)$", re.I | re.S), {"type": "number", "onlyInt": True}),
    (re.compile(r"^cast\(.*\s+as\s+text\s*\)$", re.I | re.S), {"type": "text"}),
    (re.compile(r"^cast\(.*\s+as\s+(bool|boolean)\s*\)$", re.I | re.S), {"type": "bool"}),
)


def _view_field(schema, columns, name, index):
    column = columns.get(name)
    if name == "id":
        return field_from_json({**ID_FIELD, "autogeneratePattern": "", "min": 0, "max": 0})
    if column is None:
        return field_from_json({"type": "json", "name": name, "id": "json" + checksum(name), "maxSize": 1})
    for pattern, options in _VIEW_TYPES:
        if pattern.search(column.expression):
            return field_from_json({**options, "name": name, "id": options["type"] + checksum(name)})
    return _cloned_field(schema, column, name) or field_from_json({"type": "json", "name": name, "id": "json" + checksum(name), "maxSize": 1})


def _cloned_field(schema, column, name):
    """The field that `col` or `tbl.col` of a known collection names, as the view's own."""
    first, named = column.tables
    parts = [part.strip("`\"'[]") for part in column.expression.split(".")]
    if len(parts) > 2:
        return None
    table = first if len(parts) == 1 else named.get(parts[0].lower(), "")
    collection = schema.find(table.strip("`\"'[]")) if table else None
    source = collection and next((f for f in collection.fields if f.name.lower() == parts[-1].lower()), None)
    if source is None:
        return None
    id = "_clone_" + random_text(4, ALPHANUMERIC)
    if source.name == "id":
        return field_from_json({"type": "relation", "name": name, "id": "relation" + checksum(name), "collectionId": collection.id, "maxSelect": 1})
    data = source.as_json()
    return field_from_json({**data, "name": name, "id": id})


def view_source(schema, collection, field_name, depth=0):
    """(collection, field) that a view's cloned column comes from, through at most five views; None when it has none."""
    column = parse_view_columns(collection.options["viewQuery"]).get(field_name)
    if column is None or depth > 5:
        return None
    first, named = column.tables
    parts = [part.strip("`\"'[]") for part in column.expression.split(".")]
    table = first if len(parts) == 1 else named.get(parts[0].lower(), "")
    source = schema.find(table.strip("`\"'[]")) if table else None
    field = source and next((f for f in source.fields if f.name.lower() == parts[-1].lower()), None)
    if field is None:
        return None
    return view_source(schema, source, field.name, depth + 1) if source.is_view else (source, field)


# ---- the three operations on collections; each runs inside a transaction and returns the new Schema

def save_collection(tx, schema, collection, old, now):
    """Creates or updates one collection with all that follows. Raises ApiError (checks) or PlainError (database)."""
    complete_collection(collection, old, schema, now)
    if collection.is_view:
        errors = _derive_view_fields(tx, schema, collection)
    else:
        errors = {}
    errors = check_collection(collection, old, schema, tx) | errors
    if errors:
        raise ApiError(400, "", errors)
    return store_collection(tx, schema, collection, old)


def _derive_view_fields(tx, schema, collection):
    error = required(collection.options.get("viewQuery"))
    if not error:
        try:
            fields, _ = derive_view(tx, schema, collection.options["viewQuery"])
            collection.fields = fields
            collection.ready()
        except PlainError as bad:
            collection.fields = getattr(bad, "fields", [])
            collection.ready()
            error = FieldError("validation_invalid_view_query", f"Invalid query - {str(bad)[:500]}")
    return {"viewQuery": error} if error else {}


def store_collection(tx, schema, collection, old):
    save_collection_row(tx, collection, is_new=old is None)
    sync_table(tx, collection, old)
    new = schema.with_changes(collection)
    if old is not None and not collection.is_view or old is None:
        new = refresh_views(tx, new, except_id=collection.id)
    return new


def refresh_views(tx, schema, except_id="", strict=False):
    """Derives every other view again after a change; those whose fields differ are saved. `strict`: a broken view is an error."""
    changed = []
    for view in [c for c in schema.all if c.is_view and c.id != except_id]:
        try:
            fields, _ = derive_view(tx, schema, view.options["viewQuery"])
        except PlainError:
            if strict:
                raise
            LOG.warning("Dependent view collection(s) may need to be updated after the change: %s", view.name)
            continue
        if [_shape_of(f) for f in fields] != [_shape_of(f) for f in view.fields]:
            twin = view.copy()
            twin.fields = fields
            twin.ready()
            sync_view(tx, twin, view)
            save_collection_row(tx, twin, is_new=False)
            changed.append(twin)
    return refresh_views(tx, schema.with_changes(*changed), except_id, strict) if changed else schema


def _shape_of(field):
    return {name: value for name, value in field.as_json().items() if name != "id"}


def delete_collection(tx, schema, collection):
    """Drops the collection and its table; refused for system ones, referenced ones and while any view is broken."""
    if collection.system:
        raise bad_request("Failed to delete collection.")
    holders = list(dict.fromkeys(c.name for c, _ in schema.referencing(collection) if c.id != collection.id))
    if holders:
        raise bad_request("Failed to delete collection probably due to existing reference in " + ", ".join(holders))
    try:
        drop_table(tx, collection)
        tx.write("DELETE FROM `_collections` WHERE `id`=?", (collection.id,))
        return refresh_views(tx, schema.with_changes(removed={collection.id}), strict=True)
    except PlainError as error:
        raise bad_request("Failed to delete collection.", raw=str(error)) from None


IMPORT_FAILED = "Failed to import collections."


def import_collections(tx, schema, items, delete_missing, now):
    """Saves a whole list of collection objects at once (see the API's import); everything or nothing."""
    matched = []
    for item in items:
        old = schema.find(str(item.get("id") or "")) or schema.find(str(item.get("name") or ""))
        matched.append((old, _imported(item, old, delete_missing)))
    if delete_missing:
        kept = {old.id for old, _ in matched if old}
        for gone in [c for c in schema.all if not c.system and c.id not in kept]:
            drop_table(tx, gone)
            tx.write("DELETE FROM `_collections` WHERE `id`=?", (gone.id,))
            schema = schema.with_changes(removed={gone.id})
    matched.sort(key=lambda pair: (pair[1].is_view, pair[1].created))
    return _save_imported(tx, schema, matched, now)


def _with_known_id(field, known):
    """A sent field under the id that a field of its name and type already has; `known`: (name, type) -> id."""
    if not isinstance(field, dict):
        return field
    return {**field, "id": known.get((field.get("name"), field.get("type")), field.get("id") or "")}


def _imported(item, old, delete_missing):
    if old is None:
        return collection_from_data(item)
    item = {**item, "id": old.id}
    if isinstance(item.get("fields"), list):
        known = {(f.name, f.type): f.id for f in old.fields}
        item["fields"] = [_with_known_id(field, known) for field in item["fields"]]
        sent = {f.get("id") for f in item["fields"] if isinstance(f, dict)}
    else:
        sent = set()
    kept = [f.as_json() for f in old.fields if f.id not in sent and (f.system or not delete_missing)]
    item["fields"] = (item.get("fields") or []) + kept
    return collection_from_data(item, old)


def _save_imported(tx, schema, matched, now):
    for old, collection in matched:
        complete_collection(collection, old, schema, now)
    wider = schema.with_changes(*[collection for _, collection in matched])
    for old, collection in matched:
        errors = {}
        if collection.is_view:
            wider = wider.with_changes(collection)
            errors = _derive_view_fields(tx, wider, collection)
        try:
            save_collection_row(tx, collection, is_new=old is None)
            sync_table(tx, collection, old)
        except (PlainError, sqlite3.Error) as error:
            text = str(error) if isinstance(error, PlainError) else sqlite_message(error)
            failure = f'failed to save collection "{collection.name}": {text}'
            raise _import_error(f"Failed to import the collections configuration. Raw error:\n{failure}") from None
    base = Schema([c for c in wider.all if c.id not in {m.id for _, m in matched}])
    for old, collection in matched:
        errors = check_collection(collection, old, _import_view(base, wider, collection), _NoTables)
        if errors:
            plain = json.dumps(plain_messages(errors), indent=2, ensure_ascii=False)
            raise _import_error(f'Data validations failed for collection "{collection.name}" ({collection.id}):\n{plain}')
    return refresh_views(tx, wider)


def _import_view(base, wider, collection):
    """The schema as the checks of one imported collection see it: all others, not itself."""
    return Schema([c for c in wider.all if c.id != collection.id])


class _NoTables:
    """A database without tables, for checks that run after the tables were made."""

    @staticmethod
    def read(sql, params=()):
        return []


def _import_error(message):
    return ApiError(400, IMPORT_FAILED, {"collections": FieldError("validation_collections_import_failure", message)})


# ============================================================================
#  12. Application
# ============================================================================
# One opened data directory: its two databases, settings, schema, storage and
# events, and how a fresh or foreign directory becomes one.  An App is what the
# chapters below pass around; library users and hooks get it too.
#
# Invariant: `schema` and `settings` are replaced only after the COMMIT of what
# changed them, so that a rollback leaves nothing behind.

SYSTEM_MIGRATIONS = (
    "1640988000_aux_init.go", "1640988000_init.go", "1717233556_v0.23_migrate.go", "1717233557_v0.23_migrate2.go",
    "1717233558_v0.23_migrate3.go", "1717233559_v0.23_migrate4.go", "1763020353_update_default_auth_alert_templates.go",
    "1778828400_normalize_indexes.go",
)
_ID = "TEXT PRIMARY KEY DEFAULT ('r'||lower(hex(randomblob(7)))) NOT NULL"
_STAMP = "TEXT DEFAULT (strftime('%Y-%m-%d %H:%M:%fZ')) NOT NULL"
_MIGRATIONS_TABLE = "CREATE TABLE IF NOT EXISTS `_migrations` (file VARCHAR(255) PRIMARY KEY NOT NULL, applied INTEGER NOT NULL)"

DATA_TABLES = (
    _MIGRATIONS_TABLE,
    f"CREATE TABLE `_params` (`id` {_ID}, `value` JSON DEFAULT NULL, `created` {_STAMP}, `updated` {_STAMP})",
    f"CREATE TABLE `_collections` (`id` {_ID}, `system` BOOLEAN DEFAULT FALSE NOT NULL, `type` TEXT DEFAULT \"base\" NOT NULL, "
    "`name` TEXT UNIQUE NOT NULL, `fields` JSON DEFAULT \"[]\" NOT NULL, `indexes` JSON DEFAULT \"[]\" NOT NULL, `listRule` TEXT DEFAULT NULL, "
    "`viewRule` TEXT DEFAULT NULL, `createRule` TEXT DEFAULT NULL, `updateRule` TEXT DEFAULT NULL, `deleteRule` TEXT DEFAULT NULL, "
    f"`options` JSON DEFAULT \"{{}}\" NOT NULL, `created` {_STAMP}, `updated` {_STAMP})",
    "CREATE INDEX idx__collections_type on `_collections` (`type`)",
)
LOG_TABLES = (
    f"CREATE TABLE `_logs` (`id` {_ID}, `level` INTEGER DEFAULT 0 NOT NULL, `message` TEXT DEFAULT \"\" NOT NULL, "
    f"`data` JSON DEFAULT \"{{}}\" NOT NULL, `created` {_STAMP})",
    "CREATE INDEX idx_logs_level on `_logs` (`level`)",
    "CREATE INDEX idx_logs_message on `_logs` (`message`)",
    "CREATE INDEX idx_logs_created_hour on `_logs` (strftime('%Y-%m-%d %H:00:00', `created`))",
)

OWNER_RULE = "@request.auth.id != '' && recordRef = @request.auth.id && collectionRef = @request.auth.collectionId"
_SELF = "id = @request.auth.id"


def _text(name, **options):
    return {"type": "text", "name": name, **options}


def _system(*fields):
    return [{**field, "system": True, **({} if field["type"] == "autodate" else {"required": field.get("required", True)})} for field in fields]


_DATES = ({"type": "autodate", "name": "created", "onCreate": True}, {"type": "autodate", "name": "updated", "onCreate": True, "onUpdate": True})
_REFS = (_text("collectionRef"), _text("recordRef"))

#: The collections of a fresh directory, in creation order: name, data.
SYSTEM_COLLECTIONS = (
    {"name": "_mfas", "type": "base", "fields": _system(*_REFS, _text("method"), *_DATES), "listRule": OWNER_RULE, "viewRule": OWNER_RULE,
     "indexes": ["CREATE INDEX `idx_mfas_collectionRef_recordRef` ON `_mfas` (collectionRef,recordRef)"]},
    {"name": "_otps", "type": "base", "listRule": OWNER_RULE, "viewRule": OWNER_RULE,
     "fields": _system(*_REFS, {"type": "password", "name": "password", "hidden": True, "cost": 8},
                       _text("sentTo", hidden=True, required=False), *_DATES),
     "indexes": ["CREATE INDEX `idx_otps_collectionRef_recordRef` ON `_otps` (collectionRef, recordRef)"]},
    {"name": "_externalAuths", "type": "base", "fields": _system(*_REFS, _text("provider"), _text("providerId"), *_DATES),
     "listRule": OWNER_RULE, "viewRule": OWNER_RULE, "deleteRule": OWNER_RULE,
     "indexes": ["CREATE UNIQUE INDEX `idx_externalAuths_record_provider` ON `_externalAuths` (collectionRef, recordRef, provider)",
                 "CREATE UNIQUE INDEX `idx_externalAuths_collection_provider` ON `_externalAuths` (collectionRef, provider, providerId)"]},
    {"name": "_authOrigins", "type": "base", "fields": _system(*_REFS, _text("fingerprint"), *_DATES),
     "listRule": OWNER_RULE, "viewRule": OWNER_RULE, "deleteRule": OWNER_RULE,
     "indexes": ["CREATE UNIQUE INDEX `idx_authOrigins_unique_pairs` ON `_authOrigins` (collectionRef, recordRef, fingerprint)"]},
    {"name": SUPERUSERS, "type": "auth", "fields": [*AUTH_FIELDS, *_system(*_DATES)], "authToken": {"duration": 86400}},
    {"name": "users", "id": "_pb_users_auth_", "type": "auth",
     "listRule": _SELF, "viewRule": _SELF, "createRule": "", "updateRule": _SELF, "deleteRule": _SELF,
     "fields": [*AUTH_FIELDS, _text("name", max=255),
                {"type": "file", "name": "avatar", "maxSelect": 1,
                 "mimeTypes": ["image/jpeg", "image/png", "image/svg+xml", "image/gif", "image/webp"]}, *_DATES],
     "oauth2": {"mappedFields": {"name": "name", "avatarURL": "avatar"}}},
)


class App:
    """An opened data directory.

    >>> app = App("pb_data").open()
    >>> app.store.read("SELECT count(*) FROM users")
    """

    def __init__(self, directory, *, encryption_env="", query_timeout=30, sync="normal", dev=False):
        self.directory = os.path.abspath(directory)
        self.encryption_env = encryption_env
        self.encryption_key = encryption_key(encryption_env)
        self.query_timeout, self.sync, self.dev = query_timeout, sync, dev
        self.events = Events()
        self.schema = self.settings = self.store = self.logs = None
        self.identities = self.rate_limiter = self.otp_tries = self.cron = None         # these and the next: `start_services`
        self.outbox = self.recent_mails = self.apple_names = self.realtime = None
        self.hash_threads = gevent.threadpool.ThreadPool(max(2, os.cpu_count() or 1))      # bcrypt: one a core, so that logins use all of them
        self.file_threads = gevent.threadpool.ThreadPool(8)
        self.temporary_directory = os.path.join(self.directory, ".pb_temp_to_delete")      # on the storage's disk; emptied by `serve`
        self.local_storage = LocalStorage(os.path.join(self.directory, "storage"), sync == "full", self.file_threads)
        self.storage, self.thumbs = self.local_storage, ThumbMaker()
        self._watch_mark = random_text(10, ALPHANUMERIC)

    def open(self):
        """Opens the databases (creates them if need be) and loads settings and collections. PlainError when the data is not usable."""
        os.makedirs(self.directory, mode=0o755, exist_ok=True)
        self.notify_directory = os.path.join(self.directory, ".notify")
        self.store = Store(os.path.join(self.directory, "data.db"), self.sync, self.query_timeout, LOG.debug if self.dev else None)
        self.logs = Store(os.path.join(self.directory, "auxiliary.db"), "normal", self.query_timeout)
        prepare_directory(self)
        self.reload()
        self.store.on_foreign_change.append(self.reload)
        return self

    def reload(self):
        """Reads collections and settings again: at start and after another process changed the database."""
        self.schema = load_schema(self.store)
        rows = self.store.read("SELECT `value` FROM `_params` WHERE `id`='settings'")
        self.settings = unpack_settings(rows[0][0], self.encryption_key, self.encryption_env)
        self.storage = self.storage_for(self.settings["s3"], self.local_storage)

    def storage_for(self, s3, local):
        """The storage that a settings branch `s3` or `backups.s3` asks for; the one in use as long as nothing about it changes."""
        if not s3["enabled"]:
            return local
        if isinstance(self.storage, S3Storage) and self.storage.settings == s3:
            return self.storage
        return S3Storage(s3, self.temporary_directory)

    def transaction(self, work):
        return self.store.transaction(work)

    def schema_transaction(self, work):
        """A transaction that changes collections: the next one already sees the new schema."""
        return self.store.transaction(work, alone=True)

    def collection(self, name_or_id):
        return self.schema.find(name_or_id)

    def adopt_schema(self, tx, schema):
        """Makes a new Schema the current one after the commit, and tells other processes on this directory."""
        tx.after_commit(self._set_schema, schema)

    def _set_schema(self, schema):
        self.schema = schema
        self.notify("collections")

    def save_settings(self, settings):
        """Stores a checked settings tree and makes it the current one."""
        value = pack_settings(settings, self.encryption_key)
        value = value if isinstance(value, bytes) else str(value)

        def work(tx):
            changed = tx.write("UPDATE `_params` SET `value`=?, `updated`=? WHERE `id`='settings'", (value, now_text()))
            if not changed:
                tx.write("INSERT INTO `_params` (`id`,`value`,`created`,`updated`) VALUES ('settings',?,?,?)", (value, now_text(), now_text()))
            tx.after_commit(self._set_settings, settings)
        self.transaction(work)

    def _set_settings(self, settings):
        self.settings = settings
        self.storage = self.storage_for(settings["s3"], self.local_storage)
        self.events.fire(("settings_reload",), no_work, app=self)
        self.notify("settings")

    def notify(self, what):
        """Other processes that watch `.notify` reload when a file comes up there; it is gone again at once."""
        path = os.path.join(self.notify_directory, f"{what}@{self._watch_mark}")
        try:
            os.makedirs(self.notify_directory, exist_ok=True)
            open(path, "w").close()
            os.unlink(path)
        except OSError:                             # a full or read-only disk: only the other process's freshness is lost
            LOG.warning("could not notify other processes about changed %s", what)

    def close(self):
        self.store.close()
        self.logs.close()


def encryption_key(env_name):
    """The 32 bytes that --encryptionEnv names, or None without the flag."""
    if not env_name:
        return None
    key = os.environ.get(env_name, "").encode()
    if key and len(key) != 32:
        raise PlainError(f"crypto/aes: invalid key size {len(key)}")
    return key or None


def prepare_directory(app):
    """Makes the tables of a fresh directory; checks that an existing one is of a version this program understands."""
    os.makedirs(os.path.join(app.directory, ".notify"), exist_ok=True)
    if not _has_table(app.logs, "_logs"):
        app.logs.transaction(lambda tx: [tx.write(sql) for sql in LOG_TABLES] and None)
    if not _has_table(app.store, "_collections"):
        app.store.transaction(lambda tx: _install(app, tx))
    applied = {row[0] for row in app.store.read("SELECT file FROM `_migrations`")}
    missing = [name for name in SYSTEM_MIGRATIONS[2:6] if name not in applied]
    if missing:
        raise PlainError("the data directory was last used by a version before 0.23: start it once with PocketBase 0.23 or newer, which upgrades it")
    if not app.store.read("SELECT 1 FROM `_params` WHERE `id`='settings'"):
        app.settings = default_settings()
        app.save_settings(app.settings)


def _has_table(store, name):
    return bool(store.read("SELECT 1 FROM sqlite_master WHERE type='table' AND name=?", (name,)))


def _install(app, tx):
    for sql in DATA_TABLES:
        tx.write(sql)
    for number, name in enumerate(SYSTEM_MIGRATIONS):
        tx.write("INSERT INTO `_migrations` (file, applied) VALUES (?, ?)", (name, time.time_ns() // 1000 + number))
    now = now_text()
    settings = pack_settings(default_settings(), app.encryption_key)
    tx.write("INSERT INTO `_params` (`id`,`value`,`created`,`updated`) VALUES ('settings',?,?,?)", (settings, now, now))
    schema = Schema([])
    for data in SYSTEM_COLLECTIONS:
        collection = collection_from_data({**data, "system": data["name"] != "users"})
        complete_collection(collection, None, schema, now)
        schema = store_collection(tx, schema, collection, None)


# ============================================================================
#  13. Records
# ============================================================================
# Rows as records: loading, writing as JSON, expanding, picking fields, and the one
# save pipeline (create, update, delete) with its events.
#
# Reading never builds objects: a row is a tuple in the collection's field order and
# a generated function turns it into JSON text.  Writing builds a Record, runs inside
# one transaction (the read, the rule, the modifiers, the relation checks and the
# write see the same state), and tells listeners only after the COMMIT.

EXPAND_DEPTH = 6
BACK_RELATION_LIMIT = 1000      # ids a back relation expands per record
CASCADE_CHUNK = 8000            # referencing ids read at once while deleting
MAX_PER_PAGE = 1000


def columns_sql(collection, alias=None):
    """The columns of a row tuple, in field order."""
    key = "columns", alias
    if key not in collection.compiled:
        table = alias or quote_name(collection.name)
        collection.compiled[key] = ",".join(f"{table}.{quote_name(f.name)}" for f in collection.fields)
    return collection.compiled[key]


# ---- rows to JSON

def _json_number(stored):
    if type(stored) is int and -SAFE_INT <= stored <= SAFE_INT:
        return str(stored)
    return format_number(read_number(stored))


def _json_date(stored):
    if len(stored) == 24 and stored[10] == " " and stored[23] == "Z" or not stored:
        return f'"{stored}"'
    return f'"{read_date(stored)}"'


_scan_json_value = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode


def _json_list(stored):
    """A multi-value column; arrays of plain texts, which is what a server writes, take the short way."""
    if stored == "[]":
        return stored
    if type(stored) is str and stored[:2] == '["' and "\\" not in stored and '""' not in stored:
        try:
            items, end = _scan_json_value(stored)
            if end == len(stored) and len(set(items)) == len(items):
                return '["' + '","'.join(items) + '"]'
        except (ValueError, TypeError):
            pass
    return to_json(read_list(stored))


def _json_column(stored):
    """A json column, compact, as it is stored otherwise; objects and arrays of plain content take the short way."""
    if type(stored) is str and stored[:1] in ("{", "[") and "\\" not in stored:
        try:
            value, end = _scan_json_value(stored)
            if end == len(stored):
                if not _JSON_BLANK(stored):
                    return stored
                if not _NUMBER_WITH_FORM(stored):
                    return _encode_json(value)
        except (ValueError, RecursionError):
            pass
    return read_json(stored)


_JSON_BLANK = re.compile(r"[ \t\n\r]").search
_NUMBER_WITH_FORM = re.compile(r"\d[.eE]|-0").search       # 1.0, 1e3 and -0 stay as they are stored: decoding would lose their form


def _json_one(stored):
    """A single select, relation or file; the column may hold an array of earlier times."""
    return quote_json(stored if stored[:1] != "[" else read_single(stored))


def _json_geo(stored):
    point = read_geo_point(stored)
    return f'{{"lon":{format_number(point["lon"])},"lat":{format_number(point["lat"])}}}'


#: What a generated encoder may call; the key is how `_value_source` names it.
ENCODER_HELPERS = {"quote": quote_json, "number": _json_number, "date": _json_date, "many": _json_list, "one": _json_one,
                   "json": _json_column, "geo": _json_geo, "truth": {0: "false", 1: "true"}}
_ENCODER_WORD = {"number": "number", "date": "date", "autodate": "date", "json": "json", "geoPoint": "geo"}


def _value_source(field, place):
    if field.type == "password":
        return '""'
    if field.type == "bool":
        return f"{{truth[row[{place}]]}}"
    word = ("many" if field.multiple else "one") if field.listed else _ENCODER_WORD.get(field.type, "quote")
    return f"{{{word}(row[{place}])}}"


ROW_TEXTS = Memo(16 << 20)      # (encoder, e-mail shown, row) -> JSON
ROW_OVERHEAD = 300              # bytes beside the text and the row, which is about as large


class RowEncoder:
    """How rows of one collection become JSON for one kind of caller.

    `encode(row, show_email, expand)` -> text; `expand` is the text of the expand object or None. `picked`: only these names.
    A text follows from its row alone, so it is remembered by it.
    """

    def __init__(self, collection, superuser, picked=None):
        secret = ("password", "tokenKey") if collection.is_auth else ()
        shown = {f.name: f for f in collection.fields if (superuser or not f.hidden) and f.name not in secret}
        self.fields = [f for f in collection.fields if picked is None or f.name in picked and f.name in shown]
        self.columns = ",".join(f"{quote_name(collection.name)}.{quote_name(f.name)}" for f in self.fields) or "NULL"
        self.place = {f.name: i for i, f in enumerate(self.fields)}
        self.steady = not collection.is_view        # its columns have no affinity: 1 and 1.0 are equal as keys and not as texts
        self._fast = self._compile(collection, shown, picked)

    def _compile(self, collection, shown, picked):
        sources = {name: _value_source(field, self.place[name]) for name, field in shown.items() if name in self.place}
        for name, value in (("collectionId", collection.id), ("collectionName", collection.name)):
            if picked is None or name in picked:
                sources[name] = quote_json(value).replace("{", "{{").replace("}", "}}")
        if picked is None:
            sources["expand"] = ""
        pieces, comma = ["f'''{{"], ""
        for name in sorted(sources):
            part = f'{comma}"{name}":{sources[name]}'
            if name == "expand":
                pieces[-1] += "''', f'''"
            elif name == "email" and collection.is_auth:
                pieces[-1] += f"''' + (f'''{part}''' if show_email else '') + f'''"
            else:
                pieces.append(part)
            comma = ","
        if "expand" not in sources:
            pieces.append("''', f'''")
        scope = dict(ENCODER_HELPERS)
        exec("def encode(row, show_email): return " + "".join(pieces) + "}}'''", scope)      # names come from the schema: \\w only
        return scope["encode"]

    def encode_all(self, rows):
        """Rows without e-mails and expand, as the inside of an array."""
        return ",".join([self.encode(row) for row in rows])

    def encode(self, row, show_email=False, expand=None):
        halves = ROW_TEXTS.get((self, show_email, row))
        if halves is None:
            halves = self._encode(row, show_email)
            if self.steady:
                ROW_TEXTS.keep((self, show_email, row), halves, ROW_OVERHEAD + 2 * sum(map(sys.getsizeof, halves)))
        return halves[0] + halves[1] if expand is None else f'{halves[0]},"expand":{expand}{halves[1]}'

    def _encode(self, row, show_email):
        """The text in two halves, before and after where `expand` stands."""
        try:
            return self._fast(row, show_email)
        except (TypeError, KeyError):       # a stored value of another type than the column's: read it as the field would
            return self._fast([f.store(f.load(v)) for f, v in zip(self.fields, row)], show_email)


def row_encoder(collection, superuser, picked=None):
    key = "encoder", superuser, picked
    encoder = collection.compiled.get(key)
    if encoder is None:
        encoder = collection.compiled[key] = RowEncoder(collection, superuser, picked)
    return encoder


# ---- fields=...

class FieldPick:
    """A parsed `fields` parameter: `a,b.c,d:excerpt(5,true),*`.

    `simple`: the frozenset of names when nothing but plain names is asked for, which the row encoder serves directly.
    """

    def __init__(self, text):
        self.tree = {}
        self.simple = None
        names = _split_picks(text)
        for name in names:
            self._add(name)
        if names and all(re.fullmatch(r"\w+", name) and name not in ("email", "expand") for name in names):
            self.simple = frozenset(names)

    def _add(self, name):
        name, _, modifier = name.partition(":")
        excerpt_args = _parse_excerpt(modifier) if _ else None
        node = self.tree
        *parents, last = name.strip().split(".")
        for parent in parents:
            inner = node.get(parent)
            node = node.setdefault(parent, {}) if isinstance(inner, dict) or inner is None else node.setdefault(parent, {})
            if not isinstance(node, dict):
                return
        if excerpt_args or not isinstance(node.get(last), dict):
            node[last] = excerpt_args

    def apply(self, value):
        return _pick(value, self.tree) if self.tree else value


def _split_picks(text):
    parts = [part.strip() for part in split_outside(text, ",")]
    if text.count("(") != text.count(")"):
        raise bad_request(raw="unbalanced parentheses in fields")
    return [part for part in parts if part]


def _parse_excerpt(modifier):
    match = re.fullmatch(r"excerpt\(\s*(\d+)\s*(?:,\s*(\w*)\s*)?\)", modifier.strip())
    if not match or int(match[1]) <= 0:
        raise bad_request(raw=f"invalid fields modifier {modifier}")
    return int(match[1]), cast_bool(match[2] or "")


def _pick(value, tree):
    if isinstance(value, list):
        return [_pick(item, tree) for item in value] if any(isinstance(item, (dict, list)) for item in value) else value
    if not isinstance(value, dict):
        return value
    out = {}
    for key in sorted(value):
        if key in tree:
            rule = tree[key]
        elif "*" in tree:
            rule = tree["*"]
        else:
            continue
        item = value[key]
        if isinstance(rule, dict):
            item = _pick(item, rule)
        elif rule and isinstance(item, str):
            item = excerpt(item, *rule)
        out[key] = item
    return out


@functools.lru_cache(maxsize=1000)
def parse_fields(text):
    """The FieldPick of a `fields` parameter, None when it asks for nothing; 400 when malformed."""
    pick = FieldPick(text)
    return pick if pick.tree else None


# ---- expand

def in_context(info, context):
    """The same caller in another `@request.context`."""
    if info.context == context:
        return info
    return RequestInfo(context, info.method, info.headers, info.query, info.body, info.auth, info.superuser)


class _NotExpandable(Exception):
    """A path of `expand` that cannot be followed; it is dropped without an error to the client."""


@functools.lru_cache(maxsize=1000)
def parse_expand(text):
    """`a,b.c` -> {"a": {}, "b": {"c": {}}}, at most six levels deep."""
    tree = {}
    for path in text.replace(" ", "").split(","):
        node = tree
        for segment in list(path.strip(".").split("."))[:EXPAND_DEPTH]:
            if segment:
                node = node.setdefault(segment, {})
    return tree


def expand_rows(app, db, info, collection, rows, tree):
    """The `expand` object's text for each row (None where there is none). Rows are full tuples of the collection."""
    texts = _expand(app, db, info, collection, rows, tree)
    return texts if texts is not None else [None] * len(rows)


def _expand(app, db, info, collection, rows, tree):
    done = []
    for segment in sorted(tree):
        try:
            done.append((quote_json(segment), _expand_segment(app, db, info, collection, rows, segment, tree[segment])))
        except _NotExpandable:
            continue
    if not done:
        return None
    return ["{" + ",".join(f"{key}:{texts[i]}" for key, texts in done if texts[i] is not None) + "}" for i in range(len(rows))]


_BACK_RELATION = re.compile(r"^(\w+)_via_(\w+)$")
_OLD_BACK_RELATION = re.compile(r"^(\w+)\((\w+)\)$")


def _expand_segment(app, db, info, collection, rows, segment, subtree):
    """Texts (or None) per row of one path segment."""
    field = collection.field(segment)
    if field is not None and field.type == "relation":
        target = app.schema.find_exact(field.collection_id)
        if target is None:
            raise _NotExpandable(segment)
        place = collection.fields.index(field)
        wanted = [field.items(field.load(row[place])) for row in rows]
        found = _fetch_expanded(app, db, info, target, list(dict.fromkeys(itertools.chain(*wanted))), subtree)
        return [_join_expanded([found[id] for id in ids if id in found], field.multiple) for ids in wanted]
    match = _BACK_RELATION.match(segment) or _OLD_BACK_RELATION.match(segment)
    source = match and app.schema.find(match[1])
    back = source and source.field(match[2])
    if back is None or back.type != "relation" or back.collection_id != collection.id:
        raise _NotExpandable(segment)
    wanted = [_back_relation_ids(db, source, back, row[collection.fields.index(collection.field("id"))]) for row in rows]
    found = _fetch_expanded(app, db, info, source, list(dict.fromkeys(itertools.chain(*wanted))), subtree)
    many = not source.has_unique_index(back.name) or back.multiple
    return [_join_expanded([found[id] for id in ids if id in found], many) for ids in wanted]


def _join_expanded(texts, many):
    if not texts:
        return None
    return "[" + ",".join(texts) + "]" if many else texts[0]


def _back_relation_ids(db, source, back, id):
    column, table = quote_name(back.name), quote_name(source.name)
    if back.multiple:
        condition = f"EXISTS (SELECT 1 FROM json_each(CASE WHEN json_valid({column}) THEN {column} ELSE json_array({column}) END) WHERE value=?)"
    else:
        condition = f"{column}=?"
    return [row[0] for row in db.read(f"SELECT `id` FROM {table} WHERE {condition} LIMIT {BACK_RELATION_LIMIT}", (id,))]


def _fetch_expanded(app, db, info, target, ids, subtree):
    """{id: JSON text} of the target records that the caller may view, themselves expanded by the subtree."""
    if not info.superuser and target.view_rule is None:
        raise _NotExpandable(target.name)
    inner = in_context(info, "expand")
    rows = fetch_rows(app, db, inner, target, ids) if ids else []
    expands = None
    if subtree:
        expands = _expand(app, db, inner, target, rows, subtree)
        if expands is None and rows:
            raise _NotExpandable(target.name)
    encoder, shown = row_encoder(target, info.superuser), emails_shown(app, db, inner, target, rows)
    place = encoder.place["id"]
    return {row[place]: encoder.encode(row, show, expands[i] if expands else None) for i, (row, show) in enumerate(zip(rows, shown))}


def fetch_rows(app, db, info, collection, ids):
    """Full rows with these ids that the collection's viewRule lets the caller see."""
    columns, table = columns_sql(collection), quote_name(collection.name)
    wanted = f"{table}.`id` IN (SELECT value FROM json_each(?))"
    rule = None if info.superuser else collection.view_rule
    if not rule:
        return db.read(f"SELECT {columns} FROM {table} WHERE {wanted}", (to_json(ids),))
    query = plan_query(app.schema, collection, info, rule=rule)
    distinct = "DISTINCT " if query.distinct else ""
    return db.read(f"SELECT {distinct}{columns} FROM {table} {query.joins} WHERE ({query.where}) AND {wanted}",
                   (*query.params_joins, *query.params_where, to_json(ids)))


# ---- who sees an e-mail address

def emails_shown(app, db, info, collection, rows):
    """Per row whether the caller may see its e-mail: it is public, the caller's own, or the caller manages the record."""
    if not collection.is_auth:
        return [False] * len(rows)
    if info.superuser:
        return [True] * len(rows)
    places = collection.compiled.setdefault("email places", [collection.fields.index(collection.field(n)) for n in ("id", "emailVisibility")])
    id_place, public_place = places
    own = info.auth.id if info.auth is not None and info.auth.collection.id == collection.id else None
    managed = managed_ids(app, db, info, collection, [row[id_place] for row in rows]) if rows else ()
    return [bool(row[public_place]) or row[id_place] == own or row[id_place] in managed for row in rows]


def managed_ids(app, db, info, collection, ids):
    """The ids that the caller may manage by the collection's manageRule."""
    if info.auth is None or not collection.manage_rule:
        return frozenset()
    query = plan_query(app.schema, collection, info, rule=collection.manage_rule)
    table = quote_name(collection.name)
    rows = db.read(f"SELECT {table}.`id` FROM {table} {query.joins} WHERE ({query.where}) AND {table}.`id` IN (SELECT value FROM json_each(?))",
                   (*query.params_joins, *query.params_where, to_json(ids)))
    return frozenset(row[0] for row in rows)


def follows_from_row(app, collection, expand):
    """Whether a record's JSON is the same for every caller of a kind: no expand, no e-mail, no listener that enriches it."""
    return not expand and not collection.is_auth and not app.events.listened("record_enrich")


def records_json(app, db, info, collection, rows, expand=""):
    """JSON texts of full rows as this caller may see them."""
    if app.events.listened("record_enrich"):
        return [_enriched_json(app, db, info, collection, row, expand) for row in rows]
    encoder = row_encoder(collection, info.superuser)
    if follows_from_row(app, collection, expand):
        return [encoder.encode(row) for row in rows]
    shown = emails_shown(app, db, info, collection, rows)
    expands = expand_rows(app, db, info, collection, rows, parse_expand(expand)) if expand and rows else itertools.repeat(None)
    return [encoder.encode(row, show, text) for row, show, text in zip(rows, shown, expands)]


def _enriched_json(app, db, info, collection, row, expand):
    """The JSON of one record after its `record_enrich` listeners, which may set `event.data` keys."""
    def encode(event):
        shown = emails_shown(app, db, info, collection, [row])
        text = expand_rows(app, db, info, collection, [row], parse_expand(expand))[0] if expand else None
        event.data = json.loads(row_encoder(collection, info.superuser).encode(row, shown[0], text))
        return event.data
    record = Record(collection, row)
    return to_json(app.events.fire(("record_enrich",), encode, app=app, info=info, collection=collection, record=record), sort_keys=True)


# ---- records

class Record:
    """One record being worked on. `values`: name -> value inside; `original`: the same as last loaded or saved."""

    __slots__ = ("collection", "values", "original", "is_new", "passwords", "loaded")

    def __init__(self, collection, row=None):
        self.collection = collection
        self.passwords = {}                     # password field -> plain text that this save sets
        self.loaded = row                       # the row as it was read
        self.is_new = row is None
        if row is None:
            self.values = {f.name: copy.copy(f.zero) for f in collection.fields}
        else:
            self.values = {f.name: f.load(v) for f, v in zip(collection.fields, row)}
        self.original = dict(self.values)

    @property
    def id(self):
        return self.values["id"]

    def get(self, name):
        """The value as clients see it; None for an unknown name."""
        if name == "collectionId":
            return self.collection.id
        if name == "collectionName":
            return self.collection.name
        field = self.collection.field(name)
        return None if field is None else field.exported(self.values[name])

    def __getitem__(self, name):
        return self.values[name]

    def __setitem__(self, name, value):
        """Sets a value, cast as the field does it."""
        self.values[name] = self.collection.by_name[name].cast(value)

    def row(self):
        """The stored form, in field order."""
        return tuple(f.store(self.values[f.name]) for f in self.collection.fields)

    def changed(self, name):
        return self.values[name] != self.original[name]

    def uploads(self):
        """(field, Upload) of every file that this save brings."""
        return [(f, item) for f in self.collection.file_fields for item in f.items(self.values[f.name]) if isinstance(item, Upload)]

    def removed_files(self):
        """Stored names that this save takes away."""
        return [name for f in self.collection.file_fields for name in f.items(self.original[f.name]) if name not in f.items(self.values[f.name])]

    def __repr__(self):
        return f"<record {self.collection.name}/{self.id}>"


def find_record(db, collection, id):
    """A Record by id, or None; no rule is asked."""
    return find_record_by(db, collection, "id", id)


def find_record_by(db, collection, name, value, nocase=False):
    """The first record whose column equals a value."""
    collate = " COLLATE NOCASE" if nocase else ""
    rows = db.read(f"SELECT {columns_sql(collection)} FROM {quote_name(collection.name)} WHERE {quote_name(name)}=?{collate} LIMIT 1", (value,))
    return Record(collection, rows[0]) if rows else None


def find_records(db, collection, **equal):
    """Records whose columns equal the given values, in row order."""
    where = " AND ".join(f"{quote_name(name)}=?" for name in equal)
    rows = db.read(f"SELECT {columns_sql(collection)} FROM {quote_name(collection.name)} WHERE {where} ORDER BY `_rowid_`", tuple(equal.values()))
    return [Record(collection, row) for row in rows]


def split_modifier(collection, key):
    """`n+` -> (number field, "+"); (field, "") for a plain name, None for an unknown key."""
    field = collection.by_name.get(key)
    if field is not None:
        return field, ""
    for name, word, modifier in ((key[:-1], key[-1:], "+"), (key[:-1], key[-1:], "-")):
        field = collection.by_name.get(name) if word == modifier else None
        if field is not None and modifier in field.modifiers:
            return field, modifier
    field = collection.by_name.get(key[1:]) if key[:1] == "+" else None
    if field is not None and "prepend" in field.modifiers:
        return field, "prepend"
    field = collection.by_name.get(key.removesuffix(":autogenerate")) if key.endswith(":autogenerate") else None
    return (field, "autogenerate") if field is not None and "autogenerate" in field.modifiers else None


def load_data(record, data, superuser):
    """Applies submitted data to a record, shortest keys first.

    Returns the normalised body for `@request.body.*`: known fields hold the value that the record got, hidden ones are left
    out for callers that are no superusers, unknown keys stay as they came.
    """
    collection, body = record.collection, {}
    for key in sorted(data, key=len):
        value = data[key]
        target = split_modifier(collection, key)
        if target is None:
            body[key] = value
            continue
        field, modifier = target
        if field.type == "password":
            if collection.is_auth and field.name == "password" or superuser or not field.hidden:
                record.passwords[field.name] = cast_text(value)
                body[field.name] = value
            continue
        if field.hidden and not superuser:
            continue
        if field.type != "autodate":
            old = record.values[field.name]
            record.values[field.name] = field.apply(modifier, old, value) if modifier else field.cast(value)
        body[field.name] = field.exported(record.values[field.name])
    return body


class SaveContext:
    """What the fields' checks may look at."""

    __slots__ = ("record", "db", "schema")

    def __init__(self, record, db, schema):
        self.record, self.db, self.schema = record, db, schema


def validate_record(app, db, record):
    """{name: FieldError} of all fields, then of what the collection itself demands."""
    context = SaveContext(record, db, app.schema)
    errors = {}
    for field in record.collection.fields:
        error = field.check(record.values[field.name], context)
        if error:
            errors[field.name] = error
    special = RECORD_CHECKS.get(record.collection.name)
    if special and not errors:
        errors = special(app, db, record)
    if record.collection.is_auth and record.is_new and not errors.get("id"):
        for other in app.schema.all:
            if other.is_auth and other.id != record.collection.id and db.read(f"SELECT 1 FROM {quote_name(other.name)} WHERE `id`=?", (record.id,)):
                errors["id"] = FieldError("validation_invalid_auth_id")
    return errors


def _check_reference(app, db, record):
    """collectionRef and recordRef of the system collections that belong to an auth record, one after another."""
    collection = app.schema.find_exact(record["collectionRef"])
    if collection is None:
        return {"collectionRef": FieldError("validation_invalid_collection_id")}
    if not collection.is_auth:
        return {"collectionRef": FieldError("validation_invalid_collection_type")}
    if not db.read(f"SELECT 1 FROM {quote_name(collection.name)} WHERE `id`=?", (record["recordRef"],)):
        return {"recordRef": FieldError("validation_invalid_record")}
    if "provider" in record.values and record["provider"] not in PROVIDERS:
        return {"provider": FieldError("validation_in_invalid")}
    return {}


#: Checks of system collections beyond their fields'.
RECORD_CHECKS = dict.fromkeys(("_mfas", "_otps", "_externalAuths", "_authOrigins"), _check_reference)


# ---- the save pipeline

_SAVE_EVENTS = {verb: ((f"record_{verb}", f"model_{verb}"), (f"record_{verb}_execute", f"model_{verb}_execute"),
                       (f"record_after_{verb}_success", f"model_after_{verb}_success"), (f"record_after_{verb}_error", f"model_after_{verb}_error"))
                for verb in ("create", "update", "delete")}


def save_record(app, tx, record, validate=True, info=None):
    """Creates or updates inside a transaction: fill in, validate, write, events; raises ApiError 400 with the field errors."""
    verb = "create" if record.is_new else "update"
    around, execute, _, _ = _SAVE_EVENTS[verb]
    attributes = {"app": app, "tx": tx, "collection": record.collection, "record": record}

    def work(event):
        _fill_in(record)
        if validate:
            app.events.fire(("record_validate", "model_validate"), lambda e: _raise_invalid(app, tx, record), **attributes)
        _prepare_auth(app, tx, record)
        app.events.fire(execute, lambda e: _write_record(tx, record), **attributes)
    _with_outcome(app, tx, verb, record, lambda: app.events.fire(around, work, info=info, **attributes))
    _after_auth_save(app, tx, record)
    gone = record.removed_files() if not record.is_new else ()
    if gone:
        tx.after_commit(remove_files, app, record.collection.id, record.id, gone)
    record.original, record.is_new, record.passwords, record.loaded = dict(record.values), False, {}, None
    return record


def _with_outcome(app, tx, verb, record, run):
    """Runs a save; its listeners hear of success after the commit, of failure at once or at the rollback."""
    _, _, success, failure = _SAVE_EVENTS[verb]
    attributes = {"app": app, "collection": record.collection, "record": record}
    try:
        run()
    except Exception as error:
        if app.events.listened(*failure):
            app.events.fire(failure, no_work, error=error, **attributes)
        raise
    if app.events.listened(*success):
        tx.after_commit(lambda: app.events.fire(success, no_work, **attributes))
    if app.events.listened(*failure):
        tx.after_rollback(lambda: app.events.fire(failure, no_work, error=None, **attributes))


def _raise_invalid(app, tx, record):
    errors = validate_record(app, tx, record)
    if errors:
        raise bad_request("", errors)


def _fill_in(record):
    """Generated texts (on create, where empty) and autodates."""
    now = now_text()
    for field in record.collection.fields:
        if field.type == "autodate":
            if field.on_create if record.is_new else field.on_update:
                record.values[field.name] = now
        elif record.is_new and field.type == "text" and field.autogenerate_pattern and not record.values[field.name]:
            record.values[field.name] = field.autogenerated()


def _prepare_auth(app, tx, record):
    """What follows for an auth record: hashes, a fresh tokenKey when credentials change."""
    collection = record.collection
    for name, plain in record.passwords.items():
        if record.values[name] == record.original[name]:        # not hashed ahead
            record.values[name] = hash_password(app, plain, collection.by_name[name].cost) if plain else ""
    if not collection.is_auth:
        return
    if collection.name == SUPERUSERS:
        record.values["verified"] = True
    if record.is_new:
        record.values["tokenKey"] = record.values["tokenKey"] or collection.by_name["tokenKey"].autogenerated() or random_text(50, ALPHANUMERIC)
    elif not record.changed("tokenKey") and (record.changed("password") or record.changed("email")):
        refresh_token_key(record)
    if not record.is_new and record["verified"] and not record.original["verified"]:
        if tx.write("DELETE FROM `_externalAuths` WHERE `collectionRef`=? AND `recordRef`=?", (collection.id, record.id)):
            refresh_token_key(record)


def refresh_token_key(record):
    """A new tokenKey: every token of the record dies."""
    record.values["tokenKey"] = random_text(50, ALPHANUMERIC)


def _after_auth_save(app, tx, record):
    """Rows of the system collections that a changed credential makes void."""
    if not record.collection.is_auth:
        return
    if record.collection.name == SUPERUSERS and record.is_new and record["email"] != INSTALLER_EMAIL:
        tx.write("DELETE FROM `_superusers` WHERE `email`=?", (INSTALLER_EMAIL,))
    if record.is_new:
        return
    stale = (["_otps"] if record.changed("tokenKey") else []) + (["_mfas", "_authOrigins"] if record.changed("password") else [])
    _delete_references(tx, record, stale)


INSTALLER_EMAIL = "__pbinstaller@example.com"
_REFERENCE_TABLES = ("_mfas", "_otps", "_externalAuths", "_authOrigins")


def _delete_references(tx, record, tables):
    for table in tables:
        tx.write(f"DELETE FROM {quote_name(table)} WHERE `collectionRef`=? AND `recordRef`=?", (record.collection.id, record.id))


def hash_password(app, plain, cost=0):
    """A bcrypt hash, computed in a native thread: 54 ms of another core."""
    return in_thread(app.hash_threads, bcrypt.hashpw, plain.encode()[:72], bcrypt.gensalt(cost or 10, prefix=b"2a")).decode()


def password_matches(app, plain, hashed):
    """Whether a password is the hashed one; only its first 72 bytes count (bcrypt)."""
    if not hashed:
        return False
    try:
        return in_thread(app.hash_threads, bcrypt.checkpw, plain.encode()[:72], hashed.encode())
    except ValueError:                  # the column holds no hash
        return False


def _write_record(tx, record):
    collection = record.collection
    try:
        if record.is_new:
            sql = collection.compiled.get("insert")
            if sql is None:
                table, names = quote_name(collection.name), ",".join(quote_name(f.name) for f in collection.fields)
                sql = collection.compiled["insert"] = f"INSERT INTO {table} ({names}) VALUES ({placeholders(collection.fields)})"
            tx.write(sql, record.row())
        else:
            _write_changes(tx, record)
    except sqlite3.IntegrityError as error:
        raise _integrity_error(record, error) from None


def _write_changes(tx, record):
    """One UPDATE of the columns whose value differs."""
    fields = [f for f in record.collection.fields if f.name != "id" and record.changed(f.name)]
    if not fields:
        return
    sets = ",".join(f"{quote_name(f.name)}=?" for f in fields)
    values = [f.store(record[f.name]) for f in fields]
    tx.write(f"UPDATE {quote_name(record.collection.name)} SET {sets} WHERE `id`=?", (*values, record.original["id"]))


def _integrity_error(record, error):
    """`UNIQUE constraint failed: t.a, t.b` -> not-unique errors on the fields a and b."""
    text = str(error)
    prefix = "UNIQUE constraint failed: "
    errors = {}
    if text.startswith(prefix) and not text.startswith(prefix + "index"):
        for part in text[len(prefix):].split(", "):
            name = part.rpartition(".")[2]
            if record.collection.field(name):
                errors[name] = FieldError("validation_not_unique")
    return bad_request("", errors, raw=text)


# ---- deleting

def delete_record(app, tx, record, info=None):
    """Deletes a record and what depends on it: cascades, unlinking, references; ApiError 400 when a required reference forbids it."""
    around, execute, _, _ = _SAVE_EVENTS["delete"]
    attributes = {"app": app, "tx": tx, "collection": record.collection, "record": record}

    def work(event):
        app.events.fire(execute, lambda e: _delete_row(app, tx, record), **attributes)
    _with_outcome(app, tx, "delete", record, lambda: app.events.fire(around, work, info=info, **attributes))
    if record.collection.file_fields:
        tx.after_commit(remove_record_files, app, record.collection.id, record.id)


def _delete_row(app, tx, record):
    collection = record.collection
    if collection.name == SUPERUSERS and record["email"] != INSTALLER_EMAIL:
        if tx.read("SELECT count(*) FROM `_superusers` WHERE `email`<>?", (INSTALLER_EMAIL,))[0][0] <= 1:
            raise bad_request("You can't delete the only existing superuser.")
    tx.write(f"DELETE FROM {quote_name(collection.name)} WHERE `id`=?", (record.id,))
    if collection.is_auth:
        _delete_references(tx, record, _REFERENCE_TABLES)
    for holder, field in app.schema.referencing(collection):
        if not holder.is_view:
            _unlink(app, tx, record, holder, field)


def _unlink(app, tx, record, holder, field):
    """Takes a deleted record's id out of one relation field of all records that hold it."""
    table, column = quote_name(holder.name), quote_name(field.name)
    if field.multiple:
        condition = f"EXISTS (SELECT 1 FROM json_each(CASE WHEN json_valid({column}) THEN {column} ELSE json_array({column}) END) WHERE value=?)"
    else:
        condition = f"{column}=?"
    while ids := tx.read(f"SELECT `id` FROM {table} WHERE {condition} LIMIT {CASCADE_CHUNK}", (record.id,)):
        for (id,) in ids:
            _unlink_one(app, tx, record, holder, field, id)


def _unlink_one(app, tx, record, holder, field, id):
    child = find_record(tx, holder, id)
    if child is None:                       # an earlier cascade of this delete took it along
        return
    left = [value for value in field.items(child[field.name]) if value != record.id]
    if not left and field.cascade_delete:
        delete_record(app, tx, child)
        return
    if not left and field.required:
        raise bad_request("", raw=f"the record is required by {holder.name}/{id}")
    child.values[field.name] = left if field.multiple else (left[-1] if left else "")
    save_record(app, tx, child, validate=False)


# ---- files of records

def file_key(collection_id, record_id, name):
    return f"{collection_id}/{record_id}/{name}"


def save_upload(app, key, upload, message=""):
    """Stores the content of an Upload. 400 with this message when the storage cannot take it."""
    try:
        app.storage.run(app.storage.save, key, upload.source, upload.mime, upload.original, quick=upload.size <= QUICK_BYTES)
    except OSError as error:        # a full disk, a storage that refuses
        LOG.error("%s was not stored: %s", key, error)
        raise bad_request(message, raw=str(error)) from None


def forget_uploads(app, keys):
    """Removes saved files again; one that cannot be removed now is left to `remove_orphan_files`."""
    for key in keys:
        try:
            app.storage.run(app.storage.delete, key)
        except OSError as error:
            LOG.warning("%s was not removed: %s", key, error)


def remove_files(app, collection_id, record_id, names):
    """Deletes stored files and their thumbs in the background."""
    def work(storage):
        for name in names:
            storage.delete(file_key(collection_id, record_id, name))
            storage.delete_prefix(file_key(collection_id, record_id, f"thumbs_{name}/"))
    app.storage.later(work, app.storage)


def remove_record_files(app, collection_id, record_id):
    app.storage.later(app.storage.delete_prefix, f"{collection_id}/{record_id}/")


ORPHAN_SECONDS = 86400      # files get this long to be named by a record: uploads are stored before their transaction
_ORPHAN_CHUNK = 1000
_COLLECTION_FOLDER = re.compile(r"pbc_[0-9]+").fullmatch


def remove_orphan_files(app):
    """Deletes stored files that no record names, which only a crash between a save and its commit can leave; how many.

    Folders that are no collection's stay, since programs keep files of their own beside, unless their name is one that only
    collections get."""
    storage, before, removed = app.storage, time.time() - ORPHAN_SECONDS, 0
    files = storage.list()
    while chunk := storage.run(lambda: list(itertools.islice(files, _ORPHAN_CHUNK))):
        named = _named_files(app, {tuple(file.key.split("/")[:2]) for file in chunk})
        for file in chunk:
            if file.modified < before and _is_orphan(app, named, file.key):
                storage.run(storage.delete, file.key)
                removed += 1
    storage.run(storage.delete_leftovers, before)
    return removed


def _named_files(app, places):
    """{(collection id, record id, name)} of all files that the records at these (collection id, record id) name."""
    named = set()
    for collection in app.schema.all:
        ids = sorted(place[1] for place in places if place[0] == collection.id and len(place) > 1)
        if ids and collection.file_fields and not collection.is_view:
            sql = f"SELECT {columns_sql(collection)} FROM {quote_name(collection.name)} WHERE `id` IN (SELECT value FROM json_each(?))"
            for record in (Record(collection, row) for row in app.store.read(sql, (to_json(ids),))):
                named.update((collection.id, record.id, name) for field in collection.file_fields for name in field.items(record[field.name]))
    return named


def _is_orphan(app, named, key):
    """Whether a key `collection/record/name` or `collection/record/thumbs_name/size_name` belongs to no record."""
    collection_id, *place = key.split("/")
    if app.schema.find_exact(collection_id) is None:
        return bool(place) and bool(_COLLECTION_FOLDER(collection_id))
    if len(place) == 3 and place[1].startswith("thumbs_"):
        place = [place[0], place[1].removeprefix("thumbs_")]
    return len(place) == 2 and (collection_id, *place) not in named


# ============================================================================
#  14. Mail
# ============================================================================
# Owns the text of an e-mail from template to wire: placeholders, the HTML page, the plain part derived from it, the MIME
# form, and the two ways out (SMTP, local sendmail). Knows no records: callers hand in names, types and values.
# Invariant: nothing that a visitor typed can add a header, a recipient or an SMTP command (CWE-93). Text is stripped of
# control characters or encoded, an address that could carry them is refused, and a placeholder inside a value stays text.
# May use chapters 1-2 only. Nothing here waits on a socket unless the caller asked for it: background mail goes through Outbox.



# kind of mail (the names of POST /api/settings/test/email): where the collection keeps the template, placeholders of its own
MAIL_TEMPLATES = {
    "verification": (("verificationTemplate",), ("TOKEN",)),
    "password-reset": (("resetPasswordTemplate",), ("TOKEN",)),
    "email-change": (("confirmEmailChangeTemplate",), ("TOKEN",)),
    "otp": (("otp", "emailTemplate"), ("OTP", "OTP_ID")),
    "login-alert": (("authAlert", "emailTemplate"), ("ALERT_INFO",)),
}

_PLACEHOLDER = re.compile(r"\{[A-Z_]+(?::\w+)?\}")
_RAW_TYPES = {"number", "bool", "date", "autodate"}  # their text can hold no markup
_JSON_TYPES = {"json", "geoPoint"}

MAIL_SOCKET_SECONDS = 15  # of silence; the login alert waits this long inside a request
MAIL_TOTAL_SECONDS = 60  # of a whole delivery, so that a server sending a byte now and then cannot hold it
_SENDMAIL_PATHS = ("/usr/sbin/sendmail", "/usr/bin/sendmail", "sendmail")
_UNENCRYPTED_HOSTS = ("localhost", "127.0.0.1", "::1")  # the only ones that get a password without TLS

_MAIL_PAGE = """
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1-strict.dtd">
<html xmlns="http://www.w3.org/1999/xhtml">
<head>
    <meta http-equiv="Content-Type" content="text/html; charset=UTF-8" />
    <meta name="viewport" content="width=device-width,initial-scale=1" />
    <style>
        body, html {
            padding: 0;
            margin: 0;
            border: 0;
            color: #16161a;
            background: #fff;
            font-size: 14px;
            line-height: 20px;
            font-weight: normal;
            font-family: Source Sans Pro, sans-serif, emoji;
        }
        body {
            padding: 20px 30px;
        }
        strong {
            font-weight: bold;
        }
        em, i {
            font-style: italic;
        }
        p {
            display: block;
            margin: 10px 0;
            font-family: inherit;
        }
        small {
            font-size: 12px;
            line-height: 16px;
        }
        hr {
            display: block;
            height: 1px;
            border: 0;
            width: 100%;
            background: #e1e6ea;
            margin: 10px 0;
        }
        a {
            color: inherit;
        }
        .hidden {
            display: none !important;
        }
        .btn {
            display: inline-block;
            vertical-align: top;
            border: 0;
            cursor: pointer;
            color: #fff !important;
            background: #16161a !important;
            text-decoration: none !important;
            line-height: 40px;
            width: auto;
            min-width: 150px;
            text-align: center;
            padding: 0 20px;
            margin: 5px 0;
            font-family: Source Sans Pro, sans-serif, emoji;
            font-size: 14px;
            font-weight: bold;
            border-radius: 6px;
            box-sizing: border-box;
        }
    </style>
</head>
<body>
    {BODY}
</body>
</html>
"""


class MailError(Exception):
    """A message that cannot be built or delivered. Its text may go to a superuser, never to a visitor."""


class MailMessage:
    """One message, open to changes (by hooks, for instance) until it is sent. Addresses are (name, address) pairs."""

    def __init__(self, sender, to, subject="", html="", text="", cc=(), bcc=(), headers=None, attachments=()):
        self.sender, self.to, self.cc, self.bcc = sender, list(to), list(cc), list(bcc)
        self.subject, self.html, self.text = subject, html, text
        self.headers = dict(headers or {})
        self.attachments = list(attachments)  # dicts: name, data (bytes), type, inline (bool)


# ---- templates

def mail_placeholders(kind, meta, fields=(), **own):
    """Return {placeholder: text} for one kind of mail.

    meta is the settings branch, fields yields (name, type, value) of the record's visible fields, own the kind's
    placeholders: mail_placeholders("otp", meta, fields, OTP="123456", OTP_ID="abc") -> {"{APP_NAME}": ..., "{OTP}": "123456", ...}
    """
    values = {"{APP_NAME}": meta["appName"], "{APP_URL}": meta["appURL"]}
    for name, field_type, value in fields:
        text = _placeholder_text(field_type, value)
        values[f"{{RECORD:{name}}}"] = text if field_type in _RAW_TYPES else _escape_html(text)
    for name in MAIL_TEMPLATES[kind][1]:
        values[f"{{{name}}}"] = _escape_html(own[name]) if name == "ALERT_INFO" else own[name]
    return values


def _placeholder_text(field_type, value):
    if field_type in _JSON_TYPES:
        return to_json(value)
    if value is None or isinstance(value, (list, tuple)):  # several values have no text
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        from decimal import Decimal
        text = format(Decimal(repr(value)), "f")  # 1e21 is written out
        return text.removesuffix(".0")
    return str(value)


def _escape_html(text):
    return (text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            .replace('"', "&#34;").replace("'", "&#39;"))


def resolve_template(text, values):
    """Replace the placeholders that values knows and leave all others as they are.

    resolve_template("Hi {RECORD:name} {X}", {"{RECORD:name}": "{TOKEN}"}) -> "Hi {TOKEN} {X}"
    One pass: a visitor who calls himself {TOKEN} gets his name printed, not a token put into a subject line.
    """
    return _PLACEHOLDER.sub(lambda found: values.get(found[0], found[0]), text)


def mail_page(body):
    """Wrap a resolved template into the HTML page that every system mail has."""
    return _MAIL_PAGE.replace("{BODY}", body)


# ---- the plain part
# A walk over tags, not a tree: only where a tag opens matters. Every element but the inline ones starts a line when the
# line has text already; <br> always does, <li> adds "- ", a link becomes [text](address). Closing a tag does nothing.

# no part of a tag may hold another <, which keeps the walk linear on "<a <a <a ..."
_HTML_TOKEN = re.compile(r"""<!--.*?(?:-->|\Z)|<[!?][^<>]*>|<(/?)([a-zA-Z][^\s/<>]*+)((?:[^<>"']|"[^"<]*"|'[^'<]*')*+)>|([^<]++|<)""", re.S)
_HTML_ATTRIBUTE = re.compile(r"""([^\s=/>"']++)(?:\s*=\s*("[^"]*"|'[^']*'|[^\s>"']++))?""")
_HTML_SPACES = re.compile(r"[ \t\r\n\f]+")
_MAIL_INLINE_TAGS = frozenset("a b body em frame head html i small span strike strong sub sup u".split())
_MAIL_DROPPED_TAGS = frozenset("applet button form iframe img input object option script select style svg template textarea".split())
_CHILDLESS_TAGS = frozenset("img input".split())
_RAW_TEXT_TAGS = frozenset("iframe script style textarea".split())  # < has no meaning in these
_TABLE_TAGS = frozenset("caption col colgroup tbody td tfoot th thead tr".split())  # mean nothing outside a table
_HEAD_TAGS = frozenset("base head html link meta noscript script style template title".split())


class _PlainText:
    """What html_to_text has written so far; a link collects its own text until it ends."""

    def __init__(self):
        self.parts, self.has_text, self.links = [], False, []
        self.tables, self.in_head, self.in_title = 0, True, False

    def write(self, text):
        text = _HTML_SPACES.sub(" ", text)
        if text != " " and not self.in_title:
            self.begin_body()
        if not self.has_text:
            text = text.lstrip(" ")
        if text:
            self.parts.append(text)
            self.has_text = True

    def new_line(self):
        self.parts.append("\r\n")
        self.has_text = False

    def open_block(self):
        if self.has_text:
            self.new_line()

    def begin_body(self):
        """The body starts a line, whether its tag is written or implied by what comes first."""
        if self.in_head:
            self.in_head = self.in_title = False
            self.open_block()

    def open_tag(self, name):
        if name not in _HEAD_TAGS:
            self.begin_body()
        self.in_title = self.in_head and name in ("title", "noscript")
        self.tables += name == "table"
        if name == "br":
            self.new_line()
        elif name not in _MAIL_INLINE_TAGS and (self.tables or name not in _TABLE_TAGS):
            self.open_block()
            if name == "li":
                self.parts.append("- ")

    def close_tag(self, name):
        if name == "a":
            self.close_link()
        self.tables -= name == "table"
        self.in_title = False

    def open_link(self, href):
        self.close_link()  # links do not nest
        self.links.append((href, self.parts))
        self.parts, self.has_text = [], False

    def close_link(self):
        if self.links:
            href, outer = self.links.pop()
            text = "".join(self.parts).strip() or "LINK"
            outer.append(f"[{text}]({href})" if href else f"[{text}]")
            self.parts, self.has_text = outer, True


def html_to_text(html):
    """Return the plain text of an HTML mail.

    html_to_text("<p>Hi <b>Ann</b></p><ul><li>one</li></ul><p><a href='u'>go</a>") -> "Hi Ann\\r\\n- one\\r\\n[go](u)"
    """
    from html import unescape  # 2 ms of entity tables
    out, at = _PlainText(), 0
    while at < len(html):
        token = _HTML_TOKEN.match(html, at)
        at = token.end()
        name = (token[2] or "").lower()
        if token[4] is not None:
            out.write(unescape(token[4]))
        elif token[1]:
            out.close_tag(name)
        elif name in _MAIL_DROPPED_TAGS:
            at = at if name in _CHILDLESS_TAGS or token[3].endswith("/") else _end_of_element(html, name, at)
        elif name:
            out.open_tag(name)
            if name == "a":
                out.open_link(_link_address(token[3], unescape))
    out.close_link()
    return "".join(out.parts).strip()


def _end_of_element(html, name, at):
    """Return the position behind the closing tag that belongs to the element opened before at, or the end of the text."""
    depth = 1
    for found in re.compile(rf"<(/?){name}\b[^>]*>", re.I).finditer(html, at):
        if found[1] or name not in _RAW_TEXT_TAGS:
            depth += -1 if found[1] else 1
        if depth == 0:
            return found.end()
    return len(html)


def _link_address(attributes, unescape):
    for name, value in _HTML_ATTRIBUTE.findall(attributes):
        if name.lower() == "href":
            return unescape(value[1:-1] if value[:1] in ("'", '"') else value)
    return ""


# ---- the wire form

_UNSAFE_TEXT = re.compile(r"[\x00\r\n]+")
_LINE_END = re.compile(r"\r\n?")  # a CR of its own must not reach SMTP, where servers disagree on it
_HEADER_NAME = re.compile(r"[!-9;-~]+\Z")  # RFC 5322 3.6.8: printable, no colon
_ADDRESS = re.compile(r"[^\s\x00-\x20\x7f<>(),:;\"\\]+\Z")  # what may stand between < and > unquoted
_NAME_SPECIALS = re.compile(r"[()<>\[\]:;@\\,.\"]")  # RFC 5322 3.2.3: in a name only between quotes
_Q_TEXT = frozenset(b"!\"#$%&'()*+,-./0123456789:;<>@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^`abcdefghijklmnopqrstuvwxyz{|}~")
_Q_NAME = frozenset(b"!*+-/0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")  # RFC 2047 5 (3): inside a name
_MESSAGE_ID_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def mail_message(meta, to, subject, html, **more):
    """Return a MailMessage from the sender of the settings (their meta branch) to one address."""
    return MailMessage((meta["senderName"], meta["senderAddress"]), [("", to)], subject, html, **more)


def build_message(message):
    """Return the MIME form (bytes, CRLF) of a MailMessage: mixed > alternative > plain, html; then attachments.

    Bcc stays out of it: those addresses live in the envelope only. Raises MailError for unsafe addresses and header names.
    """
    from email.utils import formatdate
    headers = {"From": _mailbox(*message.sender, quoted=False), "MIME-Version": "1.0",
               "Date": formatdate(usegmt=True).replace("GMT", "+0000"), "Subject": _header_text(message.subject)}
    for name, people in (("To", message.to), ("CC", message.cc)):
        if people:
            headers[name] = ",".join(_mailbox(*pair) for pair in people)
    for name, value in message.headers.items():
        if not _HEADER_NAME.match(name):
            raise MailError(f"invalid header name {name!r}")
        headers = {key: old for key, old in headers.items() if key.lower() != name.lower()}
        headers[name] = _header_text(value)
    domain = message.sender[1].rpartition("@")[2]
    if "message-id" not in map(str.lower, headers):
        headers["Message-ID"] = "<{}@{}>".format(random_text(15, _MESSAGE_ID_LETTERS), domain if domain.isascii() else "localhost")
    lines = [_folded("{}: {}".format(*item)) for item in headers.items() if item[0].lower() not in ("content-type", "content-transfer-encoding")]
    return "\r\n".join(lines + _mime_body(message)).encode()


def _mime_body(message):
    plain = message.text or html_to_text(message.html)
    bodies = [_text_part(subtype, text) for subtype, text in (("plain", plain), ("html", message.html)) if text]
    parts = [_mime_multipart("alternative", bodies)] if bodies else []
    parts += [_attachment_part(item) for item in message.attachments]
    return _mime_multipart("mixed", parts, "; charset=UTF-8") if parts else ["", ""]


def _mime_multipart(subtype, parts, more=""):
    """Return the lines of a multipart entity; its parts are lists of lines too. The boundary is too random to be in a part."""
    boundary = secrets.token_hex(30)
    lines = [f"Content-Type: multipart/{subtype};", f'\tboundary="{boundary}"{more}', ""]
    for part in parts:
        lines += ["--" + boundary] + part
    return lines + [f"--{boundary}--", ""]


def _text_part(subtype, text):
    import binascii
    encoded = binascii.b2a_qp(_LINE_END.sub("\n", text).encode(), istext=True).decode()  # RFC 2045 6.7, lines of 76
    return ["Content-Transfer-Encoding: quoted-printable", f"Content-Type: text/{subtype}; charset=UTF-8", "",
            encoded.replace("\n", "\r\n")]


def _attachment_part(item):
    name = _header_text(item["name"]).replace("\\", "\\\\").replace('"', '\\"')
    data = base64.b64encode(item["data"]).decode()
    names = f'\tfilename="{name}"; name="{name}"'
    return [f"Content-Disposition: {'inline' if item.get('inline') else 'attachment'};", names,
            f"Content-ID: <{name}>", "Content-Transfer-Encoding: base64",
            "Content-Type: {};".format(_UNSAFE_TEXT.sub("", item.get("type") or "application/octet-stream")), names, "",
            "\r\n".join(data[at:at + 60] for at in range(0, len(data), 60))]


def _header_text(text, plain_bytes=_Q_TEXT):
    """Return text fit for a header: CR, LF and NUL dropped, all that is not printable ASCII as RFC 2047 words.

    _header_text("Grüße") -> "=?UTF-8?q?Gr=C3=BC=C3=9Fe?="
    """
    text = _UNSAFE_TEXT.sub("", text)
    if "=?" not in text and all(" " <= char <= "~" or char == "\t" for char in text):
        return text
    words, word = [], ""
    for char in text:
        code = "_" if char == " " else "".join(chr(byte) if byte in plain_bytes else f"={byte:02X}" for byte in char.encode())
        if len(word) + len(code) > 63:  # RFC 2047 2: a word has 75 letters, frame included
            words.append(word)
            word = ""
        word += code
    return " ".join(f"=?UTF-8?q?{word}?=" for word in words + [word])


def _mailbox(name, address, quoted=True):
    """Return one address for a header, refusing what could end it early."""
    check_mail_address(address)
    name = _UNSAFE_TEXT.sub("", name or "")
    if not name:
        return address
    encoded = _header_text(name, _Q_NAME)
    if encoded == name and (quoted or _NAME_SPECIALS.search(name)):
        encoded = '"{}"'.format(name.replace("\\", "\\\\").replace('"', '\\"'))
    return f"{encoded} <{address}>"


def check_mail_address(address):
    """Raise MailError unless the address can stand in a header and in an SMTP command without changing either."""
    if not _ADDRESS.match(address):
        raise MailError(f"invalid mail address {address!r}")


def _folded(line):
    """Break a header that would pass the 998 octets of RFC 5322 2.1.1 behind a comma or at a space."""
    if len(line) <= 900:
        return line
    return re.sub(r"(.{1,900})(,| )", lambda found: found[1] + found[2].strip() + "\r\n ", line)


# ---- delivery

def send_mail(settings, message):
    """Deliver a MailMessage by SMTP or, when that is off, by the machine's sendmail. Raises MailError; waits at most a minute."""
    try:
        with gevent.Timeout(MAIL_TOTAL_SECONDS, MailError("mail delivery took too long")):
            if settings["smtp"]["enabled"]:
                _send_by_smtp(settings["smtp"], message)
            else:
                _send_by_sendmail(message)
    except (OSError, ValueError) as error:  # smtplib's errors and TLS ones are OSErrors; ValueError: a host that is no name
        raise MailError(_delivery_error(error, settings["smtp"])) from error


def _delivery_error(error, smtp):
    """Return the text a superuser sees for a failed test mail."""
    import smtplib
    import socket
    where = f"dial tcp {smtp['host']}:{smtp['port']}: "
    if isinstance(error, smtplib.SMTPResponseException):
        reply = error.smtp_error
        return f"{error.smtp_code} {to_json(reply.decode(errors='replace') if isinstance(reply, bytes) else reply)}"
    if isinstance(error, ConnectionRefusedError):
        return where + "connect: connection refused"
    if isinstance(error, socket.gaierror):
        return "dial tcp: lookup {}: no such host".format(smtp["host"])
    return where + "i/o timeout" if isinstance(error, TimeoutError) else str(error)


def _send_by_smtp(smtp, message):
    data = build_message(message)
    people = [address for _, address in message.to + message.cc + message.bcc]
    for address in people:
        check_mail_address(address)
    session = _open_smtp(smtp)
    try:
        if smtp["username"] or smtp.get("password"):
            _smtp_login(session, smtp)
        options = ["BODY=8BITMIME"] if session.has_extn("8bitmime") else []
        # RFC 6531 3.1: only a message that needs it, as the next hop may not know the extension
        if session.has_extn("smtputf8") and not all(map(str.isascii, [message.sender[1], *people])):
            options.append("SMTPUTF8")
        _expect(session.mail(message.sender[1], options), 250)
        for address in people:
            _expect(session.rcpt(address), 250, 251)
        _expect(session.data(data), 250)
    finally:
        _close_smtp(session)


def _open_smtp(smtp):
    import smtplib
    host, port, name = smtp["host"], smtp["port"], smtp["localName"] or "localhost"
    if smtp["tls"]:
        session = smtplib.SMTP_SSL(host, port, name, timeout=MAIL_SOCKET_SECONDS, context=_mail_tls())
    else:
        session = smtplib.SMTP(host, port, name, timeout=MAIL_SOCKET_SECONDS)
    try:
        session.command_encoding = "utf-8"  # for addresses beyond ASCII
        session.ehlo_or_helo_if_needed()
        session.encrypted = smtp["tls"]
        if not smtp["tls"] and session.has_extn("starttls"):
            session.starttls(context=_mail_tls())  # drops what was read before (CVE-2011-0411)
            session.encrypted = True
            session.ehlo_or_helo_if_needed()
    except BaseException:
        session.close()
        raise
    return session


def _mail_tls():
    import ssl
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"]:  # a bundled OpenSSL may look for the machine's list in the wrong place
        import certifi
        context.load_verify_locations(certifi.where())
    return context


def _smtp_login(session, smtp):
    """AUTH PLAIN (RFC 4616) or LOGIN. Without TLS only to this machine: else whoever strips STARTTLS reads the password."""
    if not session.encrypted and smtp["host"] not in _UNENCRYPTED_HOSTS:
        raise MailError("unencrypted connection")
    user, password = smtp["username"], smtp.get("password") or ""
    if smtp["authMethod"] == "LOGIN":
        _expect(session.docmd("AUTH", "LOGIN"), 334)
        _expect(session.docmd(_base64_text(user)), 334)
        _expect(session.docmd(_base64_text(password)), 235)
    else:
        _expect(session.docmd("AUTH", "PLAIN " + _base64_text(f"\0{user}\0{password}")), 235)


def _base64_text(text):
    return base64.b64encode(text.encode()).decode()


def _expect(reply, *codes):
    import smtplib
    if reply[0] not in codes:
        raise smtplib.SMTPResponseException(*reply)


def _close_smtp(session):
    """Say goodbye; the message is delivered or refused by now, so that an answer no longer matters."""
    try:
        session.sock and session.quit()
    except OSError:
        pass
    finally:
        session.close()


def _send_by_sendmail(message):
    import shutil
    import subprocess
    path = next(filter(None, map(shutil.which, _SENDMAIL_PATHS)), None)
    if path is None:
        raise MailError("failed to locate a sendmail executable path")
    try:
        done = subprocess.run([path, "-i", "-t"], input=_sendmail_input(message), capture_output=True, timeout=MAIL_TOTAL_SECONDS)
    except subprocess.TimeoutExpired:
        raise MailError("sendmail took too long") from None
    if done.returncode:
        raise MailError(f"exit status {done.returncode}")


def _sendmail_input(message):
    """Return headers (sendmail -t reads the recipients from them) and HTML; the full MIME form when that would lose something."""
    bcc = {"Bcc": ",".join(_mailbox(*pair) for pair in message.bcc)} if message.bcc else {}
    if message.attachments or message.headers:
        return "".join("{}: {}\r\n".format(*item) for item in bcc.items()).encode() + build_message(message)
    headers = {"Content-Type": "text/html; charset=UTF-8", "From": _mailbox(*message.sender),
               "Subject": _header_text(message.subject), **bcc}
    for name, people in (("To", message.to), ("Cc", message.cc)):
        if people:
            headers[name] = ",".join(_mailbox(*pair) for pair in people)
    lines = [_folded("{}: {}".format(*item)) for item in sorted(headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n" + (message.html or message.text)).encode()


class Outbox:
    """Mail that nobody waits for. Delivers in greenlets, a few at a time, in the order of posting."""

    def __init__(self, on_error, deliver=send_mail, at_once=4, waiting=10000):
        """on_error(error, message) hears of every failure; waiting is the number of posted messages that memory may hold."""
        self._on_error, self._deliver, self._waiting = on_error, deliver, waiting
        self._slots, self._running, self._open = BoundedSemaphore(at_once), Group(), True

    def post(self, settings, message, on_sent=None, on_failed=None):
        """Queue a message and return at once. on_sent() or on_failed(error) runs in the delivering greenlet afterwards."""
        if not self._open or len(self._running) >= self._waiting:
            self._failed(MailError("the outbox is closed or full"), message, on_failed)
        else:
            self._running.spawn(self._run, settings, message, on_sent, on_failed)

    def _run(self, settings, message, on_sent, on_failed):
        try:
            with self._slots:
                self._deliver(settings, message)
            if on_sent:
                on_sent()
        except gevent.GreenletExit:
            self._failed(MailError("the server stopped before the mail was sent"), message, on_failed)
        except Exception as error:  # one mail, or a hook on its way, must not end the others
            self._failed(error, message, on_failed)

    def _failed(self, error, message, on_failed):
        try:
            if on_failed:
                on_failed(error)
        finally:
            self._on_error(error, message)

    def stop(self, seconds):
        """Take nothing more, wait that long for what is queued, report the rest as failed. Return True when all was sent."""
        self._open = False
        self._running.join(seconds)
        done = not len(self._running)
        self._running.kill()
        return done


# ============================================================================
#  15. Identity
# ============================================================================
# Who is asking.  Tokens (JWT, HS256, keyed by the record's tokenKey and its
# collection's secret), password sign-in, and what every sign-in has in common:
# the IP list of superusers, authRule, the second factor, origins and alerts.
#
# A bad token is never an error here: its bearer is a guest, and the rules decide.

#: token type -> the collection option that holds its secret and duration.
TOKEN_OPTIONS = {"auth": "authToken", "file": "fileToken", "verification": "verificationToken", "passwordReset": "passwordResetToken",
                 "emailChange": "emailChangeToken"}
ORIGINS_KEPT = 5                # per record
USER_AGENT_BYTES = 200          # of it that count for the fingerprint
ALERT_SECONDS = 15              # a login waits this long for its alert mail


class Identities:
    """Verified tokens and loaded auth records, remembered until they expire or their table changes."""

    def __init__(self, app):
        self.app = app
        self._tokens = Memo(10_000)     # token -> (key it was verified with, claims)
        self._records = Memo(10_000)    # (collection id, record id) -> (stamp, collection, Record)
        self._fresh = Memo(10_000)      # key -> (second, token): a second's token is the same text

    def of_header(self, value):
        """The auth Record of an Authorization header, or None (guest)."""
        token = value.strip()
        if token[:7].lower() == "bearer ":
            token = token[7:]
        return self.of_token(token, "auth") if token else None

    def of_token(self, token, kind):
        """The auth Record that a valid token of this type belongs to, or None."""
        known = self._tokens.get(token)
        claims = known[1] if known else unverified_claims(token)
        if claims is None or claims["type"] != kind:
            return None
        record = self.record(claims["collectionId"], claims["id"])
        if record is None:
            return None
        key = token_key(record, kind)
        if known and known[0] == key:
            expires = claims.get("exp")
            return record if expires is None or expires > time.time() else None
        if not verify_token(token, key):
            return None
        self._tokens.keep(token, (key, claims))
        return record

    def claims(self, token):
        """The claims of a token, None when it is not shaped like one; says nothing about its signature."""
        known = self._tokens.get(token)
        return known[1] if known else unverified_claims(token)

    def record(self, collection_id, id):
        """A loaded auth record as of now; shared, so never changed by its users."""
        collection = self.app.schema.find(collection_id)
        if collection is None or not collection.is_auth:
            return None
        stamp = self.app.store.stamp((collection.name,))
        known = self._records.get((collection.id, id))
        if known and known[0] == stamp and known[1] is collection:
            return known[2]
        record = find_record(self.app.store, collection, id)
        if record is not None:
            self._records.keep((collection.id, id), (stamp, collection, record))
        return record

    def refreshed_token(self, record):
        """A refreshable auth token; made once a second and record, since all of a second's are the same text."""
        key, second = token_key(record, "auth"), int(time.time())
        known = self._fresh.get(key)
        if known and known[0] == second:
            return known[1]
        return self._fresh.keep(key, (second, new_token(record, "auth", refreshable=True)))[1]


def token_key(record, kind):
    return record.values["tokenKey"] + record.collection.options[TOKEN_OPTIONS[kind]]["secret"]


def new_token(record, kind, duration=0, **claims):
    """A signed token; `duration` in seconds, 0 for the collection's own."""
    import jwt              # 29 ms with what it draws in: not at start-up
    options = record.collection.options[TOKEN_OPTIONS[kind]]
    claims.update(collectionId=record.collection.id, id=record.id, type=kind, exp=int(time.time()) + (duration or options["duration"]))
    return jwt.encode(dict(sorted(claims.items())), token_key(record, kind), "HS256", sort_headers=True)


def token_payload(token):
    """What a token claims to say; {} for what is none."""
    parts = token.split(".")
    if len(parts) != 3 or "=" in parts[1] or len(token) > 8192:
        return {}
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def unverified_claims(token):
    """The payload of something shaped like one of our tokens, else None."""
    claims = token_payload(token)
    if "=" in token or not all(isinstance(claims.get(name), str) and claims[name] for name in ("id", "collectionId", "type")):
        return None
    return claims if isinstance(claims.get("exp", 0), (int, float)) and not isinstance(claims.get("exp"), bool) else None


def verify_token(token, key):
    """Signature and time claims; only HS256 is accepted (RFC 8725: never trust the header's alg)."""
    import jwt
    try:
        jwt.decode(token, key, algorithms=["HS256"], options={"verify_aud": False, "verify_iss": False, "verify_sub": False, "verify_jti": False})
    except (jwt.PyJWTError, ValueError, TypeError):
        return False
    return True


def satisfies_rule(app, db, info, collection, rule, id):
    """Whether the record with this id fulfils a rule text for the caller; null never does, "" always."""
    if not rule:
        return rule == ""
    query = plan_query(app.schema, collection, info, rule=rule)
    table = quote_name(collection.name)
    return bool(db.read(f"SELECT 1 FROM {table} {query.joins} WHERE ({query.where}) AND {table}.`id`=? LIMIT 1",
                        (*query.params_joins, *query.params_where, id)))


# ---- passwords

def find_by_identity(app, collection, identity, field_name=""):
    """The record that a sign-in's identity names, or None; the first identity field that knows it decides."""
    fields = collection.options["passwordAuth"]["identityFields"]
    if field_name:
        fields = [field_name]
    else:
        fields = sorted(fields, key=lambda name: name != "email")
        if not is_email(identity):
            fields = [name for name in fields if name != "email"]
    for name in fields:
        record = find_by_unique(app.store, collection, name, identity)
        if record is not None:
            return record
    return None


def find_by_unique(db, collection, name, value):
    """A record by a uniquely indexed column; letter case counts as that index says."""
    index = collection.unique_index(name)
    if index is None:
        raise ApiError(500, raw=f"the identity field {name} has no unique index")
    return find_record_by(db, collection, name, value, nocase=index.columns[0].collate.upper() == "NOCASE") if value else None


_DUMMY_PASSWORD = random_text(16)


def check_password(app, collection, record, password):
    """Whether the password is the record's; an unknown record costs the same time (an arbitrary record's hash is compared)."""
    if record is not None:
        return password_matches(app, password, record["password"])
    rows = app.store.read(f"SELECT `password` FROM {quote_name(collection.name)} LIMIT 1")
    password_matches(app, _DUMMY_PASSWORD, rows[0][0] if rows else "$2a$10$7EqJtq98hPqEX7fNZaFWoOhi5OvL7FGgPHQmVqLLQhFLiVLF5hG6K")
    return False


# ---- what every sign-in has in common

class SignIn:
    """One successful first step of a sign-in: who, by which method, from where."""

    __slots__ = ("record", "method", "meta", "mfa_id", "ip", "user_agent")

    def __init__(self, record, method, ip, user_agent, mfa_id="", meta=None):
        self.record, self.method, self.meta, self.mfa_id = record, method, meta, mfa_id
        self.ip, self.user_agent = ip, user_agent


class MfaNeeded(Exception):
    """The first factor was right; the client gets 401 with the id of the session for the second."""

    def __init__(self, id):
        super().__init__(id)
        self.id = id


def admit(app, info, record, ip):
    """The checks of every auth answer, refreshes included: the superusers' IP list and the authRule."""
    collection = record.collection
    if collection.name == SUPERUSERS and not superuser_ip_allowed(app, ip):
        raise forbidden()
    if not info.superuser and not satisfies_rule(app, app.store, info, collection, collection.auth_rule, record.id):
        raise forbidden("The request doesn't satisfy the collection requirements to authenticate.")


def superuser_ip_allowed(app, ip):
    listed = app.settings["superuserIPs"]
    return not listed or ip_listed(ip, listed)


def complete_sign_in(app, info, sign_in):
    """The rest of a sign-in after its factor was right: admission, second factor, origin. Raises MfaNeeded or ApiError."""
    admit(app, info, sign_in.record, sign_in.ip)
    _second_factor(app, info, sign_in)
    _remember_origin(app, sign_in)


def _second_factor(app, info, sign_in):
    record, collection = sign_in.record, sign_in.record.collection
    mfa = collection.options["mfa"]
    if not mfa["enabled"]:
        return
    if mfa["rule"]:
        try:
            if not satisfies_rule(app, app.store, info, collection, mfa["rule"], record.id):
                return
        except ValueError:
            raise bad_request("Failed to authenticate.") from None
    refs = {"collectionRef": collection.id, "recordRef": record.id}
    if not sign_in.mfa_id:
        session = app.transaction(lambda tx: save_system_record(app, tx, "_mfas", **refs, method=sign_in.method))
        raise MfaNeeded(session.id)
    refused = app.transaction(lambda tx: _use_mfa_session(app, tx, sign_in, mfa["duration"]))
    if refused:
        raise bad_request(refused)


def _use_mfa_session(app, tx, sign_in, duration):
    """Takes the session of the first factor away, so that it serves one sign-in only; returns why it does not, or None."""
    session = find_record(tx, app.schema.find("_mfas"), sign_in.mfa_id)
    if session is None:
        return "Invalid or expired MFA session."
    if is_older(session["created"], duration):
        delete_record(app, tx, session)
        return "Invalid or expired MFA session."
    if (session["recordRef"], session["collectionRef"]) != (sign_in.record.id, sign_in.record.collection.id):
        return "Invalid MFA session."
    if session["method"] == sign_in.method:
        return "A different authentication method is required."
    delete_record(app, tx, session)
    return None


def save_system_record(app, tx, name, **values):
    """A new row of a system collection."""
    record = Record(app.schema.find(name))
    for key, value in values.items():
        record[key] = value
    return save_record(app, tx, record)


def is_older(date, seconds):
    """Whether a stored date lies more than this many seconds back."""
    return date < date_text(time.time() - seconds)


def _remember_origin(app, sign_in):
    """Notes where a record signs in from; a new place is announced by mail first (never for the very first)."""
    record, alert = sign_in.record, sign_in.record.collection.options["authAlert"]
    if not alert["enabled"]:
        return
    agent = sign_in.user_agent.encode()
    agent = agent[:USER_AGENT_BYTES].decode("utf-8", "ignore") + "..." if len(agent) > USER_AGENT_BYTES else sign_in.user_agent
    fingerprint = hashlib.md5((sign_in.ip + agent).encode(), usedforsecurity=False).hexdigest()
    refs = {"collectionRef": record.collection.id, "recordRef": record.id}
    known = find_records(app.store, app.schema.find("_authOrigins"), **refs)
    match = next((origin for origin in known if origin["fingerprint"] == fingerprint), None)
    if match is None and known and record["email"] and not _send_alert(app, record, f"{now_text()} - {sign_in.ip} {agent}"):
        return
    app.transaction(lambda tx: _save_origin(app, tx, fingerprint, refs))


def _save_origin(app, tx, fingerprint, refs):
    """Notes or renews an origin as things stand now: other sign-ins may have come in between."""
    known = find_records(tx, app.schema.find("_authOrigins"), **refs)
    match = next((origin for origin in known if origin["fingerprint"] == fingerprint), None)
    if match is not None:
        return save_record(app, tx, match)
    for old in sorted(known, key=lambda origin: origin["created"])[:max(0, len(known) - ORIGINS_KEPT + 1)]:
        tx.write("DELETE FROM `_authOrigins` WHERE `id`=?", (old.id,))
    return save_system_record(app, tx, "_authOrigins", **refs, fingerprint=fingerprint)


def _send_alert(app, record, info):
    """Sends the login alert; a login waits for it at most ALERT_SECONDS. False when it could not be sent."""
    try:
        with gevent.Timeout(ALERT_SECONDS):
            send_mail(app.settings, record_mail(app, record, "login-alert", ALERT_INFO=info))
    except (MailError, OSError, gevent.Timeout) as error:
        LOG.warning("Failed to send the login alert: %s", error)
        return False
    return True


def record_mail(app, record, kind, to="", **own):
    """A message to a record from its collection's template of that kind (MAIL_TEMPLATES)."""
    template = record.collection.options
    for key in MAIL_TEMPLATES[kind][0]:
        template = template[key]
    fields = [(f.name, f.type, f.exported(record[f.name])) for f in record.collection.fields if not f.hidden]
    values = mail_placeholders(kind, app.settings["meta"], fields, **own)
    return mail_message(app.settings["meta"], to or record["email"], resolve_template(template["subject"], values),
                        mail_page(resolve_template(template["body"], values)))


# ---- tokens that a mail carries

def flow_record(app, db, token, kind, collection, needed_claim=""):
    """The record of a mailed token as `db` sees it now, and its claims; a FieldError (raised) says what is wrong with it."""
    needed = token_payload(token).get(needed_claim) if needed_claim else "none"
    if not needed or not isinstance(needed, str):
        raise CLAIM_ERRORS[needed_claim]()
    claims, record = unverified_claims(token), None
    if claims is not None and claims["type"] == kind:
        owner = app.schema.find(claims["collectionId"])
        record = find_record(db, owner, claims["id"]) if owner is not None and owner.is_auth else None
    if record is None or not verify_token(token, token_key(record, kind)):
        raise FieldError("validation_invalid_token", "Invalid or expired token.")
    if record.collection.id != collection.id:
        raise FieldError("validation_token_collection_mismatch", "The provided token is for different auth collection.")
    return record, claims


#: A claim that a token must carry -> the error without it.
CLAIM_ERRORS = {
    "email": lambda: FieldError("validation_invalid_token_claims", "Missing email token claim."),
    "newEmail": lambda: FieldError("validation_invalid_token_payload", "Invalid token payload - newEmail must be set."),
}


class RecentMails:
    """When a record was last sent a mail of a kind: no second one within MAIL_PAUSE seconds. Memory only, bounded."""

    def __init__(self):
        self._sent = {}

    def recent(self, kind, record):
        return time.monotonic() < self._sent.get((kind, record.collection.id, record.id), float("-inf")) + MAIL_PAUSE

    def note(self, kind, record):
        if len(self._sent) >= 10000:
            old = time.monotonic() - MAIL_PAUSE
            self._sent = {key: at for key, at in self._sent.items() if at > old}
        self._sent[kind, record.collection.id, record.id] = time.monotonic()

    def forget(self, kind, record):
        self._sent.pop((kind, record.collection.id, record.id), None)


MAIL_PAUSE = 120                # seconds between two mails of one kind to one record


def send_verification(app, record):
    """Mails a verification link in the background; silently none when one was sent lately."""
    if record["verified"] or app.recent_mails.recent("verification", record):
        return
    app.recent_mails.note("verification", record)
    token = new_token(record, "verification", email=record["email"])
    app.outbox.post(app.settings, record_mail(app, record, "verification", TOKEN=token))


def send_password_reset(app, record):
    """Mails a reset link in the background; only a mail that left counts for the pause."""
    if record["email"] == INSTALLER_EMAIL and record.collection.name == SUPERUSERS or app.recent_mails.recent("reset", record):
        return
    app.recent_mails.note("reset", record)
    token = new_token(record, "passwordReset", email=record["email"])
    mail = record_mail(app, record, "password-reset", TOKEN=token)
    app.outbox.post(app.settings, mail, on_failed=lambda error: app.recent_mails.forget("reset", record))


def confirm_verification(app, tx, collection, token):
    """Marks the token's record as verified; the token error goes to `data.token`."""
    record, claims = flow_record(app, tx, token, "verification", collection, "email")
    if claims["email"] != record["email"]:
        raise FieldError("validation_token_email_mismatch", "The record email doesn't match with the requested token claims.")
    app.recent_mails.forget("verification", record)
    if record["verified"]:
        return
    record["verified"] = True
    if not collection.options["passwordAuth"]["enabled"]:
        set_random_password(app, record)
    save_record(app, tx, record, validate=False)


def set_random_password(app, record):
    """A password nobody knows: whoever had the old one is out."""
    record.values["password"] = hash_password(app, random_text(30, ALPHANUMERIC), record.collection.by_name["password"].cost)
    refresh_token_key(record)


# ---- one-time passwords

OTP_TRIES = 5                   # guesses per record and client address ...
OTP_WINDOW = 180                # ... in this many seconds
OTP_LIVE = 10                   # unexpired one-time passwords a record can have
INVALID_OTP = "Invalid or expired OTP"


def request_otp(app, record):
    """Makes a one-time password and mails it in the background; returns its id. Over the cap it is the latest one's again."""
    code = random_text(record.collection.options["otp"]["length"], "0123456789")
    hashed = hash_password(app, code, 8)
    id, is_new = app.transaction(lambda tx: _save_or_reuse_otp(app, tx, record, code, hashed))
    if is_new:
        mail = record_mail(app, record, "otp", OTP=code, OTP_ID=id)
        app.outbox.post(app.settings, mail, on_sent=lambda: _note_otp_sent(app, id, record["email"]), on_failed=lambda error: _drop_otp(app, id))
    return id


def _save_or_reuse_otp(app, tx, record, code, hashed):
    rows = find_records(tx, app.schema.find("_otps"), collectionRef=record.collection.id, recordRef=record.id)
    live = [row for row in rows if not is_older(row["created"], record.collection.options["otp"]["duration"])]
    if len(live) >= OTP_LIVE and not app.dev:
        return max(live, key=lambda row: row["created"]).id, False
    return save_otp(app, tx, record, code, hashed).id, True


def save_otp(app, tx, record, code, hashed=""):
    """A new one-time password row of a record; the code itself is only kept as a hash."""
    row = Record(app.schema.find("_otps"))
    row.values.update(collectionRef=record.collection.id, recordRef=record.id, password=hashed)
    row.passwords["password"] = code
    return save_record(app, tx, row)


def _change_otp(app, id, change):
    def work(tx):
        row = find_record(tx, app.schema.find("_otps"), id)
        return row and change(tx, row)
    app.transaction(work)


def _note_otp_sent(app, id, email):
    def change(tx, row):
        row["sentTo"] = email
        save_record(app, tx, row, validate=False)
    _change_otp(app, id, change)


def _drop_otp(app, id):
    _change_otp(app, id, lambda tx, row: delete_record(app, tx, row))


def use_otp(app, collection, id, password, ip):
    """The record whose one-time password this is; the row is gone afterwards, whoever else presents it at the same moment."""
    row = find_record(app.store, app.schema.find("_otps"), id)
    duration = collection.options["otp"]["duration"]
    if row is None or row["collectionRef"] != collection.id or is_older(row["created"], duration):
        password_matches(app, password, DUMMY_OTP_HASH)
        raise bad_request(INVALID_OTP)
    record = find_record(app.store, collection, row["recordRef"])
    if record is None:
        raise bad_request(INVALID_OTP)
    if not app.otp_tries.allow((collection.id, record.id, network_of(ip)), OTP_TRIES, OTP_WINDOW):
        raise ApiError(429, "Too many attempts, please try again later with a new OTP.")
    if not password_matches(app, password, row["password"]):
        raise bad_request(INVALID_OTP)
    return app.transaction(lambda tx: _spend_otp(app, tx, collection, id))


DUMMY_OTP_HASH = "$2a$08$vyDyGsPqEpHhKtGzSQuFpODZYjxKp.d8RqcVzoJRgQGnxcWvWhTAe"     # of an unknown code, cost 8


def _spend_otp(app, tx, collection, id):
    row = find_record(tx, app.schema.find("_otps"), id)
    record = row and find_record(tx, collection, row["recordRef"])
    if record is None:                          # another request was faster
        raise bad_request(INVALID_OTP)
    delete_record(app, tx, row)
    if not record["verified"] and row["sentTo"] and row["sentTo"] == record["email"]:
        record["verified"] = True
        if not collection.options["mfa"]["enabled"]:
            set_random_password(app, record)
        save_record(app, tx, record, validate=False)
    return record


# ---- OAuth2 accounts

def linked_record(app, db, collection, provider, user, requester):
    """(record, its link or None) that a provider's user belongs to: by an earlier link, the requester, the e-mail; else (None, None)."""
    link = find_records(db, app.schema.find("_externalAuths"), collectionRef=collection.id, provider=provider, providerId=user["id"])
    if link:
        record = find_record(db, collection, link[0]["recordRef"])
        if record is not None:
            return record, link[0]
    if requester is not None and requester.collection.id == collection.id:
        return find_record(db, collection, requester.id), None
    record = find_by_unique(db, collection, "email", user["email"]) if user["email"] else None
    return record, None


def adopt_account(app, tx, record, link, provider, user, requester):
    """Links a provider's account to an existing record.

    A record that nobody verified may have been made by somebody else in wait for its victim: unless its owner asks, its password
    and tokens die and its other links go (CVE-2024-38351, CVE-2026-44166).
    """
    collection = record.collection
    is_owner = requester is not None and (requester.collection.id, requester.id) == (collection.id, record.id)
    if not record["verified"]:
        if not is_owner:
            set_random_password(app, record)
        tx.write("DELETE FROM `_externalAuths` WHERE `collectionRef`=? AND `recordRef`=?", (collection.id, record.id))
        link = None
        if not record["email"] and user["email"]:
            record["email"] = user["email"]
        if not record["email"] or record["email"] == user["email"]:
            record["verified"] = True
    elif not record["email"] and user["email"]:
        record["email"] = user["email"]
    if any(record.changed(name) for name in ("password", "email", "verified")):
        save_record(app, tx, record, validate=False)
    if link is None:
        link_account(app, tx, record, provider, user)
    return record


def link_account(app, tx, record, provider, user):
    return save_system_record(app, tx, "_externalAuths", collectionRef=record.collection.id, recordRef=record.id,
                              provider=provider, providerId=user["id"])


def account_data(collection, user, submitted):
    """The create data of a new account: what was submitted wins, then what the provider says of the mapped fields."""
    data = dict(submitted)
    mapped = collection.options["oauth2"]["mappedFields"]
    if not data.get("email"):
        data["email"] = user["email"]
    for key, value in (("id", user["id"]), ("name", user["name"]), ("username", user["username"]), ("avatarURL", user["avatarURL"])):
        field = mapped[key] and collection.field(mapped[key])
        if field and field.name not in data and value:
            data[field.name] = value
    return data


# ============================================================================
#  16. Operations
# ============================================================================
# What keeps a server healthy: rate limits and scheduled jobs.  Their state is plain
# memory of the one process that owns the data directory, and bounded.

WINDOWS_KEPT = 100_000          # (bucket, client) counters; a flood of addresses cannot take more memory


class Windows:
    """Fixed-window counters: `allow(key, most, seconds)`; a window starts at its first request."""

    def __init__(self, kept=WINDOWS_KEPT):
        self._kept = kept
        self._counts = {}               # key -> [start, seconds, count]

    def allow(self, key, most, seconds):
        """Counts one request; False when it is one too many."""
        now = int(time.monotonic())         # a clock that is set back must not lengthen a window
        window = self._counts.get(key)
        if window is None or now - window[0] >= seconds:
            if len(self._counts) >= self._kept:
                self._drop(now)
            self._counts.pop(key, None)
            window = self._counts[key] = [now, seconds, 0]
        window[2] += 1
        return window[2] <= most

    def _drop(self, now):
        """Lets go of windows that have ended; if that is not enough, of the oldest half."""
        self._counts = {key: w for key, w in self._counts.items() if now - w[0] < w[1]}
        for key in list(self._counts)[:len(self._counts) // 2 if len(self._counts) >= self._kept else 0]:
            del self._counts[key]

    def clear(self):
        self._counts.clear()


class RateLimiter:
    """The settings' rate limit rules applied to requests."""

    def __init__(self, app):
        self.app = app
        self.windows = Windows()
        app.events.on("settings_reload", self._reset, id="__pbRateLimiterReset__", priority=-100)

    def _reset(self, event):
        self.windows.clear()
        event.next()

    def check(self, call, pattern, tags, collection=None):
        """ApiError 429 when the client is over the limit of the one rule that applies.

        `pattern`: the route's path, `tags`: its actions (`create`, `auth`, ...), `collection`: that the path names, if any.
        """
        limits = self.app.settings["rateLimits"]
        if not limits["enabled"] or call.superuser or ip_listed(call.ip, limits["excludedIPs"]):
            return
        rule = self._rule(limits["rules"], self._labels(call, tags, collection), call.auth is not None)
        if rule is None:
            return
        bucket = (collection.id, call.method, pattern, tags, rule["audience"]) if collection else (rule["label"], rule["audience"])
        if not self.windows.allow((bucket, network_of(call.ip)), rule["maxRequests"], rule["duration"]):
            raise ApiError(429)

    @staticmethod
    def _labels(call, tags, collection):
        labels = [(f"{collection.name}:{tag}",) for tag in tags] + [(f"*:{tag}",) for tag in tags] if collection else []
        path = call.request.path if call.request is not None else call.path
        paths = (path,)
        if collection is not None:          # /api/collections/NAME/..., /api/files/NAME/...: by name or id, whatever the path and the rule have
            parts = path.split("/")
            paths = tuple("/".join((*parts[:3], name, *parts[4:])) for name in (collection.name, collection.id))
        return [*labels, tuple(f"{call.method} {path}" for path in paths), paths]

    @staticmethod
    def _rule(rules, labels, authenticated):
        """The first fitting rule: label by label, exact ones before prefixes (`/api/`)."""
        fits = [r for r in rules if r["audience"] == "" or (r["audience"] == "@auth") == authenticated]
        for spellings in labels:
            for rule in fits:
                if rule["label"] in spellings:
                    return rule
            for rule in fits:
                if rule["label"].endswith("/") and any((label + "/").startswith(rule["label"]) for label in spellings):
                    return rule
        return None


# ---- scheduled jobs

class Cron:
    """Jobs by id, run in UTC at the start of each minute that their expression names, each in a greenlet of its own."""

    def __init__(self):
        self.jobs = {}                  # id -> (expression, parsed, function)

    def add(self, id, expression, function):
        """Registers or replaces a job; ValueError for a bad expression."""
        self.jobs[id] = CRON_MACROS.get(expression, expression), parse_cron(expression), function

    def remove(self, id):
        self.jobs.pop(id, None)

    def listed(self):
        """[{"id", "expression"}]: the application's own by id, then the system's in the order of registration."""
        own = sorted(id for id in self.jobs if not id.startswith("__pb"))
        return [{"id": id, "expression": self.jobs[id][0]} for id in own + [id for id in self.jobs if id.startswith("__pb")]]

    def run(self, id):
        """Starts a job now, in the background."""
        gevent.spawn(self._run, id, self.jobs[id][2])

    @staticmethod
    def _run(id, function):
        try:
            function()
        except Exception:               # the boundary of a job
            LOG.exception("the job %s failed", id)

    def tick(self, now):
        """Starts the jobs that are due in the minute of an epoch second."""
        t = time.gmtime(now)
        present = (t.tm_min, t.tm_hour, t.tm_mday, t.tm_mon, (t.tm_wday + 1) % 7)
        for id, (_, allowed, function) in list(self.jobs.items()):
            if all(value in numbers for value, numbers in zip(present, allowed)):
                gevent.spawn(self._run, id, function)

    def run_forever(self):
        while True:
            gevent.sleep(60 - time.time() % 60)
            self.tick(time.time())


def register_system_jobs(app):
    """The jobs that every server has."""
    app.cron.add("__pbDBOptimize__", "0 0 * * *", functools.partial(optimize_databases, app))
    app.cron.add("__pbMFACleanup__", "0 * * * *", functools.partial(delete_expired, app, "_mfas", "mfa"))
    app.cron.add("__pbOTPCleanup__", "0 * * * *", functools.partial(delete_expired, app, "_otps", "otp"))


def start_services(app):
    """What a serving App has beside its data: remembered identities, limits, jobs, the outbox."""
    app.identities = Identities(app)
    app.rate_limiter, app.otp_tries = RateLimiter(app), Windows()
    app.recent_mails, app.apple_names = RecentMails(), {}
    app.outbox = Outbox(lambda error, message: LOG.error("a mail to %s was not sent: %s", ", ".join(address for _, address in message.to), error))
    app.cron = Cron()
    register_system_jobs(app)
    shutil.rmtree(app.temporary_directory, ignore_errors=True)      # what a crash left of uploads


def optimize_databases(app):
    for store in (app.store, app.logs):
        store.checkpoint("TRUNCATE")
    app.store.transaction(lambda tx: tx.heavy("PRAGMA optimize"))
    removed = remove_orphan_files(app)
    if removed:
        LOG.info("removed %d files that no record names", removed)


def delete_expired(app, name, option):
    """Deletes rows of a system collection that are older than their auth collection's duration."""
    for collection in [c for c in app.schema.all if c.is_auth]:
        limit = date_text(time.time() - collection.options[option]["duration"])

        def work(tx, collection=collection, limit=limit):
            expiring = app.schema.find(name)
            select = f"SELECT {columns_sql(expiring)} FROM {quote_name(name)} WHERE `collectionRef`=? AND `created`<?"
            for row in tx.read(select, (collection.id, limit)):
                delete_record(app, tx, Record(expiring, row))
        app.transaction(work)


# ============================================================================
#  17. Server
# ============================================================================
# Owns the HTTP/1 wire: accepting, parsing, the connection loop, requests, responses, WebSocket handshakes, static files.
# Invariant: a byte that is not plainly HTTP is refused with 400 and the connection closed; nothing a client sends can become part of the
# next request, hold a greenlet for ever, or stall another client. A handler's failure ends its request, never the server.
# May use Errors (chapter 2). Knows nothing of routes, records or settings: a handler maps a Request to a Response.
# Measured (CPython 3.11, wrk -c32, 50 bytes of JSON, a browser's head): 8 µs of CPU a request, half of it the kernel's; 15 with heads
# parsed each time, 11.5 with httptools (which is also not strict enough). Static file 23 µs, PocketBase 28.




try:
    import resource
except ImportError:  # Windows has no descriptor limit to raise
    resource = None


@dataclass(frozen=True)
class Limits:
    """What one client may cost: sizes in bytes, times in seconds, rates in bytes a second."""

    head_bytes: int = 1 << 20          # request line and header fields together, as PocketBase
    head_fields: int = 500             # nobody sends more; each costs a tuple
    head_seconds: float = 60           # from its first byte to the empty line (slowloris)
    idle_seconds: float = 75           # keep-alive without a request
    handshake_seconds: float = 10      # TLS
    body_grace: float = 30             # a body may pause this long in all ...
    body_rate: int = 1024              # ... plus what it has delivered at this rate
    write_seconds: float = 30          # without progress by a client that does not read
    drain_bytes: int = 256 << 10       # of an unread body, read to keep the connection; more closes it
    linger_seconds: float = 2          # after a refusal: read on, so that the client sees the answer and no reset
    chunk_line: int = 20 + 256         # size and extensions (RFC 9112 7.1.1 leaves the cap to us)
    trailer_bytes: int = 8192
    connections: int = 0               # 0: what the descriptor limit allows, less a reserve for files and databases
    descriptor_reserve: int = 200
    streak: int = 16                   # pipelined requests answered before others get their turn


NO_DEADLINE = float("inf")
RECV_BYTES = 65536
JOINED_BYTES = 65536       # head and body leave in one copy below this, by sendmsg above
SENDFILE_BYTES = 1 << 20   # one slice of a file; what the disk must deliver first is read in a native thread
LOCAL_SEND_BYTES = 1 << 17     # of a file under way to a client or proxy on this machine: no distance to fill, and what it reads
_LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")     # is still in the cache
ROUND_SECONDS = 0.001     # an answer waits for the others of its round of the hub no longer than this
MEMO_ENTRIES = 512
MEMO_BYTES = 2048          # longer heads are parsed every time


class ClientGone(Exception):
    """The client closed, or was cut for being too slow, before the request was read or the answer written."""


class BodyError(Exception):
    """The request body cannot be read to its end; the connection closes after the answer."""


class BodyTooLong(BodyError):
    """A body of unknown length went over the limit while it was read."""


class MalformedBody(BodyError):
    """The chunked coding of a body is broken (RFC 9112 7.1)."""


class _Refusal(Exception):
    """A head that is answered here and now: status line text and body are the argument."""


def raise_fd_limit():
    """Lift the soft limit of open descriptors to the hard one; returns the limit in force."""
    if resource is None:
        return 1 << 16
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1 << 20 if hard == resource.RLIM_INFINITY else hard
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # macOS says unlimited and means OPEN_MAX
        return soft
    return wanted


# ---- The head of a request: RFC 9112, strictly, parsed once for every distinct text

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_REQUEST_LINE = re.compile(rb"(%b+) ([\x21-\x7e\x80-\xff]+) HTTP/([0-9])\.([0-9])" % _TOKEN)
_FIELD_LINES = re.compile(rb"(?:%b++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+" % _TOKEN)
_SPACED_NAME = re.compile(rb"%b+[ \t]+[^\r\n:]*:" % _TOKEN)
_TABBED_CODING = re.compile(rb"(?im)^transfer-encoding:[^\r]*\t")
_BROKEN_HEAD = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r[^\n]|\n[ \t]")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?]*)(.*)", re.S)
_HOST = re.compile(r"[A-Za-z0-9!$%&'()*+,;=:\[\]._~-]*")
_VALID_PATH = re.compile(r"[A-Za-z0-9!$&'()*+,;=:@\[\]._~/%-]*")
_BAD = "400 Bad Request"
_FAILED = "500 Internal Server Error"
_TOO_MUCH = "431 Request Header Fields Too Large"
_PLAIN = (("Content-Type", "text/plain; charset=utf-8"),)


class _Line:
    """A parsed request line; shared by all requests that begin with it, never changed."""

    __slots__ = ("method", "target", "raw_path", "path", "query_string", "version", "authority", "location", "query")


class _Fields:
    """A parsed header block; shared by all requests that carry it, never changed."""

    __slots__ = ("headers", "first", "length", "chunked", "has_body", "close", "keep_alive", "expects", "hosts")


def _memoised(parse, memo):
    """`parse(raw)` remembered for short texts. Clients repeat their head, so a request costs two dict lookups, not 7 microseconds;
    a flood of distinct heads costs what parsing costs."""
    def parsed(raw):
        value = parse(raw)
        return memo.keep(raw, value) if len(raw) <= MEMO_BYTES else value
    return parsed


def _parse_line(raw):
    """`b"GET /a%20b?x=1 HTTP/1.1"` -> _Line. Raises _Refusal."""
    match = _REQUEST_LINE.fullmatch(raw)
    if not match:
        raise _Refusal(_BAD)
    method, target, major, minor = match.groups()
    if major != b"1":
        raise _Refusal("505 HTTP Version Not Supported: unsupported protocol version")
    line = _Line()
    line.method = method.decode("ascii")
    line.target = target.decode("utf-8", "replace")
    line.version = "1.0" if minor == b"0" else "1.1"
    line.authority, origin = _split_target(line.method, line.target)
    line.raw_path, _, line.query_string = origin.partition("?")
    if _BROKEN_ESCAPE.search(line.raw_path):
        raise _Refusal(_BAD)
    line.path = unquote_to_bytes(line.raw_path).decode("utf-8", "replace") if "%" in line.raw_path else line.raw_path
    line.location = clean_path(line.raw_path)
    line.query = None
    return line


def _split_target(method, target):
    """(authority or None, path and query): origin-form, absolute-form, and the asterisk of OPTIONS (RFC 9112 3.2)."""
    if target[0] == "/" or (target == "*" and method == "OPTIONS"):
        return None, target
    match = _ABSOLUTE.fullmatch(target)
    if not match:
        raise _Refusal(_BAD)
    authority, origin = match.groups()
    return authority or None, origin if origin[:1] == "/" else "/" + origin


def _parse_fields(raw):
    """`b"Host: x\\r\\nAccept: */*\\r\\n"` -> _Fields. Raises _Refusal on anything that two parsers could read differently."""
    if not _FIELD_LINES.fullmatch(raw):
        raise _Refusal(_BAD + ": invalid header name" if any(map(_SPACED_NAME.match, raw.split(b"\r\n"))) else _BAD)
    fields = _Fields()
    pairs = (line.partition(":") for line in raw.decode("utf-8", "replace").split("\r\n")[:-1])
    fields.headers = tuple((name.lower(), value.strip(" \t")) for name, _, value in pairs)
    fields.first = dict(reversed(fields.headers))
    names = [name for name, _ in fields.headers]
    fields.hosts = names.count("host")
    if fields.hosts > 1 or names.count("content-length") > 1 or names.count("transfer-encoding") > 1:
        raise _Refusal(_BAD)
    if not _HOST.fullmatch(fields.first.get("host", "")):
        raise _Refusal(_BAD + ": malformed Host header")
    options = {item.strip(" \t").lower() for name, value in fields.headers if name == "connection" for item in value.split(",")}
    fields.close, fields.keep_alive = "close" in options, "keep-alive" in options
    fields.expects = _expects_continue(fields.first.get("expect", ""))
    fields.length, fields.chunked = _body_framing(fields.first, raw)
    fields.has_body = fields.chunked or fields.length > 0
    return fields


def _expects_continue(value):
    if value and value.lower() != "100-continue":
        raise _Refusal("417 Expectation Failed")
    return bool(value)


def _body_framing(first, raw):
    """(length or None, chunked). Both fields together, a list, a sign, or any coding but `chunked` is smuggling (CVE-2024-1135)."""
    coding, length = first.get("transfer-encoding"), first.get("content-length")
    if coding is not None:
        if length is not None or coding.lower() != "chunked" or _TABBED_CODING.search(raw):
            raise _Refusal(_BAD)
        return None, True
    if length is None:
        return 0, False
    if not re.fullmatch("[0-9]{1,19}", length, re.A) or int(length) >= 1 << 63:
        raise _Refusal(_BAD)
    return int(length), False


_known_lines, _blocks = Memo(MEMO_ENTRIES), Memo(MEMO_ENTRIES)
_new_line, _new_fields = _memoised(_parse_line, _known_lines), _memoised(_parse_fields, _blocks)


def clean_path(raw_path):
    """Where a path with `//`, `/./` or `/../` really leads, or None if it is clean: `/a//b/../c` -> `/a/c`.
    Percent-encoded dots stay; text that is no valid path comes back encoded."""
    if raw_path == "/_":
        return "/_/"
    if ("//" not in raw_path and "/." not in raw_path) or raw_path == "*":
        return None
    if not _VALID_PATH.fullmatch(raw_path):
        raw_path = quote(unquote_to_bytes(raw_path), safe="$&+,/:;=@")
    cleaned = posixpath.normpath("/" + raw_path.lstrip("/"))
    if raw_path.endswith("/") and cleaned != "/":
        cleaned += "/"
    return None if cleaned == raw_path else cleaned


def parse_query(text):
    """`a=1&a=2&b=x+y` -> {"a": ["1", "2"], "b": ["x y"]}; pairs with `;` or a broken escape are dropped, as Go's net/url does."""
    query = {}
    for pair in text.split("&"):
        if not pair or ";" in pair or ("%" in pair and _BROKEN_ESCAPE.search(pair)):
            continue
        name, _, value = pair.partition("=")
        query.setdefault(_unquote_plus(name), []).append(_unquote_plus(value))
    return query


def _unquote_plus(text):
    text = text.replace("+", " ")
    return unquote_to_bytes(text).decode("utf-8", "replace") if "%" in text else text


# ---- Request and response

class Request:
    """One request. `path` is percent-decoded, `raw_path` and `query_string` are as sent, header names are lower case.
    `context` belongs to the application."""

    __slots__ = ("method", "target", "path", "raw_path", "query_string", "version", "connection", "context",
                 "_line", "_fields", "_query", "_stream", "_body", "_environ")

    def __init__(self, connection, line, fields):
        self.connection, self._line, self._fields = connection, line, fields
        self.method, self.target, self.path, self.raw_path = line.method, line.target, line.path, line.raw_path
        self.query_string, self.version = line.query_string, line.version
        self.context = self._query = self._stream = self._body = self._environ = None

    @property
    def remote_ip(self):
        """The peer's address; IPv6 in full: `0000:0000:0000:0000:0000:0000:0000:0001`."""
        return self.connection.remote_ip

    @property
    def scheme(self):
        return self.connection.scheme

    @property
    def headers(self):
        """All fields as a list of (lower-case name, value). An absolute-form target's authority is the host (RFC 9112 3.2.2)."""
        headers = list(self._fields.headers)
        if self._line.authority is None:
            return headers
        return [(name, value) for name, value in headers if name != "host"] + [("host", self._line.authority)]

    def header(self, name, default=""):
        """The first value of a field; the name in any case."""
        name = name.lower()
        if name == "host" and self._line.authority is not None:
            return self._line.authority
        return self._fields.first.get(name, default)

    def header_values(self, name):
        name = name.lower()
        return [value for key, value in self.headers if key == name]

    @property
    def query(self):
        """The query as {name: [values]}, this request's own copy."""
        if self._query is None:
            line = self._line
            if line.query is None:
                line.query = tuple(parse_query(line.query_string).items())
            self._query = {name: values[:] for name, values in line.query}
        return self._query

    @property
    def content_length(self):
        """Bytes of the body: 0 without one, None while the length of a chunked one is not known."""
        return self._fields.length if self._body is None else len(self._body)

    @property
    def chunked(self):
        return self._fields.chunked

    @property
    def stream(self):
        """The body as a file to read from, once. `read(n)` gives 1 to n bytes, b"" at the end."""
        if self._body is not None:
            return io.BytesIO(self._body)
        if self._stream is None:
            self._stream = BodyStream(self.connection, self._fields, self._fields.expects and self.version == "1.1")
        return self._stream

    def body(self, limit):
        """The whole body. Raises too_large() by the announced length, BodyTooLong when a chunked one goes over, ClientGone."""
        if self._body is None:
            if not self._fields.has_body:
                self._body = b""
            elif not self._fields.chunked and self._fields.length > limit:
                raise too_large()
            else:
                self._body = self.stream.read_all(limit)
        return self._body

    @property
    def environ(self):
        """The PEP 3333 view, for bottle's form parsing and gevent-websocket. A chunked body shows only after `body(limit)`:
        WSGI has no way to say that the length is unknown."""
        if self._environ is None:
            self._environ = _wsgi_environ(self)
        return self._environ


def _wsgi_text(text):
    """Text as PEP 3333 wants it: bytes disguised as latin-1."""
    return text if text.isascii() else text.encode("utf-8").decode("latin-1")


def _wsgi_environ(request):
    server = request.connection.server
    environ = {
        "REQUEST_METHOD": request.method, "SCRIPT_NAME": "", "PATH_INFO": _wsgi_text(request.path),
        "QUERY_STRING": _wsgi_text(request.query_string), "SERVER_NAME": server.host, "SERVER_PORT": str(server.port),
        "SERVER_PROTOCOL": "HTTP/" + request.version, "REMOTE_ADDR": request.remote_ip, "CONTENT_TYPE": request.header("content-type"),
        "wsgi.version": (1, 0), "wsgi.url_scheme": request.scheme, "wsgi.input": request.stream, "wsgi.errors": sys.stderr,
        "wsgi.multithread": False, "wsgi.multiprocess": False, "wsgi.run_once": False, "wsgi.input_terminated": True,
    }
    if request.content_length is not None:
        environ["CONTENT_LENGTH"] = str(request.content_length)
    for name, value in request.headers:
        if name not in ("content-type", "content-length", "transfer-encoding"):
            key = "HTTP_" + name.upper().replace("-", "_")
            environ[key] = environ[key] + "," + _wsgi_text(value) if key in environ else _wsgi_text(value)
    return environ


class Response:
    """What a handler returns. `body` is bytes, str, a FileBody, an Upgrade, or an iterator of bytes that is sent item by item:
    chunked on HTTP/1.1, or plain when `length` says how long it will be. Content-Length, Date and Connection are set by the server.
    Headers given as a tuple of pairs are encoded once and remembered."""

    __slots__ = ("status", "headers", "body", "length")

    def __init__(self, status=200, headers=(), body=b"", length=None):
        self.status, self.headers, self.body, self.length = status, headers, body, length


class FileBody:
    """`length` bytes of a file from `offset`, sent without copying them through Python. `file` is the open file, if there is one."""

    __slots__ = ("path", "offset", "length", "file")

    def __init__(self, path, offset, length, file=None):
        self.path, self.offset, self.length, self.file = path, offset, length, file


class Upgrade:
    """Hands the connection over: after the head is sent, `take(sock, leftover, request)` owns it until it returns."""

    __slots__ = ("take",)

    def __init__(self, take):
        self.take = take


_REASONS = {status.value: status.phrase for status in HTTPStatus} | {416: "Requested Range Not Satisfiable", 413: "Request Entity Too Large"}
_header_blocks = Memo(MEMO_ENTRIES)


def _encode_headers(headers):
    """Header lines as bytes. A line break inside a value becomes a space: no answer can be split by data."""
    text = "".join([f"{name}: {value}\r\n" for name, value in headers])
    if text.count("\n") != len(headers) or text.count("\r") != len(headers) or "\0" in text:
        clean = [(re.sub(r"[\r\n\0]", " ", name), re.sub(r"[\r\n\0]", " ", str(value))) for name, value in headers]
        text = "".join([f"{name}: {value}\r\n" for name, value in clean])
    return text.encode("utf-8", "replace")


def _head_start(version, status, headers):
    """Status line and header lines; remembered for headers that come as a tuple."""
    if type(headers) is not tuple:
        return b"HTTP/%b %d %b\r\n%b" % (version.encode(), status, _REASONS.get(status, "").encode(), _encode_headers(headers))
    key = (version, status, headers)
    found = _header_blocks.get(key)
    if found is None:
        found = _header_blocks.keep(key, _head_start(version, status, list(headers)))
    return found


# ---- The body of a request

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")


class BodyStream:
    """Reads one body off a connection; memory is bounded by what one recv brings. The bytes that follow it go back to the connection."""

    __slots__ = ("connection", "limits", "data", "at", "left", "chunked", "expects", "done", "broken", "received", "waited", "excess")

    def __init__(self, connection, fields, expects):
        self.connection, self.limits = connection, connection.limits
        self.data, self.at, connection.buffer = connection.buffer, 0, b""
        self.chunked, self.left = fields.chunked, fields.length or 0
        self.expects, self.done, self.broken = expects, False, None
        self.received, self.waited, self.excess = 0, 0.0, 0
        if not fields.has_body:
            self._finish()

    def read(self, size=-1):
        """1 to `size` bytes, b"" at the end; without a size all that is left."""
        if size is None or size < 0:
            return self.read_all(NO_DEADLINE)
        if self.done or size == 0:
            return b""
        if self.broken:
            raise self.broken
        try:
            return self._read_some(size)
        except (ClientGone, MalformedBody) as exc:
            self.broken = exc
            raise

    def read_all(self, limit):
        """Everything, at most `limit` bytes; raises BodyTooLong."""
        parts, total = [], 0
        while True:
            part = self.read(RECV_BYTES)
            if not part:
                return parts[0] if len(parts) == 1 else b"".join(parts)
            total += len(part)
            if total > limit:
                raise BodyTooLong()
            parts.append(part)

    def _read_some(self, size):
        if self.chunked and self.left == 0:
            self._next_chunk()
            if self.done:
                return b""
        if self.at >= len(self.data):
            self._receive()
        part = self.data[self.at:self.at + min(size, self.left)]
        self.at += len(part)
        self.left -= len(part)
        if self.left == 0:
            if self.chunked:
                self._expect_line_end()
            else:
                self._finish()
        return part

    def _receive(self):
        """Appends one recv; the client's time is counted, ours is not (RFC 9110 10.1.1: 100 goes out when the body is wanted)."""
        connection = self.connection
        if self.expects:
            self.expects = False
            connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        began = time.monotonic()
        connection.deadline = began + self.limits.body_grace + self.received / self.limits.body_rate - self.waited
        more = connection.receive()
        connection.deadline = NO_DEADLINE
        self.waited += time.monotonic() - began
        if not more:
            raise ClientGone()
        self.received += len(more)
        self.data, self.at = self.data[self.at:] + more if self.at < len(self.data) else more, 0

    def _line(self, limit):
        """(start, end) of the next line in `data`, without its CRLF."""
        while True:
            end = self.data.find(b"\r\n", self.at)
            if (len(self.data) if end < 0 else end) - self.at > limit:
                raise MalformedBody()
            if end >= 0:
                start, self.at = self.at, end + 2
                return start, end
            if self.data.find(b"\n", self.at) >= 0:
                raise MalformedBody()
            self._receive()

    def _next_chunk(self):
        start, end = self._line(self.limits.chunk_line)
        match = _CHUNK_LINE.fullmatch(self.data, start, end)
        if not match:
            raise MalformedBody()
        self.left = int(match[1], 16)
        self.excess = max(0, self.excess + end - start - 16 - 2 * self.left)
        if self.excess > 16384:  # extensions on tiny chunks: work without data
            raise MalformedBody()
        if self.left == 0:
            self._skip_trailers()
            self._finish()

    def _expect_line_end(self):
        while len(self.data) - self.at < 2:
            if self.data[self.at:] not in (b"", b"\r"):
                raise MalformedBody()
            self._receive()
        if self.data[self.at:self.at + 2] != b"\r\n":
            raise MalformedBody()
        self.at += 2

    def _skip_trailers(self):
        """Trailer fields are checked and dropped: what is no field must not pass for the next request (CVE-2023-41419)."""
        room = self.limits.trailer_bytes
        while True:
            start, end = self._line(room)
            if start == end:
                return
            if not _FIELD_LINES.fullmatch(self.data, start, end + 2):
                raise MalformedBody()
            room -= end - start

    def _finish(self):
        self.done = True
        self.connection.buffer, self.data = self.data[self.at:], b""

    def drain(self, limit):
        """Read on to the end of the body, at most `limit` bytes; whether the connection can serve another request."""
        if not self.done and (self.expects or self.broken or self.left > limit):
            return False
        try:
            while not self.done:
                limit -= len(self.read(RECV_BYTES))
                if limit < 0:
                    return False
        except (ClientGone, MalformedBody):
            return False
        return True


# ---- Connections

class Connection:
    """One TCP connection and its greenlet. `deadline` is all it does about time: the server's sweeper cuts who is late."""

    __slots__ = ("server", "limits", "sock", "raw", "recv", "send", "loop", "reader", "writer", "wake", "greenlet", "to_hub", "buffer",
                 "deadline", "idle", "peer", "_remote_ip", "__weakref__")
    scheme = "http"

    def __init__(self, server, sock, peer):
        hub = gevent.get_hub()
        self.server, self.limits, self.sock, self.peer = server, server.limits, sock, peer
        self.raw = sock._sock
        self.recv, self.send = self.raw.recv, self.raw.send
        self.loop = hub.loop
        self.reader, self.writer = hub.loop.io(self.raw.fileno(), 1), None
        self.greenlet = gevent.getcurrent()
        self.wake, self.to_hub = self.greenlet.switch, hub.switch
        self.buffer, self.deadline, self.idle, self._remote_ip = b"", NO_DEADLINE, True, None

    @property
    def remote_ip(self):
        if self._remote_ip is None:
            address = ipaddress.ip_address(self.peer[0].partition("%")[0])
            self._remote_ip = (getattr(address, "ipv4_mapped", None) or address).exploded
        return self._remote_ip

    # -- bytes in and out

    def receive(self):
        """The next bytes, b"" at the end. Waits on the hub first: the data is nearly never there yet, and asking costs an exception."""
        reader = self.reader
        while True:
            reader.start(self.wake)
            try:
                self.to_hub()
            finally:
                reader.stop()
            try:
                return self.recv(RECV_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                return b""

    def write(self, data):
        """All of `data`; raises ClientGone."""
        try:
            sent = self.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            raise ClientGone() from None
        if sent != len(data):
            self._write_rest(memoryview(data)[sent:])

    def write_both(self, head, body):
        """Head and body in one segment if they are small, without copying the body if it is not."""
        if len(body) <= JOINED_BYTES:
            return self.write(head + body)
        if not hasattr(self.raw, "sendmsg"):  # Windows
            self.write(head)
            return self.write(body)
        try:
            sent = self.raw.sendmsg((head, body))
        except BlockingIOError:
            sent = 0
        except OSError:
            raise ClientGone() from None
        if sent < len(head):
            self.write(head[sent:])
            sent = len(head)
        self._write_rest(memoryview(body)[sent - len(head):])

    def _write_rest(self, view):
        while view:
            self._wait_writable()
            try:
                view = view[self.send(view):]
            except BlockingIOError:
                continue
            except OSError:
                raise ClientGone() from None

    def _wait_writable(self):
        if self.writer is None:
            self.writer = gevent.get_hub().loop.io(self.raw.fileno(), 2)
        before, self.deadline = self.deadline, self.server.clock + self.limits.write_seconds
        self.writer.start(self.wake)
        try:
            self.to_hub()
        finally:
            self.writer.stop()
            self.deadline = before

    def write_file(self, file, offset, length):
        """A part of an open file by sendfile, slice by slice, each after a pass of the hub."""
        if not hasattr(os, "sendfile") or not isinstance(file, io.FileIO):  # Windows; a file that is not on this disk
            return self.copy_file(file, offset, length)
        out, source, end = self.raw.fileno(), file.fileno(), offset + length
        if length > LOCAL_SEND_BYTES and self.peer[0] in _LOOPBACK:
            self.raw.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_SNDBUF, LOCAL_SEND_BYTES)
        while offset < end:
            _bring_to_memory(source, offset, min(end - offset, SENDFILE_BYTES))
            try:
                sent = os.sendfile(out, source, offset, min(end - offset, SENDFILE_BYTES))
            except BlockingIOError:
                self._wait_writable()
                continue
            except OSError:
                raise ClientGone() from None
            if sent == 0:  # the file shrank under us: the promised length cannot be kept
                raise ClientGone()
            offset += sent
            if offset < end:
                gevent.sleep(0)

    def copy_file(self, file, offset, length):
        """The same by reading and writing."""
        file.seek(offset)
        while length > 0:
            data = file.read(min(length, JOINED_BYTES))
            if not data:
                raise ClientGone()
            length -= len(data)
            self.write(data)
            gevent.sleep(0)

    # -- the loop

    def run(self):
        streak = 0
        while True:
            if self.buffer:
                streak += 1
                if streak >= self.limits.streak:
                    streak = 0
                    gevent.sleep(0)
            else:
                streak = 0
            try:
                head = self._next_head()
            except _Refusal as refusal:
                return self._refuse(refusal.args[0])
            if head is None or not self._serve(*head):
                return

    def _next_head(self):
        """(line, fields) of the next request, None at the end of the connection. Raises _Refusal."""
        data, server = self.buffer, self.server
        if not data:
            self.idle = True
            if server.stopping:
                return None
            self.deadline = server.clock + self.limits.idle_seconds
            data = self.receive()
            if not data:
                return None
            self.idle = False
        end = data.find(b"\r\n\r\n")
        if end < 0 or end > self.limits.head_bytes:
            data, end = self._collect_head(data)
            if end < 0:
                return None
        self.deadline = NO_DEADLINE
        start = data.find(b"\r\n")
        raw_line, raw_fields = data[:start], data[start + 2:end + 2]
        line = _known_lines.get(raw_line) or _new_line(raw_line)
        fields = _blocks.get(raw_fields) or self._new_fields(raw_fields)
        self.buffer = data[end + 4:]
        return line, fields

    def _new_fields(self, raw):
        if raw.count(b"\n") > self.limits.head_fields:
            raise _Refusal(_TOO_MUCH)
        return _new_fields(raw)

    def _collect_head(self, data):
        """(bytes, end of head) once the empty line is there; refuses early what can never become a head. End -1: the client left."""
        data, seen, limit = bytearray(data), 0, self.limits.head_bytes
        self.deadline = self.server.clock + self.limits.head_seconds
        while True:
            end = data.find(b"\r\n\r\n", max(0, seen - 3))
            if (len(data) if end < 0 else end) > limit:
                raise _Refusal(_TOO_MUCH)
            if end >= 0:
                return bytes(data), end
            if _BROKEN_HEAD.search(data, max(0, seen - 1)):
                raise _Refusal(_BAD)
            seen = len(data)
            more = self.receive()
            if not more:
                return b"", -1
            data += more

    def _serve(self, line, fields):
        """Answer one request; whether the connection goes on."""
        if fields.hosts == 0 and line.version == "1.1":
            return self._refuse(_BAD + ": missing required Host header")
        if fields.chunked and line.version == "1.0":
            return self._refuse(_BAD)  # RFC 9112 6.1: faulty framing
        request = Request(self, line, fields)
        if line.location is not None:
            response = _path_redirect(request)
        elif line.target == "*":
            response = Response(200)
        else:
            response = self._call_handler(request)
        if response is None:
            return False
        return self._respond(request, response, fields)

    def _call_handler(self, request):
        try:
            return self.server.handler(request)
        except ClientGone:
            return None
        except BodyError:
            return Response(400, _PLAIN, _BAD)
        except Exception as exc:
            self.server.on_error(exc, request)
            return Response(500, _PLAIN, _FAILED)

    def _respond(self, request, response, fields):
        stream = request._stream
        if not fields.has_body:
            keep = True
        elif stream is None:
            keep = not fields.expects and (fields.chunked or fields.length <= self.limits.drain_bytes)
        else:
            keep = stream.done or not (stream.broken or stream.expects or stream.left > self.limits.drain_bytes)
        if self.server.stopping or fields.close or (request.version == "1.0" and not fields.keep_alive):
            keep = False
        keep = self._send_response(request, response, keep)
        if fields.has_body and (stream is None or not stream.done):
            if not keep:
                self._linger()
            else:
                keep = request.stream.drain(self.limits.drain_bytes)
        return keep

    def _send_response(self, request, response, keep):
        body, status, version = response.body, response.status, request.version
        if type(body) is str:
            body = body.encode("utf-8", "replace")
        start = _head_start(version, status, response.headers)
        if type(body) is bytes:
            return self._send_bytes(request, start, status, body, keep)
        if type(body) is Upgrade:
            return self._hand_over(request, start, body)
        if type(body) is FileBody:
            return self._send_file(request, start, body, keep)
        return self._send_items(request, start, body, response.length, keep)

    def _tail(self, version, keep, framing):
        """The end of a head: framing, date and what becomes of the connection."""
        if not keep:
            return self.server.date_line + framing + (b"Connection: close\r\n\r\n" if version == "1.1" else b"\r\n")
        return self.server.date_line + framing + (b"\r\n" if version == "1.1" else b"Connection: keep-alive\r\n\r\n")

    def _send_bytes(self, request, start, status, body, keep):
        if status == 204 or status == 304:
            framing, body = b"", b""
        else:
            framing = b"Content-Length: %d\r\n" % len(body)
        head = start + self._tail(request.version, keep, framing)
        self._let_others_finish()
        if body and request.method != "HEAD":
            self.write_both(head, body)
        else:
            self.write(head)
        return keep

    def _let_others_finish(self):
        """Answers of requests that came in together leave together, so that who reads them wakes up once: waking a sleeping
        process costs as much as answering. Not when this round of the hub has taken long: then nobody's answer waits."""
        if time.time() - self.loop.now() < ROUND_SECONDS:
            turn = self.loop.run_callback(self.wake)
            try:
                self.to_hub()
            finally:
                turn.stop()

    def _send_file(self, request, start, body, keep):
        try:
            opened = body.file or open(body.path, "rb")
        except OSError as exc:
            self.server.on_error(exc, request)
            return self._send_response(request, Response(500, _PLAIN, _FAILED), keep)
        with opened as file:
            self.write(start + self._tail(request.version, keep, b"Content-Length: %d\r\n" % body.length))
            if request.method != "HEAD":
                self.write_file(file, body.offset, body.length)
        return keep

    def _send_items(self, request, start, items, length, keep):
        chunked = length is None and request.version == "1.1"
        keep = keep and (chunked or length is not None)
        framing = b"Transfer-Encoding: chunked\r\n" if chunked else b"" if length is None else b"Content-Length: %d\r\n" % length
        sent = 0
        try:
            self.write(start + self._tail(request.version, keep, framing))
            if request.method != "HEAD":
                self._watch_peer(request)
                for item in items:
                    if item:
                        self.write(b"%x\r\n%b\r\n" % (len(item), item) if chunked else item)
                        sent += len(item)
                if chunked:
                    self.write(b"0\r\n\r\n")
                elif length is not None and sent != length:
                    return False
        except ClientGone:
            return False
        except Exception as exc:
            self.server.on_error(exc, request)
            return False
        finally:
            self.reader.stop()
            close = getattr(items, "close", None)
            if close:
                close()
        return keep

    def _watch_peer(self, request):
        """While a stream is sent nobody reads; notice the client's leaving, so that the generator ends at once and not at its next item."""
        if not request._fields.has_body:
            self.reader.start(self._peer_stirred)

    def _peer_stirred(self):
        self.reader.stop()
        try:
            gone = not self.raw.recv(1, std_socket.MSG_PEEK)
        except BlockingIOError:
            return self.reader.start(self._peer_stirred)
        except OSError:
            gone = True
        if gone:
            self.greenlet.kill(ClientGone, block=False)

    def _hand_over(self, request, start, upgrade):
        self.write(start + self.server.date_line + b"\r\n")
        leftover, self.buffer = self.buffer, b""
        try:
            upgrade.take(self.sock, leftover, request)
        except (ClientGone, OSError):
            return False
        except Exception as exc:
            self.server.on_error(exc, request)
        return False

    # -- the end

    def _refuse(self, text):
        """A head we do not accept: plain text, close, and read on a little so that a reset cannot overtake the answer."""
        status = text.encode()
        self.write(b"HTTP/1.1 %b\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n%b" % (status, status))
        self._linger()
        return False

    def _linger(self):
        self.deadline, left = self.server.clock + self.limits.linger_seconds, self.limits.drain_bytes
        try:
            self.raw.shutdown(std_socket.SHUT_WR)
        except OSError:
            return
        while left > 0:
            more = self.receive()
            if not more:
                return
            left -= len(more)

    def cut(self):
        """End the connection from outside: its greenlet wakes up and finds the socket dead."""
        self.deadline = NO_DEADLINE
        try:
            self.raw.shutdown(std_socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self):
        self.reader.close()
        if self.writer is not None:
            self.writer.close()
        self.sock.close()


def _bring_to_memory(descriptor, offset, length):
    """Reads a slice of a file in a native thread unless its ends are in the page cache: sendfile would hold the hub until the disk answers."""
    if not hasattr(os, "RWF_NOWAIT"):       # Linux only
        return
    byte = bytearray(1)
    try:
        for place in (offset, offset + length - 1):
            os.preadv(descriptor, (byte,), place, os.RWF_NOWAIT)
    except BlockingIOError:
        in_thread(gevent.get_hub().threadpool, os.pread, descriptor, length, offset)
    except OSError:                         # a file system that cannot tell
        pass


class TlsConnection(Connection):
    """The same over TLS: OpenSSL wants to do the reading and writing itself."""

    __slots__ = ()
    scheme = "https"

    def handshake(self, context):
        self.deadline = self.server.clock + self.limits.handshake_seconds
        self.sock = context.wrap_socket(self.sock, server_side=True, do_handshake_on_connect=False)
        self.raw = self.sock._sock
        self.sock.do_handshake()

    def receive(self):
        try:
            return self.sock.recv(RECV_BYTES)
        except OSError:
            return b""

    def write(self, data):
        before = self.deadline
        try:
            for at in range(0, len(data), JOINED_BYTES):
                self.deadline = self.server.clock + self.limits.write_seconds
                self.sock.sendall(data[at:at + JOINED_BYTES])
        except OSError:
            raise ClientGone() from None
        finally:
            self.deadline = before

    def write_both(self, head, body):
        if len(body) <= JOINED_BYTES:
            return self.write(head + body)
        self.write(head)
        self.write(body)

    write_file = Connection.copy_file

    def _peer_stirred(self):
        """A peek would show ciphertext only: read, and keep what turns out to be the next request."""
        self.reader.stop()
        try:
            data = self.sock._sslobj.read(RECV_BYTES)
        except ssl.SSLWantReadError:
            return self.reader.start(self._peer_stirred)
        except (OSError, ValueError):
            data = b""
        self.buffer += data
        if not data:
            self.greenlet.kill(ClientGone, block=False)



def _path_redirect(request):
    location = request._line.location + ("?" + request.query_string if request.query_string else "")
    if request.method not in ("GET", "HEAD"):
        return Response(307, [("Location", location)])
    link = html.escape(location).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
    return Response(307, [("Content-Type", "text/html; charset=utf-8"), ("Location", location)],
                    f'<a href="{link}">Temporary Redirect</a>.\n\n')


def _print_error(exc, request):
    traceback.print_exception(exc)


class HttpServer:
    """Serves `handler(request) -> Response`, a greenlet a connection.

        server = HttpServer(handler, "127.0.0.1", 0)
        server.start(); print(server.port); ...; server.stop()

    `closing` is set when the server stops: streams that watch it end cleanly. `on_error(exc, request)` hears what handlers let escape."""

    def __init__(self, handler, host, port, *, ssl_context=None, limits=Limits(), on_error=_print_error):
        self.handler, self.host, self.port = handler, host, port
        self.ssl_context, self.limits, self.on_error = ssl_context, limits, on_error
        self.connections, self.closing, self.stopping = set(), gevent.event.Event(), False
        self._accepter = self._sweeper = None
        self._tick()

    def start(self):
        """Bind and accept. Raises OSError (EADDRINUSE) when the port is taken."""
        listener = _listen(self.host, self.port)
        self.port = listener.getsockname()[1]
        self._most = self.limits.connections or max(16, raise_fd_limit() - self.limits.descriptor_reserve)
        self._accepter = StreamServer(listener, self._connected)
        self._accepter.start()
        self._sweeper = gevent.spawn(self._sweep)

    def stop(self, grace=1.0):
        """Stop accepting, close idle connections, let open requests end within `grace` seconds, then cut them."""
        self.stopping = True
        self.closing.set()
        if self._accepter is not None:
            self._accepter.close()
        for connection in list(self.connections):
            if connection.idle:
                connection.cut()
        until = time.monotonic() + grace
        while self.connections and time.monotonic() < until:
            gevent.sleep(0.01)
        late = [connection for connection in self.connections if connection.greenlet is not gevent.getcurrent()]
        for connection in late:
            connection.cut()
        gevent.sleep(0)
        gevent.killall([connection.greenlet for connection in late], block=True, timeout=1)
        if self._sweeper is not None:
            self._sweeper.kill()

    def _connected(self, sock, peer):
        if len(self.connections) >= self._most:
            return
        sock._sock.setsockopt(std_socket.IPPROTO_TCP, std_socket.TCP_NODELAY, 1)
        connection = (Connection if self.ssl_context is None else TlsConnection)(self, sock, peer)
        self.connections.add(connection)
        try:
            if self.ssl_context is not None:
                connection.handshake(self.ssl_context)
            connection.run()
        except (ClientGone, OSError):
            pass
        except Exception as exc:
            self.on_error(exc, None)
        finally:
            self.connections.discard(connection)
            connection.close()

    def _sweep(self):
        """Once a second: the clock, the Date line, and an end to every connection that is late. Requests pay no timer."""
        while True:
            gevent.sleep(1)
            self._tick()
            for connection in list(self.connections):
                if connection.deadline < self.clock:
                    connection.cut()

    def _tick(self):
        self.clock = time.monotonic()
        self.date_line = b"Date: %b\r\n" % formatdate(usegmt=True).encode()


def _listen(host, port):
    """A listening socket; no host means every address, IPv4 and IPv6."""
    if not host:
        family, address = (std_socket.AF_INET6, ("::", port)) if std_socket.has_dualstack_ipv6() else (std_socket.AF_INET, ("0.0.0.0", port))
    else:
        found = std_socket.getaddrinfo(host.strip("[]"), port, type=std_socket.SOCK_STREAM)
        family, address = found[0][0], found[0][4]
    sock = gevent_socket.socket(family, std_socket.SOCK_STREAM)
    try:
        if os.name != "nt":  # there it would let two servers share a port
            sock.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_REUSEADDR, 1)
        if not host and family == std_socket.AF_INET6:
            sock.setsockopt(std_socket.IPPROTO_IPV6, std_socket.IPV6_V6ONLY, 0)
        sock.bind(address)
        sock.listen(1024)
    except BaseException:
        sock.close()
        raise
    sock.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_KEEPALIVE, 1)  # inherited: finds the dead peers of silent streams
    sock.setblocking(False)
    return sock


# ---- WebSocket: RFC 6455 handshake; frames by gevent-websocket

_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def websocket_accept(request, talk, *, protocols=(), max_message=1 << 20):
    """The Response to a WebSocket handshake: 101 and `talk(websocket)` with geventwebsocket's WebSocket (`receive()` gives None at
    the end, `send(text or bytes)`), or the refusal that RFC 6455 4.2 asks for. A message over `max_message` bytes closes with 1009."""
    if not _asks_for_websocket(request):
        return Response(400, _PLAIN, _BAD)
    if request.header("sec-websocket-version") != "13":
        return Response(426, _PLAIN + (("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket")), "426 Upgrade Required")
    accept = base64.b64encode(hashlib.sha1(request.header("sec-websocket-key").encode() + _WEBSOCKET_GUID).digest()).decode()
    headers = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept)]
    offered = [item.strip() for value in request.header_values("sec-websocket-protocol") for item in value.split(",")]
    chosen = [item for item in offered if item in protocols]
    if chosen:
        headers.append(("Sec-WebSocket-Protocol", chosen[0]))

    def take(sock, leftover, request):
        websocket = _new_websocket(sock, leftover, request, max_message)
        try:
            talk(websocket)
        finally:
            websocket.close()
    return Response(101, headers, Upgrade(take))


def _asks_for_websocket(request):
    options = {item.strip().lower() for value in request.header_values("connection") for item in value.split(",")}
    try:
        key = base64.b64decode(request.header("sec-websocket-key"), validate=True)
    except (binascii.Error, ValueError):
        return False
    return (request.method == "GET" and request.version == "1.1" and not request._fields.has_body
            and request.header("upgrade").lower() == "websocket" and "upgrade" in options and len(key) == 16)


@functools.cache
def _frames():
    """gevent-websocket's frame code, on first use: its package pulls in pywsgi, 20 ms of start-up."""
    from geventwebsocket import websocket
    return websocket


@functools.cache
def _websocket_class():
    return type("StrictWebSocket", (_StrictFrames, _frames().WebSocket), {"__slots__": ("max_message", "room")})


class _StrictFrames:
    """What geventwebsocket's WebSocket leaves open: a bound on messages, masks demanded, the close code sent, no work a byte in Python."""

    __slots__ = ()

    def read_frame(self):
        """One frame, masked as RFC 6455 5.1 demands, within what its message may still hold; unmasked as one number."""
        header = _frames().Header.decode_header(self.stream)
        if header.flags or not header.mask:
            raise _frames().ProtocolError("reserved bits set, or no mask")
        if header.opcode < 8:
            self.room = (self.max_message if header.opcode else self.room) - header.length
            if self.room < 0:
                raise _MessageTooLong()
        payload = self.raw_read(header.length)
        mask = (header.mask * (header.length // 4 + 1))[:header.length]
        return header, (int.from_bytes(payload, "big") ^ int.from_bytes(mask, "big")).to_bytes(header.length, "big")

    def validate_utf8(self, payload):
        """Left to the decoding of the whole message: the package's validator takes a microsecond a byte."""

    def receive(self):
        """The next message as str or bytes, None at the end."""
        try:
            return None if self.closed else super().receive()
        except _MessageTooLong:
            self.close(1009)
        except (ClientGone, _frames().WebSocketError):
            self.closed = True

    def close(self, code=1000, message=b""):
        """Send the close frame with its code, which the package forgets, once."""
        if self.closed:
            return
        reason = message.encode() if isinstance(message, str) else bytes(message or b"")
        try:
            self.send_frame(struct.pack("!H", code) + reason[:123], self.OPCODE_CLOSE)
        except (ClientGone, _frames().WebSocketError):
            pass
        self.closed = True


class _MessageTooLong(Exception):
    """A WebSocket message over its limit: close code 1009."""


class _WebSocketStream:
    """What geventwebsocket reads from and writes to, and the `handler` it logs to. Frames of several senders do not mix."""

    class logger:
        debug = staticmethod(lambda text: None)

    class server:
        application = None

    def __init__(self, sock, leftover, connection):
        self.sock, self.buffer, self.connection, self.lock = sock, leftover, connection, RLock()

    def read(self, size):
        """Exactly `size` bytes; raises ClientGone."""
        parts, missing = [self.buffer], size - len(self.buffer)
        while missing > 0:
            try:
                part = self.sock.recv(RECV_BYTES)
            except OSError:
                part = b""
            if not part:
                raise ClientGone()
            parts.append(part)
            missing -= len(part)
        data = b"".join(parts)
        self.buffer = data[size:]
        return data[:size]

    def write(self, data):
        """A whole frame; a client that does not read is cut by the sweeper. Raises ClientGone."""
        connection = self.connection
        with self.lock:
            connection.deadline = connection.server.clock + connection.limits.write_seconds
            try:
                self.sock.sendall(data)
            except OSError:
                raise ClientGone() from None
            finally:
                connection.deadline = NO_DEADLINE


def _new_websocket(sock, leftover, request, max_message):
    stream = _WebSocketStream(sock, leftover, request.connection)
    websocket = _websocket_class()(request.environ, stream, stream)
    websocket.max_message = websocket.room = max_message
    return websocket


# ---- Files over HTTP: RFC 9110 conditions (13) and ranges (14)

_TYPES = {
    "aac": "audio/aac", "apk": "application/vnd.android.package-archive", "atom": "application/atom+xml", "avif": "image/avif",
    "bmp": "image/bmp", "css": "text/css", "csv": "text/csv", "doc": "application/msword",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document", "ehtml": "text/html",
    "eot": "application/vnd.ms-fontobject", "flac": "audio/flac", "gif": "image/gif", "gz": "application/gzip", "heic": "image/heif",
    "htm": "text/html", "html": "text/html", "ico": "image/vnd.microsoft.icon", "ics": "text/calendar", "jpeg": "image/jpeg",
    "jpg": "image/jpeg", "js": "text/javascript", "json": "application/json", "jsonld": "application/ld+json", "m4a": "audio/mp4",
    "md": "text/markdown", "mjs": "text/javascript", "mov": "video/quicktime", "mp3": "audio/mpeg", "mp4": "video/mp4",
    "ogg": "audio/ogg", "otf": "font/otf", "pdf": "application/pdf", "png": "image/png",
    "pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation", "rss": "application/rss+xml",
    "rtf": "application/rtf", "shtml": "text/html", "svg": "image/svg+xml", "tif": "image/tiff", "tiff": "image/tiff",
    "toml": "application/toml", "ttf": "font/ttf", "txt": "text/plain", "vcf": "text/vcard", "wasm": "application/wasm",
    "wav": "audio/wav", "webm": "video/webm", "webp": "image/webp", "woff": "font/woff", "woff2": "font/woff2",
    "xhtml": "application/xhtml+xml", "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "xml": "text/xml", "yaml": "application/x-yaml", "yml": "application/x-yaml", "zip": "application/zip", "7z": "application/x-7z-compressed",
}
_STATIC_SIGNATURES = (
    (re.compile(rb"[\t\n\x0c\r ]*<(?:!doctype html|html|head|script|iframe|h1|div|font|table|a|style|title|b|body|br|p|!--)[ >]", re.I),
     "text/html; charset=utf-8"),
    (re.compile(rb"[\t\n\x0c\r ]*<\?xml"), "text/xml; charset=utf-8"),
    (re.compile(rb"%PDF-"), "application/pdf"), (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"), (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"GIF8[79]a"), "image/gif"), (re.compile(rb"RIFF....WEBPVP", re.S), "image/webp"), (re.compile(rb"PK\x03\x04"), "application/zip"),
    (re.compile(rb"\x1f\x8b\x08"), "application/x-gzip"), (re.compile(rb"\x00asm"), "application/wasm"), (re.compile(rb"wOF2"), "font/woff2"),
    (re.compile(rb"[^\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]*\Z"), "text/plain; charset=utf-8"),
)
STATIC_SNIFF_BYTES = 512        # https://mimesniff.spec.whatwg.org
INLINE_BYTES = 65536     # a file up to this is read at once: it leaves with its head in one write
MAX_RANGES = 64          # more are ignored, as RFC 9110 14.2 allows
_OVERLAP = "invalid range: failed to overlap\n"
_NOT_WITH_416 = ("cache-control", "last-modified", "etag", "content-encoding", "content-length")


def content_type_of(path, file):
    """The media type by the name's extension, else by the first bytes of the open file."""
    name = os.path.basename(path)
    found = _TYPES.get(name.rpartition(".")[2].lower()) if "." in name else None
    if found:
        return found + "; charset=utf-8" if found.startswith("text/") else found
    head = file.read(STATIC_SNIFF_BYTES)
    return next((media for pattern, media in _STATIC_SIGNATURES if pattern.match(head)), "application/octet-stream")


@functools.lru_cache(256)
def _http_date(seconds):
    return formatdate(seconds, usegmt=True)


@functools.lru_cache(256)
def _http_time(text):
    """Seconds of an HTTP date in its three spellings (RFC 9110 5.6.7), None for anything else."""
    for form in ("%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"):
        try:
            return datetime.datetime.strptime(text, form).replace(tzinfo=datetime.UTC).timestamp()
        except ValueError:
            continue
    return None


def _condition(request, modified):
    """304, 412 or None, in the order of RFC 9110 13.2.2. Without entity tags only `*` matches one."""
    match, none_match = request.header("if-match"), request.header("if-none-match")
    if match:
        if match.strip() != "*":
            return 412
    elif request.header("if-unmodified-since"):
        since = _http_time(request.header("if-unmodified-since"))
        if since is not None and modified > since:
            return 412
    if none_match:
        return 304 if none_match.strip() == "*" else None
    since = _http_time(request.header("if-modified-since")) if request.header("if-modified-since") else None
    return 304 if since is not None and modified <= since else None


def parse_ranges(text, size):
    """`"bytes=0-4,-2"` -> [(0, 5), (size - 2, 2)] as (offset, length); [] means the whole. Raises ValueError with the 416 text."""
    unit, mark, items = text.partition("=")
    if unit != "bytes" or not mark:
        raise ValueError("invalid range\n")
    ranges, missed = [], False
    for item in filter(None, (item.strip(" \t") for item in items.split(","))):
        match = re.fullmatch(r"([0-9]{0,18})[ \t]*-[ \t]*([0-9]{0,18})", item)
        if not match or item == "-":
            raise ValueError("invalid range\n")
        first, last = match.groups()
        offset = int(first) if first else max(0, size - int(last))
        end = size if not first or not last else int(last) + 1
        if first and last and offset >= end:
            raise ValueError("invalid range\n")
        if offset >= size:
            missed = True
        else:
            ranges.append((offset, min(end, size) - offset))
    if missed and not ranges and size:
        raise ValueError(_OVERLAP)
    return [] if len(ranges) > MAX_RANGES or sum(length for _, length in ranges) > size else ranges


def file_response(request, path, content_type="", extra_headers=(), modified=None, *, file=None, size=None):
    """A file under the request's conditions and ranges, as a Response: 200, 206, 304, 412 or 416. `content_type` "" means: find out;
    `modified` is in epoch seconds and `size` in bytes, default the file's own. Raises OSError when there is no such regular file."""
    file = file or open_regular(path)
    if size is None:
        info = os.fstat(file.fileno())
        size, modified = info.st_size, info.st_mtime if modified is None else modified
    modified = int(modified)
    extra = [*extra_headers, ("Last-Modified", _http_date(modified))]
    status = _condition(request, modified)
    if status:
        file.close()
        return Response(status, [("Content-Type", content_type), *extra] if content_type and status == 412 else extra)
    content_type = content_type or content_type_of(path, file)
    try:
        ranges = parse_ranges(request.header("range"), size) if _wants_range(request, modified) else []
    except ValueError as exc:
        file.close()
        return _unsatisfiable(extra, str(exc), size)
    headers = [("Accept-Ranges", "bytes"), ("Content-Type", content_type), *extra]
    if len(ranges) > 1:
        return _multipart_ranges(file, size, ranges, content_type, headers)
    if ranges:
        headers.append(_content_range(*ranges[0], size))
    offset, length = ranges[0] if ranges else (0, size)
    if request.method == "HEAD":        # nothing to read, which matters where reading costs a request
        file.close()
        return Response(206 if ranges else 200, headers, iter(()), length)
    return Response(206 if ranges else 200, headers, _file_part(file, path, offset, length))


def open_regular(path):
    """Open for reading, or OSError: a pipe or device under the name must not hang or leak."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "not a regular file", path)
    return io.FileIO(descriptor)


def _file_part(file, path, offset, length):
    if length > INLINE_BYTES:
        return FileBody(path, offset, length, file)
    with file:
        file.seek(offset)
        return file.read(length)


def _wants_range(request, modified):
    """If-Range: the range counts only while the file is the one the client knows (RFC 9110 13.1.5)."""
    known = request.header("if-range")
    return bool(request.header("range")) and (not known or _http_time(known) == modified)


def _content_range(offset, length, size):
    return "Content-Range", f"bytes {offset}-{offset + length - 1}/{size}"


def _unsatisfiable(headers, text, size):
    headers = [("Content-Type", "text/plain; charset=utf-8")] + [pair for pair in headers if pair[0].lower() not in _NOT_WITH_416]
    if text == _OVERLAP:
        headers.append(("Content-Range", f"bytes */{size}"))
    return Response(416, headers, text)


def _multipart_ranges(file, size, ranges, content_type, headers):
    """multipart/byteranges (RFC 9110 14.6), its length known before it is sent."""
    boundary = secrets.token_hex(30)
    heads = [f"\r\n--{boundary}\r\nContent-Range: {_content_range(*part, size)[1]}\r\nContent-Type: {content_type}\r\n\r\n".encode()
             for part in ranges]
    heads[0], end = heads[0][2:], f"\r\n--{boundary}--\r\n".encode()

    def parts():
        with file:
            for head, (offset, length) in zip(heads, ranges):
                yield head
                file.seek(offset)
                while length > 0 and (data := file.read(min(length, INLINE_BYTES))):
                    length -= len(data)
                    yield data
            yield end

    total = sum(map(len, heads)) + sum(length for _, length in ranges) + len(end)
    headers = [pair for pair in headers if pair[0] != "Content-Type"] + [("Content-Type", "multipart/byteranges; boundary=" + boundary)]
    return Response(206, headers, parts(), total)


# ---- Static files

def serve_static(request, root, path, index_fallback, extra_headers=()):
    """The file `path` (decoded, relative) below `root`. Canonical addresses by 301: `/dir` -> `/dir/`, `/file/` -> `/file`,
    `/dir/index.html` -> `/dir/`. What is missing gives the root's index.html with `index_fallback`, else not_found("File not found.")."""
    full = _static_path(root, path)
    mode = _mode(full) if full else 0
    canonical = _canonical_path(request.path, mode)
    if canonical is not None:
        return Response(301, [*extra_headers, ("Location", quote(canonical))])
    if stat.S_ISDIR(mode):
        full = os.path.join(full, "index.html")
    response = _inside_response(request, root, full, extra_headers) if mode else None
    if response is None and index_fallback:
        response = _inside_response(request, root, os.path.join(root, "index.html"), extra_headers)
    if response is None:
        raise not_found("File not found.")
    return response


def _static_path(root, path):
    """Where `path` lies below `root`, "" if it would lie elsewhere."""
    relative = posixpath.normpath(path.lstrip("/") or ".")
    if relative == ".." or relative.startswith("../") or "\0" in path or (os.altsep and re.search(r"[\\:]", path)):
        return ""
    return os.path.join(root, relative)


def _mode(full):
    """The kind of what is there, 0 for nothing."""
    try:
        return os.stat(full).st_mode
    except OSError:
        return 0


def _canonical_path(address, mode):
    """Where an existing file or directory should be asked for, None if it is asked for right. Never `//host`."""
    slashed = address.endswith("/")
    if stat.S_ISDIR(mode):
        return None if slashed else "/" + address.strip("/") + "/"
    if not stat.S_ISREG(mode):
        return None
    if slashed:
        return "/" + address.strip("/")
    if address.endswith("/index.html"):
        return "/" + address.removesuffix("index.html").lstrip("/")
    return None


def _inside_response(request, root, full, extra_headers):
    """file_response for a file that is really below `root`, None otherwise: a symbolic link must not lead out of it."""
    try:
        file = open_regular(full)
        info = os.stat(root)
    except OSError:
        return None
    if not _is_inside(file, full, _real_root(root, info.st_dev, info.st_ino)):
        file.close()
        return None
    return file_response(request, full, "", extra_headers, file=file)


@functools.lru_cache(16)
def _real_root(root, device, inode):
    """The root without links, with its final slash; asked again when another directory has taken its name (a deployment)."""
    return os.path.join(os.path.realpath(root), "")


def _is_inside(file, full, root):
    """Asked of the open descriptor where the system can tell (Linux), so that no swap of a link can come between."""
    try:
        real = os.readlink(f"/proc/self/fd/{file.fileno()}")
    except OSError:
        real = os.path.realpath(full)
    return real.startswith(root)


# ============================================================================
#  18. Realtime
# ============================================================================
# Who hears of which change.  A Broker holds the connected clients and an index of
# their topics; a Client is one connection, an event stream or a WebSocket, both
# sides of one protocol.
#
# A committed change becomes a job of the broker's own greenlet: it asks each rule
# once for every distinct caller and options, writes the record once for every view
# of it, and hands the bytes to the sockets without ever waiting for one.  What a
# socket does not take waits in a bounded queue; who lets it overflow is dropped.
# With no topic subscribed the events of records have no listener of ours.
#
# Invariants: no delivery runs in the writer (only the access to a record that is
# being deleted is asked there, as long as the row exists); message numbers grow for
# every client, so that its last one tells what it misses after a cut; a failure in
# one delivery touches nobody else.
#
# Figures (CPython 3.11; PocketBase's in brackets): 6 µs of CPU a delivery (22-28); with 5,000 streams 13 KiB a client
# (46, after events 69), and one event reaches all of them in 43 ms (100).

CLIENT_ID_LENGTH = 40
STREAM_IDLE_SECONDS = 300           # an event stream ends this long after its last message ...
STREAM_LIFE_SECONDS = 1800          # ... and this long after its start even when busy, both as PocketBase's
WEBSOCKET_PING_SECONDS = 60         # silence after which a WebSocket is pinged: keeps proxies from closing it, finds dead peers
WEBSOCKET_MESSAGE_LIMIT = 64 << 10  # bytes of one message from a client
TOPICS_LIMIT = 1000                 # a client
TOPIC_LENGTH_LIMIT = 2500           # bytes
QUEUE_BYTES = 1 << 20               # that a client may leave unread here ...
SOCKET_BYTES = 128 << 10            # ... beside the kernel's buffer, which would else grow to 4 MB a socket
STALL_SECONDS = 30                  # without progress by a client that has something to read
CLOSE_SECONDS = 5                   # a WebSocket client has to answer a close frame
RESUME_SECONDS = 120                # a client that can resume may stay away
RESUME_MESSAGES = 1000              # kept for its return ...
RESUME_BYTES = 1 << 20              # ... and their size; texts are shared by all clients that got them
RESUME_CLIENTS = 10000              # away at once
BACKLOG = 50000                     # changes that wait for the broker; beyond it everybody starts anew, memory stays bounded
IDS_KEPT = 8                        # earlier ids that a client who resumed answers to, besides its first
FAN_OUT_SLICE = 0.004               # seconds of deliveries after which other greenlets get their turn
GOING_AWAY, POLICY, SLOW_CONSUMER = 1001, 1008, 1013      # WebSocket close codes (RFC 6455 7.4.1, IANA registry)
SAVED_ACTIONS = ("create", "update")
OAUTH2_TOPIC = "@oauth2"

STREAM_HEADERS = (("Cache-Control", "no-store"), ("Content-Type", "text/event-stream"), ("X-Accel-Buffering", "no"))
REALTIME_SHAPE = {"clientId": "text", "subscriptions": "texts"}


# ---- topics and messages

class Topic:
    """One subscription text, what its options say, and who holds it: `groups` maps a caller to its clients (an ordered set).

    `posts/*?options={"query":{"expand":"author"},"headers":{"X-Key":1}}` (percent-encoded) has the base `posts/*`.
    """

    __slots__ = ("text", "base", "query", "headers", "groups")

    def __init__(self, text):
        self.text = text
        self.base, _, options = text.partition("?")
        self.query, self.headers = topic_options(options)
        self.groups = {}


def topic_options(text):
    """`options=%7B%22headers%22%3A%7B%22X-Key%22%3A1%7D%7D` -> ({}, {"x_key": "1"}); what is malformed counts as absent."""
    try:
        options = parse_json((parse_query(text).get("options") or ["{}"])[0])
    except ValueError:
        options = None
    query, headers = ((options.get(name) if isinstance(options, dict) else None) for name in ("query", "headers"))
    return ({name: cast_text(value) for name, value in query.items()} if isinstance(query, dict) else {},
            {header_variable(name): cast_text(value) for name, value in headers.items()} if isinstance(headers, dict) else {})


def check_topics(form, table):
    """400 unless the lengths are right."""
    errors = collect_errors(form, {"subscriptions": (length(0, TOPICS_LIMIT),), **table})
    if "subscriptions" not in errors:
        for index, text in enumerate(form["subscriptions"]):
            error = length(0, TOPIC_LENGTH_LIMIT)(text)
            if error:
                put_error(errors, f"subscriptions.{index}", error)
    if errors:
        raise bad_request("", errors)


class Message:
    """What goes out under one topic text, encoded once for each kind of transport. `source`: the (collection, record id, action) it tells of."""

    __slots__ = ("number", "event", "data", "source", "_tail", "_frame")

    def __init__(self, number, event, data, source=None):
        self.number, self.event, self.data, self.source = number, event, data, source
        self._tail = self._frame = None

    @property
    def tail(self):
        """An event stream's frame after the id, which is each client's own."""
        if self._tail is None:
            self._tail = f"\nevent:{self.event}\ndata:{self.data}\n\n".encode("utf-8", "replace")
        return self._tail

    @property
    def frame(self):
        """A WebSocket's text frame."""
        if self._frame is None:
            text = f'{{"event":{quote_json(self.event)},"id":"{self.number}","data":{self.data}}}'
            self._frame = _websocket_frame(1, text.encode("utf-8", "replace"))
        return self._frame


def _websocket_frame(opcode, payload):
    return bytes(_frames().Header.encode_header(True, opcode, b"", len(payload), 0)) + payload


# ---- clients

class Client:
    """One connection and what it subscribed to: an event stream.

    `caller`: (collection id, record id, token key) of the record it is bound to, None for a guest.
    `history`: messages kept for its return, None for one that cannot resume; `floor`: the number up to which they are gone.
    `greeting`: the number of its PB_CONNECT where no other message has it; `positions`: greeting -> the position from which that
    connection resumed, for one that is cut before it was told anything.
    A client that is away has no socket; one whose state went to a new connection has an `heir`.
    """

    __slots__ = ("broker", "id", "ids", "ip", "caller", "topics", "connection", "sock", "send", "queue", "queued", "flusher", "born", "moved",
                 "spoke", "away_since", "ended", "last", "floor", "history", "history_bytes", "greeting", "positions", "heir", "_head", "_chunked")

    def __init__(self, broker, request, ip, resumable=False):
        self.broker, self.ip, self.caller, self.topics = broker, ip, None, {}
        self.id = random_text(CLIENT_ID_LENGTH, ALPHANUMERIC)
        self.ids = (self.id,)
        self.connection, self.sock, self.send = request.connection, None, None
        self.queue, self.queued, self.flusher = collections.deque(), 0, None
        self.born = self.moved = self.spoke = broker.clock
        self.away_since = self.ended = self.heir = self.greeting = None
        self.last = self.floor = broker.number
        self.history, self.history_bytes, self.positions = (collections.deque() if resumable else None), 0, {}
        self._head, self._chunked = b"id:" + self.id.encode(), request.version == "1.1"

    def open(self, sock):
        """Takes over a socket whose HTTP head is sent."""
        self.sock = sock
        sock._sock.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_SNDBUF, SOCKET_BYTES)
        if self.connection.scheme == "http":            # TLS: only the flusher may wait for the socket
            self.send = sock._sock.send

    # what the two transports do differently

    def encode(self, message):
        """The bytes of one message. The id is the client's, as PocketBase's; with the message's number for those that can resume."""
        head = self._head if self.history is None else b"%b.%d" % (self._head, message.number)
        if self._chunked:
            return b"%x\r\n%b%b\r\n" % (len(head) + len(message.tail), head, message.tail)
        return head + message.tail

    def farewell(self, code):
        return b"0\r\n\r\n" if self._chunked else b""

    def keep_alive(self, now):
        """Once a second: an event stream that has been silent or open for long ends."""
        if now - self.spoke >= STREAM_IDLE_SECONDS or now - self.born >= STREAM_LIFE_SECONDS:
            self.end(1000)

    def finish(self):
        """Everything is sent, the last words included."""
        self.cut()

    def cut(self):
        """Ends the connection at once; its reader finds out and leaves."""
        if self.connection is not None:
            self.connection.cut()

    # sending

    def deliver(self, message):
        """Hands one message over, or keeps it for the client's return."""
        if message.number <= self.last:                 # told before it subscribed
            return
        self.last = message.number
        if self.history is not None:
            self._remember(message)
        if self.sock is not None:
            self.write(self.encode(message))

    def tell(self, event, data):
        """A message of the protocol itself, outside of the numbering."""
        self.write(self.encode(Message(self.last, event, data)))

    def _remember(self, message):
        history = self.history
        history.append(message)
        self.history_bytes += len(message.data)
        while self.history_bytes > RESUME_BYTES or len(history) > RESUME_MESSAGES:
            gone = history.popleft()
            self.history_bytes -= len(gone.data)
            self.floor = gone.number

    def forget_history(self):
        """What it may have missed so far cannot be told any more."""
        if self.history is not None:
            self.history.clear()
            self.history_bytes, self.floor = 0, self.broker.number

    def write(self, data):
        """Sends at once what the socket takes, the rest waits in the queue. Never blocks, never raises."""
        if self.ended is not None or self.sock is None:
            return
        self.spoke = self.broker.clock
        if not self.queue and self.send is not None:
            try:
                sent = self.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                return self.cut()
            if sent == len(data):
                return
            data = data[sent:]
        self.queue.append(data)
        self.queued += len(data)
        if self.queued > QUEUE_BYTES and len(self.queue) > 1:
            self.end(SLOW_CONSUMER)
        elif self.flusher is None:
            self._start_flusher()

    def _start_flusher(self):
        self.moved = self.broker.clock
        self.flusher = gevent.spawn(self._flush, self.sock)

    def _flush(self, sock):
        """Empties the queue at the client's pace; a part of a frame is never followed by anything but its rest."""
        queue = self.queue
        try:
            while queue:
                if len(queue) > 1:
                    whole = b"".join(queue)
                    queue.clear()
                    queue.append(whole)
                sent = sock.send(queue[0])
                self.moved, self.queued = self.broker.clock, self.queued - sent
                if sent < len(queue[0]):
                    queue[0] = queue[0][sent:]
                else:
                    queue.popleft()
        except OSError:
            queue.clear()
            self.cut()
        finally:
            self.flusher = None
        if self.ended is not None:
            self.finish()

    def end(self, code):
        """Says goodbye, with the close code on a WebSocket; a slow client loses what it left unread."""
        if self.ended is not None or self.sock is None:
            return
        if code == SLOW_CONSUMER:
            LOG.debug("realtime client %s is too slow", self.id)
            while len(self.queue) > 1:
                self.queued -= len(self.queue.pop())
        self.queue.append(self.farewell(code))
        self.ended = self.moved = self.broker.clock
        if self.flusher is None:
            self._start_flusher()

    def check(self, now):
        """The once-a-second look: who does not read, does not answer the goodbye or is silent."""
        if self.sock is None:
            if now - self.away_since > RESUME_SECONDS:
                self.broker.forget(self)
        elif now - self.moved > STALL_SECONDS and self.queue or self.ended is not None and now - self.moved > CLOSE_SECONDS and not self.queue:
            self.cut()
        elif self.ended is None:
            self.keep_alive(now)


class WebSocketClient(Client):
    """The WebSocket side: every message is `{"event","id","data"}`; can always resume."""

    __slots__ = ("websocket",)

    def __init__(self, broker, request, ip):
        broker.number += 1
        super().__init__(broker, request, ip, resumable=True)
        self.greeting = broker.number

    def encode(self, message):
        return message.frame

    def farewell(self, code):
        return _websocket_frame(8, struct.pack("!H", code))

    def keep_alive(self, now):
        if now - self.spoke >= WEBSOCKET_PING_SECONDS:
            self.write(_websocket_frame(9, b""))

    def finish(self):
        """The client answers the close frame and its reader ends the connection; `check` cuts one that does not."""
        self.websocket.closed = True

    def talk(self, websocket):
        """Reads the client's messages until it leaves."""
        self.websocket, websocket.raw_write = websocket, self.write         # one way to the socket, so that frames never mix
        self.tell("PB_CONNECT", f'{{"clientId":"{self.id}"}}')
        handled = 0
        while (text := websocket.receive()) is not None:
            self._handle(text)
            handled += 1
            if handled % 16 == 0:                                           # a flood waits its turn
                gevent.sleep(0)
        if self.flusher is not None:
            self.flusher.join(CLOSE_SECONDS)

    def _handle(self, text):
        try:
            message = parse_json(text) if isinstance(text, str) else None
            kind = message.get("type") if isinstance(message, dict) else None
            handler = WEBSOCKET_MESSAGES.get(kind) if isinstance(kind, str) else None
            if handler is None:
                raise bad_request("Unknown or malformed message.")
            if handler is not _ping_message:
                self.broker.limit_rate(self)
            handler(self.broker, self, message)
        except ApiError as error:
            self.tell("PB_ERROR", to_json(error.as_json()))
        except ValueError as error:
            self.tell("PB_ERROR", to_json(bad_request("Unknown or malformed message.", raw=str(error)).as_json()))
        except Exception:                                                   # the boundary of a message: the connection goes on
            LOG.exception("a realtime message failed")
            self.tell("PB_ERROR", to_json(bad_request().as_json()))


# ---- what a WebSocket client may say

def _subscribe_message(broker, client, message):
    """{"type":"subscribe","subscriptions":[...],"token"?}: the whole set, as the POST; without a token the binding stays."""
    form = load_form({"subscriptions": "texts"}, message, "")
    check_topics(form, {})
    if "token" in message:
        broker.bind(client, broker.token_record(client, message["token"]))
    broker.subscribe(client, form["subscriptions"])
    client.tell("PB_SUBSCRIBED", to_json({"subscriptions": list(client.topics)}))


def _auth_message(broker, client, message):
    """{"type":"auth","token"}: silent when it succeeds."""
    record = broker.token_record(client, message.get("token"))
    if record is None:
        raise unauthorized("The request requires valid record authorization token.")
    broker.bind(client, record)


def _ping_message(broker, client, message):
    """{"type":"ping"}"""
    client.tell("PB_PONG", "{}")


def _resume_message(broker, client, message):
    """{"type":"resume","clientId","lastEventId","token"?}: before any subscription; what was missed follows, or PB_RESET."""
    if client.topics:
        raise bad_request("Resume before subscribing.")
    id, last = message.get("clientId"), message.get("lastEventId")
    if not isinstance(id, str) or not isinstance(last, (str, int)) or isinstance(last, bool):
        raise bad_request("Unknown or malformed message.")
    record = broker.token_record(client, message["token"]) if "token" in message else broker.caller_record(client.caller)
    broker.resume(client, id, _event_number(str(last).rpartition(".")[2]), record)


WEBSOCKET_MESSAGES = {"subscribe": _subscribe_message, "auth": _auth_message, "ping": _ping_message, "resume": _resume_message}


def _event_number(text):
    """The number of an event id, None for anything else."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


UNKNOWN_EVENT = ("", 0)     # of no client: who resumes from it is told to reload


def split_event_id(text):
    """`<client id>.<number>` of an event stream that can resume -> (client id, number); None for any other Last-Event-ID."""
    id, dot, number = text.partition(".")
    number = _event_number(number)
    return (id, number) if dot and number is not None and len(id) == CLIENT_ID_LENGTH else None


# ---- who may see a changed record, and how

class ChangeView:
    """One changed record in the eyes of its callers: each condition is asked once, each text written once."""

    def __init__(self, broker, collection, id, row=None, action=""):
        self.broker, self.app, self.collection, self.id, self.row, self.action = broker, broker.app, collection, id, row, action
        self._callers, self._verdicts, self._texts = {}, {}, {}

    def info(self, topic, caller):
        """The RequestInfo of a caller under a topic's options; a binding that has become void makes a guest."""
        if caller not in self._callers:
            self._callers[caller] = self.broker.caller_record(caller)
        auth = self._callers[caller]
        return RequestInfo("realtime", "GET", topic.headers, topic.query, None, auth, auth is not None and auth.collection.name == SUPERUSERS)

    def visible(self, info, rule, filter):
        """Whether the stored row satisfies rule and filter for the caller; a filter that cannot be understood shows nothing."""
        if info.superuser:
            rule = ""
        if rule is None:
            return False
        if not rule and not filter:
            return True
        try:
            if not info.superuser:
                check_client_text(filter, "")
            query = plan_query(self.app.schema, self.collection, info, rule=rule or None, filter=filter, one=True)
            key = query.plan, *query.params_joins, *query.params_where
            if key not in self._verdicts:
                self._verdicts[key] = self._holds(query)
            return self._verdicts[key]
        except (FilterError, ApiError, sqlite3.Error, QueryTimeout) as error:
            LOG.debug("realtime: %s", error)
            return False

    def _holds(self, query):
        table = quote_name(self.collection.name)
        return bool(self.app.store.read(f"SELECT 1 FROM {table} {query.joins} WHERE ({query.where}) AND {table}.`id`=? LIMIT 1",
                                        (*query.params_joins, *query.params_where, self.id)))

    def data(self, topic, caller, rule):
        """The message's JSON for a caller, None when it may not see the record."""
        info = self.info(topic, caller)
        query = topic.query
        if not self.visible(info, rule, query.get("filter", "")):
            return None
        expand, fields = query.get("expand", ""), query.get("fields", "")
        if self.app.events.listened("record_enrich"):           # may differ from caller to caller
            return self._wrap(records_json(self.app, self.app.store, info, self.collection, [self.row], expand)[0], fields)
        show_email = self.collection.is_auth and emails_shown(self.app, self.app.store, info, self.collection, [self.row])[0]
        expanded = expand_rows(self.app, self.app.store, info, self.collection, [self.row], parse_expand(expand))[0] if expand else None
        key = info.superuser, show_email, expanded, fields
        text = self._texts.get(key)
        if text is None:
            record = row_encoder(self.collection, info.superuser).encode(self.row, show_email, expanded)
            text = self._texts[key] = self._wrap(record, fields)
        return text

    def _wrap(self, record, fields):
        try:
            pick = parse_fields(fields) if fields else None
        except ApiError:                                        # malformed picks count as none
            pick = None
        if pick:
            record = to_json(pick.apply(json.loads(record)))
        return f'{{"record":{record},"action":"{self.action}"}}'


def _topic_rule(topic, collection):
    """The rule that guards a topic: of lists for all records (`posts/*`, `posts`), of views for one (`posts/ID`)."""
    _, slash, id = topic.base.partition("/")
    return collection.view_rule if slash and id != "*" else collection.list_rule


# ---- the broker

class Broker:
    """Connects changes with those who subscribed to them; one a server.

    broker = Broker(app, allows_origin)
    broker.send("my-topic", {"any": "JSON"})        # a message of the app's own to everybody who subscribed to `my-topic`
    """

    def __init__(self, app, allows_origin=lambda origin: True):
        self.app, self.allows_origin = app, allows_origin
        self.clients = {}               # every id -> Client; one that resumed answers to its earlier ids too
        self.topics = {}                # base -> {text: Topic}
        self.names = {}                 # collection name or id -> number of topics that begin with it
        self.away = {}                  # clients that may come back, the longest away first
        self.number = 0                 # of the last message
        self.clock = time.monotonic()
        self.closed = False
        self._jobs, self._wake = collections.deque(), gevent.event.Event()
        self._worker = self._sweeper = None
        self._listening, self._slice_end = False, 0.0
        app.events.on("terminate", self._terminate, id="realtime")

    # -- clients

    def enter(self, client):
        """Registers a client whose socket is open."""
        self.clients[client.id] = client
        if self._sweeper is None:
            self._sweeper = gevent.spawn(self._sweep)
        LOG.debug("Realtime connection established", extra={"data": {"clientId": client.id}})

    def leave(self, client):
        """The connection is over: the client is forgotten, or awaited if it can resume."""
        LOG.debug("Realtime connection closed (cancelled request)", extra={"data": {"clientId": client.id}})
        client.sock = client.send = client.connection = None
        if client.flusher is not None:
            client.flusher.kill(block=False)
        client.queue.clear()
        if client.history is None or not client.topics or self.closed:
            return self.forget(client)
        client.away_since = self.clock
        self.away[client] = None
        if len(self.away) > RESUME_CLIENTS:
            self.forget(next(iter(self.away)))

    def forget(self, client):
        self.subscribe(client, ())
        self.away.pop(client, None)
        for id in client.ids:
            if self.clients.get(id) is client:
                del self.clients[id]

    def find(self, id):
        """The connected client with this id, or None."""
        client = self.clients.get(id)
        return client if client is not None and client.sock is not None and client.ended is None else None

    # -- who asks

    def token_record(self, client, token):
        """The record of a token that came over a WebSocket, None for a bad one and for none."""
        if not isinstance(token, (str, types.NoneType)):
            raise bad_request("Unknown or malformed message.")
        record = self.app.identities.of_header(token) if token else None
        if record is not None and record.collection.name == SUPERUSERS and not superuser_ip_allowed(self.app, client.ip):
            raise forbidden()
        return record

    def caller_record(self, caller):
        """The fresh record that a client is bound to; None for a guest and for a binding whose token key has changed since."""
        if caller is None:
            return None
        collection_id, id, key = caller
        record = self.app.identities.record(collection_id, id)
        return record if record is not None and token_key(record, "auth") == key else None

    def bind(self, client, record):
        """Makes `record` (None: a guest) the client's caller; 403 when it is bound to another one."""
        bound = self.caller_record(client.caller)
        if bound is not None and (record is None or (record.collection.id, record.id) != client.caller[:2]):
            raise forbidden("The current and the previous request authorization don't match.")
        caller = None if record is None else (record.collection.id, record.id, token_key(record, "auth"))
        if caller != client.caller:
            texts = list(client.topics)
            for text in texts:
                self._drop(client, text)
            client.caller = caller
            for text in texts:
                self._add(client, text)

    def limit_rate(self, client):
        """A WebSocket's messages count as POST /api/realtime; ApiError 429 when there are too many."""
        if self.app.settings["rateLimits"]["enabled"]:
            auth = self.caller_record(client.caller)
            superuser = auth is not None and auth.collection.name == SUPERUSERS
            asking = types.SimpleNamespace(method="POST", path="/api/realtime", request=None, ip=client.ip, auth=auth, superuser=superuser)
            self.app.rate_limiter.check(asking, "/api/realtime", ())

    # -- subscriptions

    def subscribe(self, client, texts):
        """Replaces the client's topics."""
        wanted = dict.fromkeys(text for text in texts if text)
        for text in [text for text in client.topics if text not in wanted]:
            self._drop(client, text)
        for text in wanted:
            if text not in client.topics:
                self._add(client, text)
        self._listen(bool(self.topics))

    def _add(self, client, text):
        base = text.partition("?")[0]
        texts = self.topics.setdefault(base, {})
        topic = texts.get(text)
        if topic is None:
            topic = texts[text] = Topic(text)
            name = base.partition("/")[0]
            self.names[name] = self.names.get(name, 0) + 1
        topic.groups.setdefault(client.caller, {})[client] = None
        client.topics[text] = topic

    def _drop(self, client, text):
        topic = client.topics.pop(text)
        group = topic.groups[client.caller]
        del group[client]
        if not group:
            del topic.groups[client.caller]
        if not topic.groups:
            texts, name = self.topics[topic.base], topic.base.partition("/")[0]
            del texts[text]
            if not texts:
                del self.topics[topic.base]
            self.names[name] -= 1
            if not self.names[name]:
                del self.names[name]

    def _listen(self, wanted):
        """Listens to the records' events exactly while there are topics."""
        if wanted == self._listening:
            return
        self._listening = wanted
        events = self.app.events
        for action in SAVED_ACTIONS:
            if wanted:
                events.on(f"record_after_{action}_success", functools.partial(self._on_saved, action), priority=99, id="realtime")
            else:
                events.off(f"record_after_{action}_success", "realtime")
        if wanted:
            events.on("record_delete", self._on_delete, priority=-99, id="realtime")
        else:
            events.off("record_delete", "realtime")

    # -- changes, heard in the writer

    def _on_saved(self, action, event):
        result = event.next()
        collection = event.collection
        if collection.name in self.names or collection.id in self.names:
            self._post(self._tell_saved, collection, event.record.row(), event.record.id, action)
        return result

    def _on_delete(self, event):
        """Who may see the record is asked while its row exists; they hear of it after the commit, after what its delete took along."""
        collection, record, told = event.collection, event.record, ()
        if collection.name in self.names or collection.id in self.names:
            told = list(self._audience(ChangeView(self, collection, record.id, record.row(), "delete")))
        result = event.next()
        if told:
            event.tx.after_commit(self._post, self._tell, told, (collection, record.id, "delete"))
        return result

    def _audience(self, view):
        """(topic, caller, JSON) of everybody who may hear of a change."""
        collection = view.collection
        for name in dict.fromkeys((collection.name, collection.id)):
            for base in (name, f"{name}/*", f"{name}/{view.id}"):
                for topic in tuple(self.topics.get(base, {}).values()):
                    rule = _topic_rule(topic, collection)
                    for caller in tuple(topic.groups):
                        try:
                            data = view.data(topic, caller, rule)
                        except Exception:               # one caller's failure is its own
                            LOG.exception("the realtime message for %s failed", topic.text)
                            continue
                        self._breathe()
                        if data is not None:
                            yield topic, caller, data

    # -- deliveries, in the broker's own greenlet

    def _post(self, function, *args):
        """A job for the broker; an overflowing backlog costs all clients their connection rather than the server its memory."""
        if len(self._jobs) >= BACKLOG:
            LOG.warning("the realtime backlog overflowed: all clients are disconnected")
            self._jobs.clear()
            self.number += 1
            for client in list(self.clients.values()):
                client.forget_history()
                client.end(SLOW_CONSUMER)
        self._jobs.append((function, args))
        if self._worker is None:
            self._worker = gevent.spawn(self._work)
        self._wake.set()

    def _work(self):
        while True:
            while self._jobs:
                function, args = self._jobs.popleft()
                self.clock = time.monotonic()
                try:
                    function(*args)
                except Exception:                       # nothing may end the broker
                    LOG.exception("a realtime delivery failed")
                self._breathe()
            self._wake.clear()
            self._wake.wait()

    def _breathe(self):
        """Lets others run once a slice of time is used up."""
        if perf_counter() > self._slice_end:
            gevent.sleep(0)
            self._slice_end = perf_counter() + FAN_OUT_SLICE

    def _tell_saved(self, collection, row, id, action):
        self._tell(self._audience(ChangeView(self, collection, id, row, action)), (collection, id, action))

    def _tell(self, told, source):
        """Sends each (topic, caller, JSON) to the clients of the topic; equal texts are one Message."""
        messages = {}
        for topic, caller, data in told:
            message = messages.get((topic.text, data))
            if message is None:
                message = messages[topic.text, data] = self._message(topic.text, data, source)
            self._fan_out(topic.groups.get(caller, {}), message)

    def _message(self, event, data, source=None):
        self.number += 1
        return Message(self.number, event, data, source)

    def _fan_out(self, group, message):
        for client in tuple(group):
            while client.heir is not None:              # it resumed on another connection while this loop ran
                client = client.heir
            if client in group:
                try:
                    client.deliver(message)
                except Exception:                       # one client's failure is its own
                    LOG.exception("a realtime delivery failed")
                self._breathe()

    def send(self, topic, data):
        """A message of the app's own to all who subscribed to the topic text, options aside; `data` is any JSON value."""
        self._post(self._tell_custom, topic, to_json(data))

    def _tell_custom(self, base, data):
        for topic in tuple(self.topics.get(base, {}).values()):
            message = self._message(topic.text, data)
            for group in tuple(topic.groups.values()):
                self._fan_out(group, message)

    def send_to(self, client, topic, data):
        """A message for one client."""
        self._post(lambda: client.deliver(self._message(topic, to_json(data))))

    # -- coming back

    def resume(self, client, id, last, record):
        """Gives a new connection the state of an earlier one and what it missed since message `last`; PB_RESET when that cannot be told.

        Only from the same address or with a token of the record it was bound to: the id alone is known to sign-in providers (@oauth2 state).
        """
        old = self._departed(id, client, record)
        if old is None or last is None:
            return self._reset(client)
        last = old.positions.get(last, last)
        whole, seen = old.floor <= last <= self.number, old.last
        missed = self._still_visible(old, last) if whole else []
        if self.clients.get(id) is not old:             # another connection was faster while the rules were asked
            return self._reset(client)
        client.positions = dict([*old.positions.items(), (client.greeting, last)][-IDS_KEPT:])
        self._adopt(client, old)
        if missed is None or client.floor > last or not whole:
            return self._reset(client)
        for message in (*missed, *[message for message in client.history if message.number > seen]):
            client.write(client.encode(message))

    def _departed(self, id, client, record):
        """The earlier client once its connection is over, so that all it had said is heard first; None when there is nothing to resume."""
        until = time.monotonic() + CLOSE_SECONDS
        while time.monotonic() < until:
            old = self.clients.get(id)
            if old is None or old is client or old.history is None or not self._may_resume(old, client, record):
                return None
            if old.sock is None:
                return old
            old.cut()
            gevent.sleep(0.002)
        return None

    def _may_resume(self, old, client, record):
        bound = self.caller_record(old.caller)
        if old.caller is not None and bound is None:
            return False
        if record is not None and (bound is None or (record.collection.id, record.id) != old.caller[:2]):
            return False
        return old.ip == client.ip or record is not None

    def _adopt(self, client, old):
        """Moves subscriptions, caller and history over."""
        topics, old.topics, old.heir = old.topics, {}, client
        client.caller = old.caller
        for topic in topics.values():
            group = topic.groups[old.caller]
            del group[old]
            group[client] = None
        client.topics = topics
        client.ids = (client.id, *old.ids[:IDS_KEPT], *old.ids[IDS_KEPT:][-1:])
        for id in client.ids:
            self.clients[id] = client
        client.heir = None
        client.history, client.history_bytes, client.floor, client.last = old.history, old.history_bytes, old.floor, old.last
        old.history = None
        self.away.pop(old, None)

    def _reset(self, client):
        client.tell("PB_RESET", to_json({"clientId": client.id, "subscriptions": list(client.topics)}))

    def _still_visible(self, client, last):
        """The kept messages after `last` that the client may see under the rules of now; None when a collection's fields changed meanwhile.

        A record that is gone cannot be asked: what was told of it stands if its delete was visible.
        """
        kept, deleted, views = [], set(), {}
        for message in reversed([message for message in client.history if message.number > last]):
            verdict = message.source is None or self._visible_again(client, message, deleted, views)
            if verdict is None:
                return None
            if verdict:
                kept.append(message)
        return kept[::-1]

    def _visible_again(self, client, message, deleted, views):
        collection, id, action = message.source
        topic = client.topics.get(message.event)
        current = self.app.schema.find_exact(collection.id)
        if topic is None or current is None:
            return False
        if current is not collection and [f.as_json() for f in current.fields] != [f.as_json() for f in collection.fields]:
            return None
        rule, mark = _topic_rule(topic, current), (topic.text, collection.id, id)
        if action == "delete":
            if rule == _topic_rule(topic, collection):
                deleted.add(mark)
            return mark in deleted
        view = views.get((current, id)) or views.setdefault((current, id), ChangeView(self, current, id))
        return view.visible(view.info(topic, client.caller), rule, topic.query.get("filter", "")) or mark in deleted

    # -- once a second, and the end

    def _sweep(self):
        while self.clients:
            gevent.sleep(1)
            self.clock = time.monotonic()
            for client in list(self.clients.values()):
                try:
                    client.check(self.clock)
                except Exception:
                    LOG.exception("the check of a realtime client failed")
        self._sweeper = None

    def _terminate(self, event):
        """Event streams end, WebSockets close with 1001."""
        self.closed = True
        self._listen(False)
        self._jobs.clear()
        for client in list(self.clients.values()):
            client.end(GOING_AWAY)
        return event.next()


# ---- connections

def serve_event_stream(broker, client, resume, record, sock, leftover, request):
    """Runs an event stream until its client leaves. `resume`: (client id, number) of its Last-Event-ID, or None."""
    client.open(sock)
    broker.enter(client)
    try:
        if resume is not None:
            client.last = resume[1]                 # until all is told again, the client's own position is its last
        client.tell("PB_CONNECT", f'{{"clientId":"{client.id}"}}')
        if resume is not None:
            client.last = broker.number
            broker.resume(client, *resume, record)
        while request.connection.receive():         # nothing is expected; the end tells that the client has left
            pass
    finally:
        broker.leave(client)


def serve_websocket(broker, request, ip, websocket):
    """Runs a WebSocket until its client leaves; a page of a foreign origin is turned away (browsers do not ask CORS for WebSockets)."""
    if not _same_or_allowed_origin(broker, request):
        websocket.close(POLICY, "origin not allowed")
        return request.connection._linger()
    client = WebSocketClient(broker, request, ip)
    client.open(request.connection.sock)
    broker.enter(client)
    try:
        client.talk(websocket)
    finally:
        broker.leave(client)
        websocket.closed = True
    request.connection._linger()                    # a reset must not overtake the close frame


def _same_or_allowed_origin(broker, request):
    origin = request.header("origin")
    return not origin or origin.partition("://")[2].lower() == request.header("host").lower() or broker.allows_origin(origin)


# ============================================================================
#  19. Routes
# ============================================================================
# One decorated function an endpoint: parse, call, answer.  The boundary around
# them decides who asks, turns errors into envelopes and adds the headers that
# every answer carries.  Bottle's router finds the function.

BODY_LIMIT = 32 << 20               # bytes of a request body unless a route knows better
FORM_TEXT_LIMIT = 64 << 20          # bytes of a multipart form's text parts
FORM_READ = 1 << 18                 # bytes asked of the connection at once
FIND_WINDOW = 28_000
FORM_PARTS = 1000                   # parts of a multipart form, as PocketBase
FORM_PART_HEAD = 64 << 10           # bytes of one part's header fields; names of 10 kB are met
BATCH_BODY_LIMIT = 128 << 20
TRUE_TEXTS = ("1", "t", "T", "TRUE", "true", "True")
FALSE_TEXTS = ("0", "f", "F", "FALSE", "false", "False")

SECURITY_HEADERS = (("Cross-Origin-Opener-Policy", "same-origin"), ("Vary", "Origin"), ("X-Content-Type-Options", "nosniff"),
                    ("X-Frame-Options", "SAMEORIGIN"), ("X-Xss-Protection", "1; mode=block"))
JSON_HEADERS = (("Content-Type", "application/json"), *SECURITY_HEADERS)
NEEDS_AUTH = "The request requires valid record authorization token."
WRONG_AUTH = "The authorized record is not allowed to perform this action."

ROUTER = bottle.Router()
METHODS = frozenset(("GET", "POST", "PUT", "PATCH", "DELETE"))     # in exactly this spelling


def route(method, path, *tags):
    """Registers an endpoint: `@route("GET", "/api/health")`; `tags` are the actions that rate limits know it by."""
    def register(function):
        ROUTER.add(path, method, Endpoint(function, path, tags))
        return function
    return register


class Endpoint:
    """A route's function and what the boundary must know of it."""

    __slots__ = ("function", "path", "tags")

    def __init__(self, function, path, tags):
        self.function, self.path, self.tags = function, path, tags


class Call:
    """One request as the endpoints see it; a batch makes one for each of its requests."""

    __slots__ = ("app", "request", "method", "auth", "superuser", "context", "query", "_headers", "_data", "uploads", "picked", "ip", "path")

    def __init__(self, app, request, method, auth, query, context="default"):
        self.app, self.request, self.method, self.auth, self.query, self.context = app, request, method, auth, query, context
        self.superuser = auth is not None and auth.collection.name == SUPERUSERS
        self._headers = self._data = None
        self.uploads = []                   # (part name, Upload) of a multipart body
        self.picked = False                 # the endpoint has applied `fields` itself
        self.ip = self.path = ""            # path: only of a batch's requests, which have no Request

    def param(self, name):
        """A query parameter's first value, "" when absent."""
        values = self.query.get(name)
        return values[0] if values else ""

    @property
    def headers(self):
        """First value by lower snake_case name, as rules see them."""
        if self._headers is None:
            self._headers = {}
            for name, value in self.request.headers:
                if name == "host":                          # it is no header to a rule
                    continue
                self._headers.setdefault(header_variable(name), value)
        return self._headers

    def fire(self, name, work, **attributes):
        """Runs `work(event)` inside the listeners of a request event; returns its result."""
        return self.app.events.fire((name,), work, app=self.app, call=self, **attributes)

    def info(self, body=None):
        return CallInfo(self, body or {})

    def data(self, limit=BODY_LIMIT, long_is_413=False):
        """The submitted data as a dict; 400 when it cannot be read."""
        if self._data is None:
            self._data = read_body(self, limit, long_is_413)
        return self._data

    def need_superuser(self):
        if self.auth is None:
            raise unauthorized(NEEDS_AUTH)
        if not self.superuser:
            raise forbidden(WRONG_AUTH)

    def need_auth(self):
        if self.auth is None:
            raise unauthorized(NEEDS_AUTH)


class CallInfo(RequestInfo):
    """What rules see of a call; headers and query are only looked at by the few rules that name them."""

    __slots__ = ("_call",)

    def __init__(self, call, body):
        self._call, self.body = call, body
        self.context, self.method, self.auth, self.superuser = call.context, call.method, call.auth, call.superuser

    @property
    def headers(self):
        return self._call.headers

    @property
    def query(self):
        return {name: values[0] for name, values in self._call.query.items()}


# ---- reading bodies

def read_body(call, limit, long_is_413):
    """JSON or form data as a dict by the request's Content-Type."""
    request = call.request
    if request.content_length == 0 and not request.chunked:
        return {}
    kind = request.header("content-type")
    try:
        if kind.startswith("application/json"):
            return _json_object(request.body(limit))
        if kind.startswith("multipart/form-data"):
            return _multipart_form(call, limit)
        body = request.body(limit)
    except BodyTooLong:
        raise (too_large() if long_is_413 else bad_request()) from None
    if not body:
        return {}
    if kind.startswith("application/x-www-form-urlencoded"):
        if _BROKEN_FORM(body):
            raise bad_request(raw="malformed form body")
        return _form_data(parse_query(body.decode("utf-8", "replace")), call.query)
    raise bad_request("Unsupported Content-Type." if not kind.startswith(("text/xml", "application/xml")) else "")


_BROKEN_FORM = re.compile(rb"%(?![0-9a-fA-F]{2})|;").search


def unreadable(error, message):
    """What a route answers when `call.data` failed: its own text, but 413 for a body that is too long."""
    return error if error.status == 413 else bad_request(message, raw=error.raw)


def _json_object(body):
    try:
        data = parse_json(body)
    except ValueError as error:
        raise bad_request(raw=str(error)) from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise bad_request(raw="the body must be a JSON object")
    return data


_NUMBER_TEXT = re.compile(r"[-0-9][-.0-9]*").fullmatch


def infer_value(text):
    """The typed value of a form text: `true` -> True, `5` -> 5, `007` -> "007"."""
    if text in ("true", "false"):
        return text == "true"
    if _NUMBER_TEXT(text):
        try:
            number = float(text)
            if format_number(number) == text:
                return cast_number(text)
        except ValueError:
            pass
    return text


def _form_data(values, query=None):
    """{name: [text]} -> {name: inferred value or list}; URL parameters are part of a form; `@jsonPayload` is merged over it."""
    merged = {name: list(texts) for name, texts in values.items()}
    for name, texts in (query or {}).items():
        merged.setdefault(name, []).extend(texts)
    payloads = merged.pop("@jsonPayload", ())
    data = {name: infer_value(texts[0]) if len(texts) == 1 else [infer_value(t) for t in texts] for name, texts in merged.items()}
    for payload in payloads:
        data.update(_json_object(payload.encode("utf-8", "surrogateescape")))
    return data


def _multipart_form(call, limit):
    """Text parts as data; file parts become `call.uploads`, written to disk while they come in when they are large."""
    request = call.request
    if request.content_length is not None and request.content_length > limit:
        raise too_large()
    values, room = {}, FORM_TEXT_LIMIT
    try:
        _, options = bottle._parse_http_header(request.header("content-type"))[0]
        form = MultipartForm(LimitedStream(request.stream, limit).read, options.get("boundary", ""))
        for name, filename in form:
            if filename and name:
                call.uploads.append((name, new_upload(filename, _receive_file(call.app, form))))
                continue
            text = form.text(room)
            room -= len(text)
            if name:
                values.setdefault(name, []).append(text.decode("utf-8"))
    except (MultipartError, ValueError) as error:
        raise bad_request(raw=str(error)) from None
    return _form_data(values, call.query)


def _receive_file(app, form):
    """The file that the current part of a form holds."""
    received = ReceivedFile(app.temporary_directory, app.file_threads)
    try:
        for piece in form.content():
            received.write(piece)
        received.finish()
    except BaseException:
        received.close()
        raise
    return received


class MultipartError(ValueError):
    """A body that is not the multipart form it claims to be."""


_CONTROL_BYTE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search


class MultipartForm:
    """The parts of a multipart/form-data body (RFC 7578) in order, each read before the next: the boundary is searched for in whole
    blocks, so that a file costs no work a line.

        for name, filename in form:         # filename None or "": a text
            text = form.text(1000)          # or: for piece in form.content(): ...
    """

    def __init__(self, read, boundary):
        if not 0 < len(boundary) <= 70:     # RFC 2046 5.1.1
            raise MultipartError("no boundary, or no valid one")
        self.read, self.mark, self.buffer = read, b"\r\n--" + boundary.encode("latin-1", "replace"), b"\r\n"

    def __iter__(self):
        for _ in self.content():            # what precedes the first boundary means nothing
            pass
        for _ in range(FORM_PARTS):
            if self._at_end():
                return
            yield self._part_head()
        if not self._at_end():
            raise MultipartError("too many parts")

    def content(self):
        """The pieces of what comes before the next boundary, which is then behind us."""
        mark, keep = self.mark, len(self.mark)
        while True:
            at = _find(self.buffer, mark)
            while at >= 0 and at + keep == len(self.buffer):
                self._more()
            if at >= 0:
                piece, rest = self.buffer[:at], self.buffer[at + keep:]
                if rest[:1] in b" \t\r\n-":
                    self.buffer = rest
                    if piece:
                        yield piece
                    return
                yield self.buffer[:at + keep]               # a longer word that begins like the boundary
                self.buffer = rest
            else:
                if len(self.buffer) > keep:
                    piece, self.buffer = self.buffer[:-keep], self.buffer[-keep:]
                    yield piece
                self._more()

    def text(self, limit):
        """The content as bytes, at most `limit` of them."""
        pieces = []
        for piece in self.content():
            limit -= len(piece)
            if limit < 0:
                raise MultipartError("the texts are too long")
            pieces.append(piece)
        return b"".join(pieces)

    def _more(self):
        data = self.read(FORM_READ)
        if not data:
            raise MultipartError("unexpected end of the form")
        self.buffer += data

    def _at_end(self):
        """Whether the boundary just passed is the last one: `--` follows."""
        while len(self.buffer) < 2:
            self._more()
        return self.buffer[:2] == b"--"

    def _part_head(self):
        """(name, filename) of the part that begins here; the blanks that may follow a boundary are part of the search."""
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            if len(self.buffer) > FORM_PART_HEAD:
                raise MultipartError("a part's header is too long")
            self._more()
        padding, *lines = re.sub(rb"\r\n[ \t]+", b" ", self.buffer[:end]).split(b"\r\n")
        self.buffer = self.buffer[end + 4:]
        if padding.strip(b" \t") or not all(b":" in line and not _CONTROL_BYTE(line) for line in lines):
            raise MultipartError("a part's header is broken")
        fields = {name.strip().lower(): value for name, _, value in (line.partition(b":") for line in lines)}
        return _disposition(fields.get(b"content-disposition", b"").decode("utf-8", "replace"))


def _find(data, mark):
    """`data.find(mark)` from the first carriage return on, often the mark's own, in windows: above 30 kB CPython takes an algorithm
    for the worst case, half as fast here."""
    first = data.find(b"\r")
    for at in range(first, len(data), FIND_WINDOW) if first >= 0 else ():
        if (found := data.find(mark, at, at + FIND_WINDOW + len(mark) - 1)) >= 0:
            return found
    return -1


_USUAL_DISPOSITION = re.compile(r'form-data; name="([^"\\]*)"(?:; filename="([^"\\]*)")?').fullmatch


def _disposition(text):
    """`form-data; name="a"; filename="x/b.txt"` -> ("a", "b.txt"); encoded and split ones too (RFC 2231), None where one is missing."""
    usual = _USUAL_DISPOSITION(text)
    if usual:
        name, filename = usual.groups()
    else:
        from email.message import Message
        message = Message()
        message["content-disposition"] = text
        kind, *options = message.get_params((("", ""),), "content-disposition")
        if kind[0].lower() != "form-data":
            return None, None
        options = {key.lower(): collapse_rfc2231_value(value) for key, value in options}
        name, filename = options.get("name"), options.get("filename")
    return name, filename and (os.path.basename(filename.rstrip("/")) or "/")


class LimitedStream:
    """A body stream that refuses to deliver more than a limit, whatever its framing promised."""

    def __init__(self, stream, limit):
        self._stream, self._left = stream, limit

    def read(self, size):
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise BodyTooLong("the body is longer than allowed")
        return data


def new_upload(filename, source):
    """An Upload of a ReceivedFile; its type is found by content."""
    return Upload.of(stored_name(filename, source.head), filename, source.size, sniff_type(source.head), source)


def parse_int(text, default):
    """A query number as Go parses it; 400 for anything else."""
    if not text:
        return default
    if not re.fullmatch(r"[+-]?\d+", text) or not -2 ** 63 <= int(text) < 2 ** 63:
        raise bad_request()
    return int(text)


def parse_bool(text):
    if text in TRUE_TEXTS:
        return True
    if text in FALSE_TEXTS or not text:
        return False
    raise bad_request()


class Page:
    """page, perPage and skipTotal of a list request."""

    __slots__ = ("number", "size", "skip_total")

    def __init__(self, call):
        self.number = max(parse_int(call.param("page"), 1), 1)
        size = parse_int(call.param("perPage"), 30)
        self.size = min(size, MAX_PER_PAGE) if size > 0 else 30
        self.skip_total = parse_bool(call.param("skipTotal"))

    @property
    def offset(self):
        return min((self.number - 1) * self.size, 2 ** 63 - 1)

    def json(self, items, total):
        pages = -1 if total < 0 else -(-total // self.size)
        return f'{{"items":[{items}],"page":{self.number},"perPage":{self.size},"totalItems":{total},"totalPages":{pages}}}'


# ---- the boundary

class Boundary:
    """Maps a Request to a Response: who asks, which endpoint, what went wrong."""

    def __init__(self, app, origins=("*",), public_dir="", index_fallback=True):
        self.app = app
        self.origins = origins
        self.any_origin = "*" in origins
        self.origin_test = re.compile("|".join(_wildcard(o) for o in origins)).fullmatch
        self.public_dir, self.index_fallback = public_dir, index_fallback

    def __call__(self, request):
        if self.app.dev:
            LOG.info("%s %s", request.method, request.target)
        if request.method == "OPTIONS":
            return self.preflight(request)
        origin = request.header("origin")
        response = self.answer(request)
        if origin and self.allows_origin(origin):
            response.headers = (*response.headers, ("Access-Control-Allow-Origin", "*" if self.any_origin else origin))
        return response

    def allows_origin(self, origin):
        return self.any_origin or bool(self.origin_test(origin))

    def answer(self, request):
        app = self.app
        call = None
        try:
            token = request.header("authorization")
            auth = app.identities.of_header(token) if token else None
            call = Call(app, request, request.method, auth, request.query)
            call.ip = client_ip(app, request)
            if call.superuser and not superuser_ip_allowed(app, call.ip):
                return Response(403, (("Content-Type", "application/json"), ("Vary", "Origin")), to_json(forbidden().as_json()))
            endpoint, arguments = find_endpoint(request)
            if endpoint is None:
                return self.elsewhere(request)
            self.limit_rate(call, endpoint, arguments)
            if (request.content_length or 0) > BODY_LIMIT and endpoint.function not in OWN_BODY_LIMIT:
                raise too_large()
            result = endpoint.function(call, **arguments)
            return self.finish(call, result)
        except ApiError as error:
            return error_response(error)
        except MfaNeeded as needed:
            return Response(401, JSON_HEADERS, to_json({"mfaId": needed.id}))
        except (ClientGone, GreenletExit):
            raise
        except Exception as error:
            return error_response(unexpected(error, request))
        finally:
            if call is not None:
                for _, upload in call.uploads:
                    upload.source.close()

    def limit_rate(self, call, endpoint, arguments):
        app = self.app
        if app.settings["rateLimits"]["enabled"]:
            collection = app.schema.find(arguments["name"]) if endpoint.tags else None
            if collection is not None or not endpoint.tags:         # an unknown collection is a 404 first
                app.rate_limiter.check(call, endpoint.path, endpoint.tags, collection)

    def finish(self, call, result):
        if result is None:
            return Response(204, SECURITY_HEADERS)
        if isinstance(result, Response):
            return result
        fields = None if call.picked else call.param("fields")
        if fields:
            pick = parse_fields(fields)
            data = result if not isinstance(result, str) else json.loads(result)
            result = to_json(pick_answer(pick, data)) if pick else result
        return Response(200, JSON_HEADERS, result if isinstance(result, str) else to_json(result))

    def elsewhere(self, request):
        """No endpoint: a static file for GET and HEAD, else 404."""
        if (request.content_length or 0) > BODY_LIMIT:
            return error_response(too_large())
        if request.method not in ("GET", "HEAD"):
            return error_response(not_found())
        return serve_static(request, self.public_dir, request.path, self.index_fallback, SECURITY_HEADERS)

    def preflight(self, request):
        headers = [("Vary", "Origin")]
        origin = request.header("origin")
        if origin and self.allows_origin(origin):
            headers += [("Vary", "Access-Control-Request-Method"), ("Vary", "Access-Control-Request-Headers"),
                        ("Access-Control-Allow-Origin", "*" if self.any_origin else origin),
                        ("Access-Control-Allow-Methods", "GET,HEAD,PUT,PATCH,POST,DELETE")]
            asked = request.header("access-control-request-headers")
            if asked:
                headers.append(("Access-Control-Allow-Headers", asked))
        return Response(204, tuple(headers))


def _wildcard(origin):
    return re.escape(origin).replace(r"\*", ".*").replace(r"\?", ".")


def client_ip(app, request):
    """The peer, or behind a trusted proxy the address that its configured header names."""
    proxy = app.settings["trustedProxy"]
    for name in proxy["headers"]:
        lines = request.header_values(name.lower())
        if lines:
            ips = [ip for ip in (part.strip() for part in lines[-1].split(",")) if is_ip_or_subnet(ip) and "/" not in ip]
            if ips:
                return ips[0 if proxy["useLeftmostIP"] else -1]
    return request.remote_ip


_KNOWN_ENDPOINTS = Memo(1 << 20)        # (method, raw path) -> (endpoint, arguments)


def find_endpoint(request):
    """(endpoint, arguments) or (None, None); HEAD finds the GET endpoint."""
    key = request.method, request.raw_path
    return _KNOWN_ENDPOINTS.get(key) or _KNOWN_ENDPOINTS.keep(key, _find_endpoint(*key), 500 + 2 * len(key[1]))


def _find_endpoint(method, path):
    method = "GET" if method == "HEAD" else method
    if "%" in path:
        path = "/".join(unquote(segment).replace("/", "%2F") for segment in path.split("/"))
    if method not in METHODS:
        return None, None
    try:
        endpoint, arguments = ROUTER.match({"REQUEST_METHOD": method, "PATH_INFO": path})
    except bottle.HTTPError:
        return None, None
    if "%2F" in path:
        arguments = {name: value.replace("%2F", "/") for name, value in arguments.items()}
    return endpoint, arguments


def error_response(error):
    return Response(error.status, JSON_HEADERS, to_json(error.as_json()))


def unexpected(error, request):
    """The ApiError for an exception nobody expected: 400 as PocketBase; programming errors are logged with their trace."""
    if isinstance(error, (sqlite3.Error, QueryTimeout, ValueError, OverflowError)):
        LOG.info("%s %s: %s", request.method, request.target, error)
    else:
        LOG.exception("%s %s failed", request.method, request.target)
    return bad_request(raw=str(error))


def pick_answer(pick, data):
    """`fields` applied to an answer: to each item of a list answer, whose paging keys stay."""
    if isinstance(data, dict) and "items" in data and "perPage" in data:
        return {**data, "items": [pick.apply(item) for item in data["items"]]}
    return pick.apply(data)


# ---- realtime

@route("GET", "/api/realtime")
def connect_realtime(call):
    """GET /api/realtime: an event stream, or a WebSocket when the client asks to upgrade"""
    request, broker = call.request, call.app.realtime
    if "upgrade" in request.header("connection").lower() and request.header("upgrade").lower() == "websocket":
        return websocket_accept(request, functools.partial(serve_websocket, broker, request, call.ip), max_message=WEBSOCKET_MESSAGE_LIMIT)
    headers = (*STREAM_HEADERS, *SECURITY_HEADERS)
    if request.method == "HEAD":
        return Response(200, headers)
    last, asked = request.header("last-event-id"), parse_bool(call.param("resume"))
    resume = split_event_id(last) or (UNKNOWN_EVENT if last and asked else None)
    client = Client(broker, request, call.ip, asked or resume is not None)
    headers += (("Transfer-Encoding", "chunked"),) if request.version == "1.1" else (("Connection", "close"),)
    return Response(200, headers, Upgrade(functools.partial(serve_event_stream, broker, client, resume, call.auth)))


@route("POST", "/api/realtime")
def set_subscriptions(call):
    """POST /api/realtime"""
    broker = call.app.realtime
    try:
        data = dict(call.data())
    except ApiError as error:
        raise unreadable(error, "") from None
    if not call.request.header("content-type").startswith("application/json"):
        texts = data.get("subscriptions", [])
        data["subscriptions"] = [cast_text(text) for text in (texts if isinstance(texts, list) else [texts])]
        data["clientId"] = cast_text(data.get("clientId", ""))
    form = load_form(REALTIME_SHAPE, data, "")
    check_topics(form, {"clientId": (required, length(1, 255))})
    client = broker.find(form["clientId"])
    if client is None:
        raise not_found("Missing or invalid client id.")
    if client.ip != call.ip:
        raise bad_request("Invalid realtime client.")
    broker.bind(client, call.auth)
    broker.subscribe(client, form["subscriptions"])


OAUTH2_REDIRECTS = "../_/#/auth/oauth2-redirect-"


@route("GET", "/api/oauth2-redirect")
@route("POST", "/api/oauth2-redirect")
def receive_oauth2_redirect(call):
    """GET|POST /api/oauth2-redirect: where a provider sends the browser back to; its code goes to the realtime client that `state` names"""
    broker, values = call.app.realtime, _redirect_values(call)
    state, code, error, user = (cast_text(values.get(name, "")) for name in ("state", "code", "error", "user"))
    client = broker.find(state)
    good = False
    if client is not None and OAUTH2_TOPIC in client.topics:
        broker.subscribe(client, [text for text in client.topics if text != OAUTH2_TOPIC])      # consumed, whoever came
        if client.ip == call.ip:
            if user and code and not error:
                remember_apple_name(call.app, code, user)
            broker.send_to(client, OAUTH2_TOPIC, {"state": state, "code": code, **({"error": error} if error else {})})
            good = bool(code) and not error
    return Response(307 if call.method == "GET" else 303, (*SECURITY_HEADERS, ("Location", OAUTH2_REDIRECTS + ("success" if good else "failure"))))


def _redirect_values(call):
    """What the provider sent; what cannot be read names no client, so that a browser always lands on a page."""
    if call.method != "POST":
        return {name: texts[0] for name, texts in call.query.items()}
    try:
        return call.data()
    except ApiError:
        return {}


APPLE_NAME_SECONDS = 60
APPLE_NAMES_KEPT = 1000


def remember_apple_name(app, code, user):
    """Keeps the name that Apple posts only once, `{"name":{"firstName":"A","lastName":"B"}}`, for the sign-in with the same code."""
    try:
        name = parse_json(user)["name"]
        text = f'{cast_text(name.get("firstName"))} {cast_text(name.get("lastName"))}'.strip()
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    if text and len(text.encode()) <= 150 and len(app.apple_names) < APPLE_NAMES_KEPT:
        app.apple_names[code] = text
        gevent.spawn_later(APPLE_NAME_SECONDS, app.apple_names.pop, code, None)


# ---- health

@route("GET", "/api/health")
def check_health(call):
    """GET /api/health"""
    if not call.superuser:
        return HEALTHY
    names = [*call.app.settings["trustedProxy"]["headers"], "CF-Connecting-IP", "Fly-Client-IP", "X-Forwarded-For"]
    proxy = next((name for name in names if call.request.header(name.lower())), "")
    return {"message": "API is healthy.", "code": 200, "data": {"canBackup": True, "realIP": call.ip, "possibleProxyHeader": proxy}}


HEALTHY = '{"message":"API is healthy.","code":200,"data":{}}'


# ---- records

def records_collection(call, name, message="Missing collection context."):
    collection = call.app.schema.find(name)
    if collection is None:
        raise not_found(message)
    return collection


def _check_rule_access(call, rule):
    if rule is None and not call.superuser:
        raise forbidden("Only superusers can perform this action.")


def _read_submitted(call):
    """GET and DELETE read their bodies too: a broken one is refused."""
    if call.request is not None and (call.request.content_length or call.request.chunked):
        return call.data()
    return {}


@route("GET", "/api/collections/<name>/records", "list")
def list_records(call, name):
    """GET /api/collections/{collection}/records"""
    app, collection = call.app, records_collection(call, name)
    info = call.info(_read_submitted(call))
    _check_rule_access(call, collection.list_rule)
    filter, sort, expand = call.param("filter"), call.param("sort"), call.param("expand")
    if "\0" in filter.rstrip("\0"):
        raise bad_request()
    if not call.superuser:
        check_client_text(filter, sort)
    page, pick = Page(call), parse_fields(call.param("fields"))
    query = plan_query(app.schema, collection, info, rule=None if call.superuser else collection.list_rule, filter=filter, sort=sort)
    picked = pick.simple if pick and pick.simple and not expand and not app.events.listened("record_enrich") else None
    encoder = row_encoder(collection, call.superuser, picked)
    select, count = list_sql(collection, query, encoder)
    params = (*query.params_joins, *query.params_where)
    total = -1 if page.skip_total else app.store.total(count, params, query.tables)
    params += (*query.params_order, page.size, page.offset)
    if picked is None and not follows_from_row(app, collection, expand):
        return page.json(",".join(records_json(app, app.store, info, collection, app.store.read(select, params), expand)), total)
    call.picked = picked is not None
    items = app.store.remembered((encoder, select, *params), query.tables, lambda: encoder.encode_all(app.store.read(select, params)))
    return page.json(items, total)


def list_sql(collection, query, encoder):
    """(rows statement, counting statement) of a planned list; kept with the collection."""
    key = "list", query.plan, encoder.columns
    known = collection.compiled.get(key)
    if known is None:
        table = quote_name(collection.name)
        where = f" WHERE {query.where}" if query.where else ""
        order = f" ORDER BY {query.order}" if query.order else ""
        tail = f" FROM {table} {query.joins}{where}"
        distinct = "DISTINCT " if query.distinct else ""
        counted = f"count(DISTINCT {table}.`id`)" if query.distinct or collection.is_view else "count(*)"
        if len(collection.compiled) > 3000:
            collection.compiled.clear()
        known = f"SELECT {distinct}{encoder.columns}{tail}{order} LIMIT ? OFFSET ?", f"SELECT {counted}{tail}"
        collection.compiled[key] = known
    return known


@route("GET", "/api/collections/<name>/records/<id>", "view")
def view_record(call, name, id):
    """GET /api/collections/{collection}/records/{id}"""
    app, collection = call.app, records_collection(call, name)
    info = call.info(_read_submitted(call))
    _check_rule_access(call, collection.view_rule)
    row = find_row(app, app.store, info, collection, id, None if call.superuser else collection.view_rule)
    if row is None:
        raise not_found()
    return records_json(app, app.store, info, collection, [row], call.param("expand"))[0]


def find_row(app, db, info, collection, id, rule):
    """The full row with this id if it satisfies the rule (None: no rule), else None."""
    table = quote_name(collection.name)
    if not rule:
        sql = collection.compiled.get("by id")
        if sql is None:
            sql = collection.compiled["by id"] = f"SELECT {columns_sql(collection)} FROM {table} WHERE {table}.`id`=? LIMIT 1"
        rows = db.read(sql, (id,))
    else:
        query = plan_query(app.schema, collection, info, rule=rule)
        key = "by id", query.plan
        sql = collection.compiled.get(key)
        if sql is None:
            sql = f"SELECT {columns_sql(collection)} FROM {table} {query.joins} WHERE ({query.where}) AND {table}.`id`=? LIMIT 1"
            collection.compiled[key] = sql
        rows = db.read(sql, (*query.params_joins, *query.params_where, id))
    return rows[0] if rows else None


class RecordWrite:
    """One create, update or delete of a record through the API.

    `prepare` does what may take long or wait (reading the body, bcrypt, saving files) before the transaction, `run` everything
    that must see one state inside it, `answer` the JSON afterwards; `discard` cleans up after a failure.
    """

    FAILED = {"create": "Failed to create record.", "update": "Failed to update record.",
              "delete": "Failed to delete record. Make sure that the record is not part of a required relation reference."}

    def __init__(self, call, name, verb, id=""):
        self.call, self.app, self.verb, self.id = call, call.app, verb, id
        missing = "Missing collection context." if verb == "delete" or call.request is None else "Missing or invalid collection context."
        self.collection = records_collection(call, name, missing)
        self.rule = getattr(self.collection, verb + "_rule")
        self.keys, self.hashes, self.old_hash, self.record = {}, {}, None, None       # keys: Upload -> its storage key
        self.random_password = False        # the password is one that nobody chose: the field's checks do not matter

    # before

    def prepare(self):
        call, collection = self.call, self.collection
        limit = body_limit(collection)
        if call.request is not None and (call.request.content_length or 0) > limit and self.verb != "delete":
            raise too_large()
        if collection.is_view:
            raise bad_request("Unsupported collection type.")
        self.data = dict(call.data(limit, long_is_413=True)) if call.request is not None or call._data else {}
        _check_rule_access(call, self.rule)
        if self.verb == "delete":
            return self
        self._attach_uploads()
        self._hash_passwords()
        self._check_old_password()
        return self

    def _attach_uploads(self):
        """Puts the uploads of a form into the data, beside the names to keep; saves their content."""
        fields = {f.name: f for f in self.collection.file_fields}
        given = {}
        for part, upload in self.call.uploads:
            target = split_modifier(self.collection, part)
            if target and target[0].name in fields and target[1] != "-":
                given.setdefault(part, []).append(upload)
        for part, uploads in given.items():
            kept = self.data.get(part, [])
            self.data[part] = (cast_list(kept) if kept not in ("", None) else []) + uploads
        if not given:
            return
        uploads = {target[0].name: [] for target in map(functools.partial(split_modifier, self.collection), given)}
        for part, items in given.items():
            uploads[split_modifier(self.collection, part)[0].name] += items
        if all(fields[name].check_upload(u) is None for name, items in uploads.items() for u in items):
            self._save_uploads([u for items in uploads.values() for u in items])

    def _save_uploads(self, uploads):
        if self.verb == "create":
            if not cast_text(self.data.get("id")):
                self.data["id"] = self.collection.by_name["id"].autogenerated() or random_id()
            id = cast_text(self.data["id"])
        else:
            id = self.id
        if re.search(r"[/\\\0]|^\.{0,2}$", id):
            return                              # no record can have this id: the validation says so
        for upload in uploads:
            key = file_key(self.collection.id, id, upload)
            self.keys[upload] = key
            save_upload(self.app, key, upload, self.FAILED[self.verb])

    def _hash_passwords(self):
        for field in self.collection.fields:
            if field.type == "password" and field.name in self.data:
                plain = cast_text(self.data[field.name])
                if plain and (self.random_password or field.check_plain(plain) is None):
                    self.hashes[field.name] = hash_password(self.app, plain, field.cost)

    def _check_old_password(self):
        """Compares oldPassword ahead of the transaction; `run` accepts it only for the same hash."""
        old = self.data.get("oldPassword") if self.verb == "update" and self.collection.is_auth else None
        if old and not self.call.superuser:
            record = find_record(self.app.store, self.collection, self.id)
            if record is not None and password_matches(self.app, cast_text(old), record["password"]):
                self.old_hash = record["password"]

    # inside the transaction

    def run(self, tx):
        try:
            self._refresh_collection()
            self._check_installer(tx)
            return getattr(self, "_" + self.verb)(tx)
        except ApiError as error:
            if error.status == 400 and error.message == STATUS_MESSAGES[400]:
                raise bad_request(self.FAILED[self.verb], error.data, error.raw) from None
            raise
        except (sqlite3.Error, ValueError, OverflowError) as error:
            raise bad_request(self.FAILED[self.verb], raw=str(error)) from None

    def _check_installer(self, tx):
        """The installer's token makes one superuser: whoever comes second, at the same moment too, finds its account gone."""
        auth = self.call.auth
        if self.call.superuser and auth["email"] == INSTALLER_EMAIL and find_record(tx, auth.collection, auth.id) is None:
            raise forbidden("Only superusers can perform this action.")

    def _refresh_collection(self):
        """The collection as it is now, should it have changed while the write waited for its turn."""
        current = self.app.schema.find_exact(self.collection.id)
        if current is not self.collection:
            if current is None:
                raise not_found("Missing collection context.")
            self.collection, self.rule = current, getattr(current, self.verb + "_rule")
            _check_rule_access(self.call, self.rule)

    def _create(self, tx):
        call, collection = self.call, self.collection
        record = self.record = Record(collection)
        info = self.info = call.info(load_data(record, self.data, call.superuser))
        if not call.superuser and self.rule:
            if not new_record_satisfies(self.app, tx, info, record, self.rule):
                raise bad_request(raw="the create rule failed")
        if collection.is_auth:
            self._check_auth_form(tx, info, record)
        self._save(tx, record)

    def _update(self, tx):
        call, collection = self.call, self.collection
        row = find_row(self.app, tx, None, collection, self.id, None)
        if row is None:
            raise not_found()
        record = self.record = Record(collection, row)
        info = self.info = call.info(load_data(record, self.data, call.superuser))
        if not call.superuser and self.rule and find_row(self.app, tx, info, collection, self.id, self.rule) is None:
            raise not_found()
        if collection.is_auth:
            self._check_auth_form(tx, info, record)
        self._save(tx, record)

    def _delete(self, tx):
        info = self.call.info(self.data)
        row = find_row(self.app, tx, info, self.collection, self.id, None if self.call.superuser else self.rule)
        if row is None:
            raise not_found()
        delete_record(self.app, tx, Record(self.collection, row), info)

    def _save(self, tx, record):
        for name, hashed in self.hashes.items():
            if name in record.passwords:
                record.values[name] = hashed
        for name, plain in record.passwords.items():
            if not plain:
                record.values[name] = ""
        if self.random_password:
            del record.passwords["password"]
        save_record(self.app, tx, record, info=self.info)

    def _check_auth_form(self, tx, info, record):
        """What only managers may do to an auth record; these errors come before the fields'."""
        data, errors = self.data, {}
        managed = self.call.superuser or self._is_manager(tx, info, record)
        if not managed:
            stored = record.original
            if not record.is_new and record["email"] != stored["email"]:
                errors["email"] = FieldError("validation_values_mismatch")
            if record["verified"] != stored["verified"]:
                errors["verified"] = FieldError("validation_values_mismatch")
        plain = {name: cast_text(data.get(name)) for name in ("password", "passwordConfirm", "oldPassword")}
        touched = record.is_new or any(plain[name] for name in plain)
        for name, others in (("password", ("passwordConfirm", "oldPassword")), ("passwordConfirm", ("password", "oldPassword"))):
            if (record.is_new or any(plain[o] for o in others)) and not plain[name]:
                errors[name] = FieldError("validation_required")
        if touched and plain["passwordConfirm"] and plain["passwordConfirm"] != plain["password"]:
            errors["passwordConfirm"] = FieldError("validation_values_mismatch")
        if not record.is_new and not managed and (plain["password"] or plain["passwordConfirm"]):
            if not plain["oldPassword"]:
                errors["oldPassword"] = FieldError("validation_required")
            elif self.old_hash != record.original["password"]:
                errors["oldPassword"] = FieldError("validation_invalid_old_password")
        if errors:
            raise bad_request("", errors)

    def _is_manager(self, tx, info, record):
        rule = self.collection.manage_rule
        if self.call.auth is None or not rule:
            return False
        if record.is_new:
            return new_record_satisfies(self.app, tx, info, record, rule)
        return satisfies_rule(self.app, tx, info, self.collection, rule, record.id)

    # after

    def answer(self, db):
        """The saved record as the caller may see it."""
        return records_json(self.app, db, self.info, self.collection, [self.record.row()], self.call.param("expand"))[0]

    def settle(self):
        """Removes the uploads that did not make it into the record: a single field keeps the last of several."""
        if self.keys:
            kept = {name for field in self.collection.file_fields for name in field.items(self.record[field.name])}
            forget_uploads(self.app, [key for upload, key in self.keys.items() if upload not in kept])

    def discard(self):
        forget_uploads(self.app, self.keys.values())


def new_record_satisfies(app, db, info, record, rule):
    """Whether a record that is not saved yet fulfils a rule: it stands as the one row of a CTE named like a table."""
    collection = record.collection
    source = quote_name(collection.name + "__pb_create")
    query = plan_query(app.schema, collection, info, rule=rule, source=source)
    values = [f.store(record.values[f.name]) for f in collection.fields]
    for place, field in enumerate(collection.fields):
        if field.name == "id" and not values[place]:
            values[place] = "__temp_id__" + random_text(6)
        elif field.name == "verified" and collection.is_auth:
            values[place] = 0
    columns = ",".join(f"? AS {quote_name(f.name)}" for f in collection.fields)
    return bool(db.read(f"WITH {source} AS (SELECT {columns}) SELECT 1 FROM {source} {query.joins} WHERE {query.where} LIMIT 1",
                        (*values, *query.params_joins, *query.params_where)))


def body_limit(collection):
    """Bytes a record's create or update may send: the default and what its fields can hold."""
    limit = collection.compiled.get("body limit")
    if limit is None:
        limit = BODY_LIMIT
        for field in collection.fields:
            if field.type == "file":
                limit += (field.max_size or DEFAULT_FILE_BYTES) * max(1, field.max_select)
            elif field.type in ("editor", "json"):
                limit += field.max_size or (DEFAULT_EDITOR_BYTES if field.type == "editor" else DEFAULT_JSON_BYTES)
        collection.compiled["body limit"] = limit
    return limit


def write_record(call, name, verb, id=""):
    """Runs one write in a transaction of its own; the record's JSON, None for a delete."""
    write = RecordWrite(call, name, verb, id)
    try:
        write.prepare()
        fire_request_event(call, verb, write)
    except BaseException:
        write.discard()
        raise
    write.settle()
    return None if verb == "delete" else write.answer(call.app.store)


def fire_request_event(call, verb, write):
    call.fire(f"record_{verb}_request", lambda event: call.app.transaction(write.run), collection=write.collection, write=write)


@route("POST", "/api/collections/<name>/records", "create")
def create_record(call, name):
    """POST /api/collections/{collection}/records"""
    return write_record(call, name, "create")


@route("PATCH", "/api/collections/<name>/records/<id>", "update")
def update_record(call, name, id):
    """PATCH /api/collections/{collection}/records/{id}"""
    return write_record(call, name, "update", id)


OWN_BODY_LIMIT = {create_record, update_record}        # endpoints that know better than BODY_LIMIT


@route("DELETE", "/api/collections/<name>/records/<id>", "delete")
def delete_one_record(call, name, id):
    """DELETE /api/collections/{collection}/records/{id}"""
    return write_record(call, name, "delete", id)


# ---- batch

BATCH_ACTIONS = (
    ("POST", re.compile(r"/api/collections/([^/?]+)/records(?:\?(.*))?"), "create"),
    ("PUT", re.compile(r"/api/collections/([^/?]+)/records(?:\?(.*))?"), "upsert"),
    ("PATCH", re.compile(r"/api/collections/([^/?]+)/records/([^/?]+)(?:\?(.*))?"), "update"),
    ("DELETE", re.compile(r"/api/collections/([^/?]+)/records/([^/?]+)(?:\?(.*))?"), "delete"),
)
BATCH_REQUEST_SHAPE = {"method": "text", "url": "text", "headers": "any", "body": "any"}
_BATCH_CHECKS = {"method": (required, one_of("GET", "POST", "PUT", "PATCH", "DELETE")), "url": (required, length(0, 2000))}


@route("POST", "/api/batch")
def run_batch(call):
    """POST /api/batch"""
    settings = call.app.settings["batch"]
    if not settings["enabled"] or settings["maxRequests"] <= 0:
        raise forbidden("Batch requests are not allowed.")
    requests_ = _load_batch(call, settings)
    batch = Batch(call, requests_)
    try:
        with gevent.Timeout(settings["timeout"] if settings["timeout"] > 0 else 3, QueryTimeout):
            batch.prepare()
            call.fire("batch_request", lambda event: call.app.transaction(batch.run), batch=batch)
    except QueryTimeout:
        batch.discard()
        raise bad_request("Batch transaction failed.") from None
    except BaseException:
        batch.discard()
        raise
    for write, _ in batch.writes:
        write.settle()
    return "[" + ",".join(batch.answers) + "]"


OWN_BODY_LIMIT.add(run_batch)


def _load_batch(call, settings):
    limit = settings["maxBodySize"] if settings["maxBodySize"] > 0 else BATCH_BODY_LIMIT
    if (call.request.content_length or 0) > limit:
        raise too_large()
    message = "Failed to read the submitted batch data."
    try:
        data = call.data(limit)
        items = next((v for k, v in data.items() if k.lower() == "requests"), None)
        requests_ = [fit_object(BATCH_REQUEST_SHAPE, item or {}, fold=True) for item in fit("any", items) or []]
        if not isinstance(items, (list, type(None))) or not all(isinstance(r[k], (dict, type(None))) for r in requests_ for k in ("headers", "body")):
            raise ShapeError("requests must be a list of objects")
    except ApiError as error:
        raise unreadable(error, message) from None
    except (ShapeError, AttributeError, TypeError) as error:
        raise bad_request(message, raw=str(error)) from None
    errors = first_error(requests_, required, length(0, settings["maxRequests"]))
    if errors is None:
        errors = {str(i): e for i, r in enumerate(requests_) if (e := collect_errors(r, _BATCH_CHECKS))}
    if errors:
        raise bad_request("Invalid batch request data.", {"requests": errors})
    return requests_


class Batch:
    """Many record writes in one transaction; the first failure undoes all."""

    def __init__(self, call, requests_):
        self.call, self.requests = call, requests_
        self.writes, self.answers = [], []

    def prepare(self):
        """Everything slow of every request; an error waits for its request's turn."""
        for index, item in enumerate(self.requests):
            try:
                write, error = self._write(index, item).prepare(), None
            except ApiError as refused:
                write, error = None, refused
            self.writes.append((write, error))

    @staticmethod
    def _action(item):
        """(verb, parts of the URL) of one request, None when a batch cannot do it."""
        for method, pattern, verb in BATCH_ACTIONS:
            match = pattern.fullmatch(item["url"]) if item["method"] == method else None
            if match:
                return verb, match.groups()
        return None

    def _write(self, index, item):
        action = self._action(item)
        if action is None:
            raise ApiError(500 if index else 400)
        verb, (*parts, query) = action
        name, id = unquote(parts[0]), unquote(parts[1]) if len(parts) > 1 else ""
        call = Call(self.call.app, None, item["method"], self.call.auth, parse_query(query or ""), "batch")
        call.ip = self.call.ip
        call._headers = {**self.call.headers, **{header_variable(k.lower()): str(v) for k, v in (item["headers"] or {}).items()
                                                if k.lower() not in ("authorization", "content-type")}}
        call._data = dict(item["body"] or {})
        call.uploads = self._uploads(index)
        if verb == "upsert":
            verb, id = self._upsert(call, name)
            call.method = {"create": "POST", "update": "PATCH"}[verb]
        call.path = item["url"].partition("?")[0]
        collection = call.app.schema.find(name)
        if collection is not None:
            call.app.rate_limiter.check(call, "batch", (verb,), collection)
        return RecordWrite(call, name, verb, id)

    def _uploads(self, index):
        """The parts `requests.N.field` and `requests[N].field` of a form; batch files get their name twice."""
        found = []
        for part, upload in self.call.uploads:
            match = re.fullmatch(rf"requests(?:\.{index}\.|\[{index}\]\.)(.+)", part)
            if match:
                name = stored_name(str(upload), upload.source.head)
                found.append((match[1], Upload.of(name, upload.original, upload.size, upload.mime, upload.source)))
        return found

    @staticmethod
    def _upsert(call, name):
        id = cast_text(call._data.get("id"))
        collection = call.app.schema.find(name)
        if id and collection is not None and not collection.is_view and find_record(call.app.store, collection, id):
            return "update", id
        return "create", ""

    def run(self, tx):
        for index, (write, error) in enumerate(self.writes):
            try:
                if error:
                    raise error
                if write.verb == "create" and self.requests[index]["method"] == "PUT":
                    write = self._late_upsert(tx, write)
                write.call.fire(f"record_{write.verb}_request", lambda event, write=write: write.run(tx), collection=write.collection, write=write)
                self.answers.append(self._answer(tx, write))
            except ApiError as failure:
                failed = FieldError("batch_request_failed", "Batch request failed.")
                raise ApiError(400, "Batch transaction failed.", {"requests": {str(index): BatchFailure(failed, failure)}}) from None

    @staticmethod
    def _late_upsert(tx, write):
        """An upsert whose record came into being earlier in this very batch is an update."""
        id = cast_text(write.data.get("id"))
        if id and find_record(tx, write.collection, id):
            write.verb, write.id, write.rule = "update", id, write.collection.update_rule
            _check_rule_access(write.call, write.rule)
        return write

    @staticmethod
    def _answer(tx, write):
        if write.verb == "delete":
            return '{"body":null,"status":204}'
        body = write.answer(tx)
        pick = parse_fields(write.call.param("fields"))
        if pick:
            body = to_json(pick.apply(json.loads(body)))
        return f'{{"body":{body},"status":200}}'

    def discard(self):
        for write, _ in self.writes:
            if write is not None:
                write.discard()


class BatchFailure(FieldError):
    """The item of a batch's first failing request: the envelope that the request alone would have got."""

    def __init__(self, item, failure):
        super().__init__(item.code, item.message)
        self.response = failure.as_json()

    def as_data(self):
        return {"code": self.code, "message": self.message, "response": self.response}

# ---- collections

_COLLECTION_COLUMNS = {name: quote_name(name) for name in ("id", "created", "updated", "name", "system", "type")}


@route("GET", "/api/collections")
def list_collections(call):
    """GET /api/collections"""
    call.need_superuser()
    page, app = Page(call), call.app
    query = plan_simple({name: f"`_collections`.{column}" for name, column in _COLLECTION_COLUMNS.items()}, call.param("filter"), call.param("sort"))
    where = f" WHERE {query.where}" if query.where else ""
    order = query.order or "`_rowid_`"
    select = f"SELECT `id` FROM `_collections`{where} ORDER BY {order} LIMIT ? OFFSET ?"
    rows = app.store.read(select, (*query.params_where, *query.params_order, page.size, page.offset))
    total = -1 if page.skip_total else app.store.read(f"SELECT count(*) FROM `_collections`{where}", query.params_where)[0][0]
    return page.json(",".join([to_json(app.schema.find_exact(id).as_json()) for (id,) in rows]), total)


def _known_collection(call, name):
    call.need_superuser()
    collection = call.app.schema.find(name)
    if collection is None:
        raise not_found()
    return collection


@route("GET", "/api/collections/<name>")
def view_collection(call, name):
    """GET /api/collections/{collection}"""
    return _known_collection(call, name).as_json()


def _collection_body(call, message):
    try:
        return call.data()
    except ApiError as error:
        raise unreadable(error, message) from None


@route("POST", "/api/collections")
def create_collection(call):
    """POST /api/collections"""
    call.need_superuser()
    return _save_collection(call, _collection_body(call, INVALID_TYPE_DATA), None)


@route("PATCH", "/api/collections/<name>")
def update_collection(call, name):
    """PATCH /api/collections/{collection}"""
    old = _known_collection(call, name)
    data = _collection_body(call, INVALID_DATA)
    sent_id = next((v for k, v in data.items() if k.lower() == "id"), None)
    if sent_id and sent_id != old.id:
        raise not_found()
    return _save_collection(call, data, old.id)


def _save_collection(call, data, id):
    """Creates (id None) or updates a collection of a request body; the answer's JSON data."""
    app, verb = call.app, "update" if id else "create"
    failed = f"Failed to {verb} collection."
    collection_from_data(data, id and app.schema.find_exact(id))       # what cannot be read is refused before anything waits

    def work(tx):
        old = id and app.schema.find_exact(id)
        if id and old is None:
            raise not_found()
        collection = collection_from_data(data, old)
        schema = app.events.fire((f"collection_{verb}", f"model_{verb}"), lambda e: save_collection(tx, app.schema, collection, old, now_text()),
                                 app=app, tx=tx, collection=collection)
        app.adopt_schema(tx, schema)
        success = (f"collection_after_{verb}_success", f"model_after_{verb}_success")
        tx.after_commit(lambda: app.events.fire(success, no_work, app=app, collection=collection))
        if old is not None and old.name != collection.name:
            tx.after_commit(_rename_rate_limits, app, old.name, collection.name)
        return collection
    try:
        saved = call.fire(f"collection_{verb}_request", lambda e: app.schema_transaction(work), collection=id and app.schema.find_exact(id))
    except PlainError as error:
        raise bad_request(f"{failed} Raw error: \n{error}.", raw=str(error)) from None
    except sqlite3.Error as error:
        raise bad_request(f"{failed} Raw error: \n{sqlite_message(error)}.") from None
    except ApiError as error:
        raise (bad_request(failed, error.data, error.raw) if error.status == 400 else error) from None
    return saved.as_json()


def _rename_rate_limits(app, old, new):
    """Rate limit labels `old:action` follow a renamed collection."""
    rules = app.settings["rateLimits"]["rules"]
    if any(rule["label"].startswith(old + ":") for rule in rules):
        settings = copy.deepcopy(app.settings)
        for rule in settings["rateLimits"]["rules"]:
            if rule["label"].startswith(old + ":"):
                rule["label"] = new + rule["label"][len(old):]
        gevent.spawn(app.save_settings, settings)           # not from inside the writer


@route("DELETE", "/api/collections/<name>")
def remove_collection(call, name):
    """DELETE /api/collections/{collection}"""
    collection, app = _known_collection(call, name), call.app

    def work(tx):
        if app.schema.find_exact(collection.id) is None:
            raise not_found()
        schema = app.events.fire(("collection_delete", "model_delete"), lambda e: delete_collection(tx, app.schema, collection),
                                 app=app, tx=tx, collection=collection)
        for table in _REFERENCE_TABLES if collection.is_auth else ():
            tx.write(f"DELETE FROM {quote_name(table)} WHERE `collectionRef`=?", (collection.id,))
        app.adopt_schema(tx, schema)
        if collection.file_fields:
            tx.after_commit(app.storage.later, app.storage.delete_prefix, collection.id + "/")
    call.fire("collection_delete_request", lambda e: app.schema_transaction(work), collection=collection)


@route("DELETE", "/api/collections/<name>/truncate")
def truncate_collection(call, name):
    """DELETE /api/collections/{collection}/truncate"""
    collection, app = _known_collection(call, name), call.app
    if collection.is_view:
        raise bad_request("View collections cannot be truncated since they don't store their own records.")

    def work(tx):
        select = f"SELECT {columns_sql(collection)} FROM {quote_name(collection.name)} LIMIT 500"
        while rows := tx.read(select):
            for row in rows:
                delete_record(app, tx, Record(collection, row))
            gevent.sleep(0)
    try:
        app.transaction(work)
    except ApiError as error:
        raise bad_request("Failed to truncate collection (most likely due to required cascade delete record references).", raw=error.raw) from None


_IMPORT_SHAPE = {"collections": "any", "deleteMissing": "bool"}


@route("PUT", "/api/collections/import")
def import_all_collections(call):
    """PUT /api/collections/import"""
    call.need_superuser()
    app = call.app
    loading = "An error occurred while loading the submitted data."
    try:
        form = load_form(_IMPORT_SHAPE, call.data())
    except ApiError as error:
        raise unreadable(error, loading) from None
    items = form["collections"]
    if not isinstance(items, (list, type(None))) or not all(isinstance(item, dict) for item in items or ()):
        raise bad_request(loading)
    check_form({"collections": items or []}, {"collections": (required,)})

    def work(tx):
        app.adopt_schema(tx, import_collections(tx, app.schema, items, form["deleteMissing"], now_text()))
    try:
        app.schema_transaction(work)
    except (PlainError, sqlite3.Error) as error:
        text = str(error) if isinstance(error, PlainError) else sqlite_message(error)
        raise _import_error(f"Failed to import the collections configuration. Raw error:\n{text}") from None
    except ApiError as error:
        data = error.data or {"collections": FieldError("validation_collections_import_failure", error.message)}
        raise bad_request(IMPORT_FAILED, data, error.raw) from None


@route("GET", "/api/collections/meta/scaffolds")
def view_scaffolds(call):
    """GET /api/collections/meta/scaffolds"""
    call.need_superuser()
    return {type: scaffold(type) for type in ("base", "auth", "view")}


_DRY_RUN_SHAPE = {"query": "text"}


@route("GET", "/api/collections/meta/oauth2-providers")
def list_oauth2_providers(call):
    """GET /api/collections/meta/oauth2-providers"""
    call.need_superuser()
    return provider_list()


@route("POST", "/api/collections/meta/dry-run-view")
def dry_run_view(call):
    """POST /api/collections/meta/dry-run-view"""
    call.need_superuser()
    try:
        form = load_form(_DRY_RUN_SHAPE, call.data())
    except ApiError as error:
        raise unreadable(error, "An error occurred while loading the submitted data.") from None
    check_form(form, {"query": (required, length(0, 5000))})
    app = call.app
    try:
        fields, rows = app.transaction(lambda tx: derive_view(tx, app.schema, form["query"]))
    except PlainError as error:
        raise bad_request(f"Invalid view query. Raw error: \n{error}.") from None
    trial = Collection("", "temp_view_" + random_text(5, ALPHANUMERIC), "view", fields)
    trial.id = "pbc_" + checksum("view" + trial.name)
    encoder = RowEncoder(trial, True)
    return f'{{"fields":{to_json([f.as_json() for f in fields])},"sample":[{",".join(encoder.encode(row, True) for row in rows)}]}}'


# ---- settings

@route("GET", "/api/settings")
def view_settings(call):
    """GET /api/settings"""
    call.need_superuser()
    return redacted_settings(call.app.settings)


@route("PATCH", "/api/settings")
def update_settings(call):
    """PATCH /api/settings"""
    call.need_superuser()
    app = call.app
    loading = "An error occurred while loading the submitted data."
    try:
        data = call.data()
        settings = fit_object(SETTINGS_SHAPE, _undotted(data), copy.deepcopy(app.settings), fold=True)
    except ApiError as error:
        raise unreadable(error, loading) from None
    except ShapeError as error:
        raise bad_request(loading, raw=str(error)) from None
    errors = check_settings(settings)
    if errors:
        raise bad_request("An error occurred while saving the new settings.", errors)
    call.fire("settings_update_request", lambda e: app.save_settings(settings), old_settings=app.settings, new_settings=settings)
    return redacted_settings(app.settings)


def _undotted(data):
    """Form fields name nested settings with dots: `meta.appName`."""
    out = {}
    for key, value in data.items():
        *parents, last = key.split(".")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return out


# ---- SQL console

SQL_WRITES = re.compile(r"\s*(INSERT|CREATE|UPDATE|DELETE|DROP|DETACH|ALTER|REPLACE)", re.I)
SQL_ROWS = 1000


@route("POST", "/api/sql")
def run_sql(call):
    """POST /api/sql"""
    call.need_superuser()
    form = read_form(call, {"query": "text"})
    check_form(form, {"query": (required, length(1, 5000))})
    app, started = call.app, perf_counter()
    run = app.store.console_write if SQL_WRITES.match(form["query"]) else app.store.console_read
    try:
        affected, columns, rows = run(form["query"], SQL_ROWS)
    except (sqlite3.Error, sqlite3.Warning, PlainError) as error:
        raise bad_request(f"Failed to execute query. Raw error:\n{error if isinstance(error, PlainError) else sqlite_message(error)}.") from None
    return {"execTime": int((perf_counter() - started) * 1000), "affectedRows": affected,
            "columns": [{"name": name, "type": "", "nullable": True} for name in columns],
            "rows": [[None if v is None else cast_text(v) if not isinstance(v, bytes) else read_text(v) for v in row] for row in rows]}


# ---- signing in

def auth_collection(call, name):
    """The auth collection of a sign-in route; 404 for anything else."""
    collection = call.app.schema.find(name)
    if collection is None:
        raise not_found("Missing or invalid collection context.")
    if not collection.is_auth:
        raise not_found("Missing or invalid auth collection context.")
    return collection


def read_form(call, shape):
    """The body of a sign-in route as a form."""
    try:
        data = call.data()
    except ApiError as error:
        raise unreadable(error, "An error occurred while loading the submitted data.") from None
    if not call.request.header("content-type").startswith("application/json"):
        firsts = {name: value[0] if isinstance(value, list) else value for name, value in data.items()}
        data = {name: cast_text(value) if shape.get(name) == "text" else value for name, value in firsts.items()}
    return load_form(shape, data)


def auth_answer(call, info, record, token, meta=None):
    """The answer of every sign-in: token, record as its owner sees it, provider data."""
    app, collection, row, expand = call.app, record.collection, record.loaded or record.row(), call.param("expand")
    superuser = collection.name == SUPERUSERS          # not that of the caller, who may ask in another's name
    if expand or app.events.listened("record_enrich"):
        own = RequestInfo(info.context, info.method, info.headers, info.query, info.body, record, superuser)
        text = records_json(app, app.store, own, collection, [row], expand)[0]
    else:
        text = row_encoder(collection, superuser).encode(row, show_email=True)
    head = f'"meta":{to_json(meta)},' if meta else ""
    return f'{{{head}"record":{text},"token":"{token}"}}'


@route("GET", "/api/collections/<name>/auth-methods", "listAuthMethods")
def list_auth_methods(call, name):
    """GET /api/collections/{collection}/auth-methods"""
    collection = auth_collection(call, name)
    options = collection.options
    password, oauth2, mfa, otp = options["passwordAuth"], options["oauth2"], options["mfa"], options["otp"]
    identity = password["identityFields"] if password["enabled"] else []
    rows = oauth2["providers"] if oauth2["enabled"] else []
    providers = [auth_method(config) for row in rows if (config := provider_config(row))]
    return {
        "password": {"identityFields": identity, "enabled": password["enabled"]},
        "oauth2": {"providers": providers, "enabled": oauth2["enabled"]},
        "mfa": {"enabled": mfa["enabled"], "duration": mfa["duration"] if mfa["enabled"] else 0},
        "otp": {"enabled": otp["enabled"], "duration": otp["duration"] if otp["enabled"] else 0},
        "authProviders": [{**provider, "logo": ""} for provider in providers],
        "usernamePassword": "username" in identity, "emailPassword": "email" in identity,
    }


_PASSWORD_FORM = {"identity": "text", "password": "text", "identityField": "text", "mfaId": "text"}


@route("POST", "/api/collections/<name>/auth-with-password", "authWithPassword", "auth")
def auth_with_password(call, name):
    """POST /api/collections/{collection}/auth-with-password"""
    app, collection = call.app, auth_collection(call, name)
    options = collection.options["passwordAuth"]
    if not options["enabled"]:
        raise forbidden("The collection is not configured to allow password authentication.")
    form = read_form(call, _PASSWORD_FORM)
    check_form(form, {"identity": (required, length(1, 255)), "password": (required, length(1, 255)),
                      "identityField": (length(1, 255), one_of(*options["identityFields"]))})
    call.context = "password"
    info = call.info(form)

    def work(event):
        record = find_by_identity(app, collection, form["identity"], form["identityField"])
        if not check_password(app, collection, record, form["password"]):
            raise bad_request("Failed to authenticate.")
        return finish_sign_in(call, info, sign_in_of(call, form, record, "password"))
    return call.fire("record_auth_with_password_request", work, collection=collection)


def sign_in_of(call, form, record, method, meta=None):
    """The SignIn of a request that has proved to be `record`; `mfaId` may stand in the query or the form."""
    return SignIn(record, method, call.ip, call.request.header("user-agent"), call.param("mfaId") or form["mfaId"], meta)


def finish_sign_in(call, info, sign_in):
    """Admission, second factor and origin, then the answer with a fresh token."""
    app, record = call.app, sign_in.record
    complete_sign_in(app, info, sign_in)

    def work(event):
        return auth_answer(call, info, record, new_token(record, "auth", refreshable=True), sign_in.meta)
    return call.fire("record_auth_request", work, collection=record.collection, record=record, auth_method=sign_in.method)


def _same_collection_auth(call, name):
    """The requester, who must belong to the collection of the path."""
    collection = call.app.schema.find(name)
    if collection is None:
        raise not_found("Missing or invalid collection context.")
    call.need_auth()
    if call.auth.collection.id != collection.id:
        raise forbidden(f"The request requires auth record from {call.auth.collection.name} collection.")
    return collection


@route("POST", "/api/collections/<name>/auth-refresh", "authRefresh")
def auth_refresh(call, name):
    """POST /api/collections/{collection}/auth-refresh"""
    app = call.app
    _same_collection_auth(call, name)
    record, info = call.auth, call.info()
    token = call.request.header("authorization").strip()
    token = token[7:] if token[:7].lower() == "bearer " else token
    admit(app, info, record, call.ip)
    if cast_bool(app.identities.claims(token).get("refreshable")):
        token = app.identities.refreshed_token(record)
    return app.events.fire(("record_auth_refresh_request", "record_auth_request"), lambda e: auth_answer(call, info, record, token),
                           app=app, call=call, collection=record.collection, record=record, auth_method="")


@route("POST", "/api/collections/<name>/impersonate/<id>")
def impersonate(call, name, id):
    """POST /api/collections/{collection}/impersonate/{id}"""
    call.need_superuser()
    app = call.app
    collection = app.schema.find(name)
    if collection is None or not collection.is_auth:
        raise not_found("Missing or invalid auth collection context.")
    record = find_record(app.store, collection, id)
    if record is None:
        raise not_found()
    form = read_form(call, {"duration": "int"})
    check_form(form, {"duration": (at_least_anyway(0),)})
    info = call.info()
    admit(app, info, record, call.ip)
    return auth_answer(call, info, record, new_token(record, "auth", form["duration"], refreshable=False))


# ---- mailed links

EMAIL_CHECKS = (required, length(1, 255), satisfies(lambda v: is_email(v), "validation_is_email"))


def _read_email(call, name="email"):
    form = read_form(call, {name: "text"})
    check_form(form, {name: EMAIL_CHECKS})
    return form[name]


def _check_token(form, table, kind_errors):
    """Form checks and token errors of a confirm route, reported together."""
    errors = collect_errors(form, table) | kind_errors
    if errors:
        raise bad_request("An error occurred while validating the submitted data.", errors)


def _token_error(app, token, kind, collection, claim=""):
    """{} or {"token": FieldError} as things stand now; the transaction looks again."""
    if not token:
        return {"token": FieldError("validation_required")}
    try:
        flow_record(app, app.store, token, kind, collection, claim)
    except FieldError as error:
        return {"token": error}
    return {}


def _invalid_token(error):
    return bad_request("An error occurred while validating the submitted data.", {"token": error})


@route("POST", "/api/collections/<name>/request-verification", "requestVerification")
def request_verification(call, name):
    """POST /api/collections/{collection}/request-verification"""
    app, collection = call.app, auth_collection(call, name)
    if collection.name == SUPERUSERS:
        raise bad_request("All superusers are verified by default.")
    email = _read_email(call)

    def work():             # in the background: the answer takes the same time whether the address is known or not
        record = find_by_unique(app.store, collection, "email", email)
        if record is not None:
            send_verification(app, record)
    call.fire("record_request_verification_request", lambda e: spawn_logged(work), collection=collection)


def spawn_logged(work):
    """Background work of a request: its failure is only logged."""
    def run():
        try:
            work()
        except Exception:
            LOG.exception("background work failed")
    gevent.spawn(run)


@route("POST", "/api/collections/<name>/confirm-verification", "confirmVerification")
def confirm_verification_request(call, name):
    """POST /api/collections/{collection}/confirm-verification"""
    app, collection = call.app, auth_collection(call, name)
    if collection.name == SUPERUSERS:
        raise bad_request("All superusers are verified by default.")
    form = read_form(call, {"token": "text"})
    check_form(form, {"token": (required,)})

    def work(tx):
        return confirm_verification(app, tx, collection, form["token"])
    try:
        call.fire("record_confirm_verification_request", lambda e: app.transaction(work), collection=collection)
    except FieldError as error:
        raise _invalid_token(error) from None


@route("POST", "/api/collections/<name>/request-password-reset", "requestPasswordReset")
def request_password_reset(call, name):
    """POST /api/collections/{collection}/request-password-reset"""
    app, collection = call.app, auth_collection(call, name)
    if not collection.options["passwordAuth"]["enabled"]:
        raise bad_request("The collection is not configured to allow password authentication.")
    email = _read_email(call)

    def work():
        record = find_by_unique(app.store, collection, "email", email)
        if record is not None:
            send_password_reset(app, record)
    call.fire("record_request_password_reset_request", lambda e: spawn_logged(work), collection=collection)


@route("POST", "/api/collections/<name>/confirm-password-reset", "confirmPasswordReset")
def confirm_password_reset(call, name):
    """POST /api/collections/{collection}/confirm-password-reset"""
    app, collection = call.app, auth_collection(call, name)
    form = read_form(call, {"token": "text", "password": "text", "passwordConfirm": "text"})
    field = collection.by_name["password"]
    table = {"password": (required, length(field.min, 255)),
             "passwordConfirm": (required, satisfies(lambda v: v == form["password"], "validation_values_mismatch"))}
    _check_token(form, table, _token_error(app, form["token"], "passwordReset", collection))
    error = field.check_plain(form["password"])
    if error:
        raise bad_request("Failed to set new password.", {"password": error})
    hashed = hash_password(app, form["password"], field.cost)

    def work(tx):
        record, claims = flow_record(app, tx, form["token"], "passwordReset", collection)
        record.passwords["password"], record.values["password"] = form["password"], hashed
        if not record["verified"] and claims.get("email") == record["email"]:
            record["verified"] = True
        save_record(app, tx, record)
        app.recent_mails.forget("reset", record)
    try:
        call.fire("record_confirm_password_reset_request", lambda e: app.transaction(work), collection=collection)
    except FieldError as gone:
        raise _invalid_token(gone) from None
    except ApiError as error:
        raise bad_request("Failed to set new password.", error.data, error.raw) from None


@route("POST", "/api/collections/<name>/request-email-change", "requestEmailChange")
def request_email_change(call, name):
    """POST /api/collections/{collection}/request-email-change"""
    app = call.app
    collection = _same_collection_auth(call, name)
    if collection.name == SUPERUSERS:
        raise bad_request("All superusers can change their emails directly.")
    form = read_form(call, {"newEmail": "text"})
    check_form(form, {"newEmail": (*EMAIL_CHECKS, satisfies(lambda v: v != call.auth["email"], "validation_not_in_invalid"),
                                   satisfies(lambda v: find_by_unique(app.store, collection, "email", v) is None, "validation_invalid_new_email"))})

    def work(event):
        token = new_token(call.auth, "emailChange", email=call.auth["email"], newEmail=form["newEmail"])
        try:
            send_mail(app.settings, record_mail(app, call.auth, "email-change", to=form["newEmail"], TOKEN=token))
        except (MailError, OSError) as error:
            raise bad_request("Failed to request email change.", raw=str(error)) from None
    call.fire("record_request_email_change_request", work, collection=collection)


@route("POST", "/api/collections/<name>/confirm-email-change", "confirmEmailChange")
def confirm_email_change(call, name):
    """POST /api/collections/{collection}/confirm-email-change"""
    app, collection = call.app, auth_collection(call, name)
    if collection.name == SUPERUSERS:
        raise bad_request("All superusers can change their emails directly.")
    form = read_form(call, {"token": "text", "password": "text"})
    errors = collect_errors(form, {"password": (required, length(1, 100))}) | _token_error(app, form["token"], "emailChange", collection, "newEmail")
    record = None if "token" in errors else flow_record(app, app.store, form["token"], "emailChange", collection, "newEmail")[0]
    if record is not None and find_by_unique(app.store, collection, "email", unverified_claims(form["token"])["newEmail"]):
        errors["token"], record = FieldError("validation_invalid_token_email"), None
    if "password" not in errors and (record is None or not password_matches(app, form["password"], record["password"])):
        errors["password"] = FieldError("validation_invalid_password")
    _check_token(form, {}, errors)

    def work(tx):
        fresh, claims = flow_record(app, tx, form["token"], "emailChange", collection, "newEmail")
        fresh["email"], fresh["verified"] = claims["newEmail"], True
        save_record(app, tx, fresh)
    try:
        call.fire("record_confirm_email_change_request", lambda e: app.transaction(work), collection=collection)
    except FieldError as gone:
        raise _invalid_token(gone) from None
    except ApiError as error:
        raise bad_request("Failed to confirm email change.", error.data, error.raw) from None


# ---- one-time passwords

def _need_otp(collection):
    if not collection.options["otp"]["enabled"]:
        raise forbidden("The collection is not configured to allow OTP authentication.")


@route("POST", "/api/collections/<name>/request-otp", "requestOTP")
def request_one_time_password(call, name):
    """POST /api/collections/{collection}/request-otp"""
    app, collection = call.app, auth_collection(call, name)
    _need_otp(collection)
    email = _read_email(call)

    def work(event):
        record = find_by_unique(app.store, collection, "email", email)
        if record is None:
            hash_password(app, random_text(8, "0123456789"), 8)         # as long as a known address takes
            return {"otpId": random_id()}
        return {"otpId": request_otp(app, record)}
    return call.fire("record_request_otp_request", work, collection=collection)


@route("POST", "/api/collections/<name>/auth-with-otp", "authWithOTP", "auth")
def auth_with_otp(call, name):
    """POST /api/collections/{collection}/auth-with-otp"""
    app, collection = call.app, auth_collection(call, name)
    _need_otp(collection)
    form = read_form(call, {"otpId": "text", "password": "text", "mfaId": "text"})
    check_form(form, {"otpId": (required, length(1, 255)), "password": (required, length(1, 71))})
    call.context = "otp"
    info = call.info(form)

    def work(event):
        record = use_otp(app, collection, form["otpId"], form["password"], call.ip)
        return finish_sign_in(call, info, sign_in_of(call, form, record, "otp"))
    return call.fire("record_auth_with_otp_request", work, collection=collection)


# ---- OAuth2

_OAUTH2_FORM = {"provider": "text", "code": "text", "codeVerifier": "text", "redirectURL": "text", "redirectUrl": "text",
                "createData": "map", "mfaId": "text"}


@route("POST", "/api/collections/<name>/auth-with-oauth2", "authWithOAuth2", "auth")
def auth_with_oauth2(call, name):
    """POST /api/collections/{collection}/auth-with-oauth2"""
    app, collection = call.app, auth_collection(call, name)
    options = collection.options["oauth2"]
    if not options["enabled"]:
        raise forbidden("The collection is not configured to allow OAuth2 authentication.")
    form = read_form(call, _OAUTH2_FORM)
    row = next((p for p in options["providers"] if p["name"] == form["provider"]), None)
    errors = collect_errors(form, {"provider": (required, length(0, 100)), "code": (required,)})
    if row is None and "provider" not in errors:
        text = f"Provider with name {form['provider']} is missing or is not enabled."
        errors["provider"] = FieldError("validation_invalid_provider", text, name=form["provider"])
    if errors:
        raise bad_request("An error occurred while loading the submitted data.", errors)
    call.context = "oauth2"
    info = call.info(form)
    user = oauth2_sign_in(provider_config(row), form["code"], form["codeVerifier"], form["redirectURL"] or form["redirectUrl"])
    user["name"] = user["name"] or app.apple_names.pop(form["code"], "")

    def work(event):
        record, is_new = sign_in_account(call, collection, form["provider"], user, form["createData"])
        meta = {**user, "avatarUrl": user["avatarURL"], "isNew": is_new}
        return finish_sign_in(call, info, sign_in_of(call, form, record, "oauth2", meta))
    return call.fire("record_auth_with_oauth2_request", work, collection=collection, user=user)


def sign_in_account(call, collection, provider, user, create_data):
    """(record, whether it is new) of a provider's user; one transaction decides who that is and writes the link."""
    app = call.app
    failed = "Failed to authenticate."

    def adopt(tx):
        record, link = linked_record(app, tx, collection, provider, user, call.auth)
        return None if record is None else adopt_account(app, tx, record, link, provider, user, call.auth)
    try:
        record = app.transaction(adopt)
        if record is not None:
            return record, False
    except ApiError as error:
        raise bad_request(failed, error.data, error.raw) from None
    if collection.name == SUPERUSERS:
        raise bad_request(failed)
    return _create_account(call, collection, provider, user, create_data)


def _create_account(call, collection, provider, user, create_data):
    """(a new record, True) through the ordinary create logic, as the requester, with the link in the same transaction.

    When the same sign-in came twice at the same moment, the later one gets (the record of the first, False).
    """
    app = call.app
    inner = Call(app, None, "POST", call.auth, call.query, "oauth2")
    inner.ip, inner._headers = call.ip, call.headers
    inner._data = account_data(collection, user, create_data)
    _fit_username(app, collection, inner._data, user, create_data)
    _fetch_avatar(collection, inner, user)
    random_password = not inner._data.get("password")
    if random_password:
        inner._data["password"] = inner._data["passwordConfirm"] = random_text(30, ALPHANUMERIC)
    write = RecordWrite(inner, collection.name, "create")
    write.random_password = random_password

    def work(tx):
        known, link = linked_record(app, tx, collection, provider, user, call.auth)
        if known is not None:
            return adopt_account(app, tx, known, link, provider, user, call.auth), False
        write.run(tx)
        record = write.record
        if record["email"] == user["email"]:
            record["verified"] = True
            save_record(app, tx, record, validate=False)
        try:
            link_account(app, tx, record, provider, user)
        except ApiError as error:
            raise bad_request("Failed to authenticate.", error.data, error.raw) from None
        return record, True
    try:
        write.prepare()
        record, is_new = app.transaction(work)
    except BaseException:
        write.discard()
        raise
    if not is_new:
        write.discard()
    return record, is_new


def _fit_username(app, collection, data, user, submitted):
    """A provider's username is only taken when the field accepts it and nobody has it."""
    name = collection.options["oauth2"]["mappedFields"]["username"]
    field = name and collection.field(name)
    if not field or name in submitted or name not in data:
        return
    taken = collection.has_unique_index(name) and find_by_unique(app.store, collection, name, data[name]) is not None
    if taken or field.check(field.cast(data[name]), SaveContext(Record(collection), app.store, app.schema)):
        del data[name]


def _fetch_avatar(collection, call, user):
    """A mapped file field gets the provider's picture; any failure only means no picture. What the client submits is never fetched."""
    name = collection.options["oauth2"]["mappedFields"]["avatarURL"]
    field = name and collection.field(name)
    if not field or field.type != "file" or call._data.get(name) is not user["avatarURL"] or not user["avatarURL"]:
        return
    url = call._data.pop(name)
    try:
        data, _ = safe_fetch(url)
    except (FetchError, OSError, ValueError) as error:
        LOG.info("no avatar from %s: %s", url, error)
        return
    upload = new_upload(unquote(urlsplit(url).path.rpartition("/")[2]) or "avatar", ReceivedFile.of(data))
    call.uploads.append((name, upload))


APPLE_NAME_SECONDS = 60         # an Apple name waits this long for its code


_APPLE_SECRET_FORM = {"clientId": "text", "teamId": "text", "keyId": "text", "privateKey": "text", "duration": "int"}
_APPLE_SECRET_CHECKS = {
    "clientId": (required,), "teamId": (required, length(10, 10)), "keyId": (required, length(10, 10)),
    "privateKey": (required, matches(r"^\s*-----BEGIN PRIVATE KEY-----[\s\S]+-----END PRIVATE KEY-----\s*$")),
    "duration": (required, at_least(1), at_most(15777000)),
}


@route("POST", "/api/settings/apple/generate-client-secret")
def generate_apple_client_secret(call):
    """POST /api/settings/apple/generate-client-secret"""
    call.need_superuser()
    form = read_form(call, _APPLE_SECRET_FORM)
    check_form(form, _APPLE_SECRET_CHECKS, "Invalid client secret data.")
    try:
        return {"secret": apple_client_secret(form["clientId"], form["teamId"], form["keyId"], form["privateKey"], form["duration"])}
    except ValueError as error:
        raise bad_request(f"Failed to generate client secret. Raw error: \n{error}") from None


# ---- test mails, jobs

_TEST_MAIL_FORM = {"email": "text", "template": "text", "collection": "text"}


@route("POST", "/api/settings/test/s3")
def try_s3_settings(call):
    """POST /api/settings/test/s3"""
    call.need_superuser()
    app, form = call.app, read_form(call, {"filesystem": "text"})
    check_form(form, {"filesystem": (required, one_of("storage", "backups"))}, "Failed to test the S3 filesystem.")
    s3 = app.settings["s3"] if form["filesystem"] == "storage" else app.settings["backups"]["s3"]
    try:
        if not s3["enabled"]:
            raise OSError("S3 storage filesystem is not enabled")
        try_storage(app.storage_for(s3, app.local_storage))
    except (OSError, ValueError) as error:
        raise bad_request(f"Failed to test the S3 filesystem. Raw error: \n{error}") from None


@route("POST", "/api/settings/test/email")
def send_test_email(call):
    """POST /api/settings/test/email"""
    call.need_superuser()
    app, form = call.app, read_form(call, _TEST_MAIL_FORM)
    collection = app.schema.find(form["collection"] or SUPERUSERS)
    errors = collect_errors(form, {"email": EMAIL_CHECKS, "template": (required, one_of(*MAIL_TEMPLATES))})
    if collection is None or not collection.is_auth:
        errors["collection"] = FieldError("validation_invalid_auth_collection", "Must be a valid auth collection id or name.")
    if errors:
        raise bad_request("Failed to send the test email.", errors)
    record = Record(collection)
    for field in collection.fields:
        if not field.hidden and field.type in ("text", "email", "url", "editor"):
            record.values[field.name] = f"__pb_test_{field.name}__"
    record.values.update(email=form["email"], tokenKey=random_text(50, ALPHANUMERIC))
    kind = {"verification": "verification", "password-reset": "passwordReset", "email-change": "emailChange"}.get(form["template"])
    claims = {"email": form["email"], **({"newEmail": form["email"]} if kind == "emailChange" else {})}
    own = {"TOKEN": kind and new_token(record, kind, **claims), "OTP": "123456", "OTP_ID": "_PB_TEST_OTP_ID_",
           "ALERT_INFO": f"{now_text()} - TEST_IP TEST_USER_AGENT"}
    try:
        send_mail(app.settings, record_mail(app, record, form["template"], to=form["email"], **own))
    except (MailError, OSError) as error:
        raise bad_request(f"Failed to send the test email. Raw error: \n{error}") from None


@route("GET", "/api/crons")
def list_crons(call):
    """GET /api/crons"""
    call.need_superuser()
    return call.app.cron.listed()


@route("POST", "/api/crons/<id>")
def run_cron(call, id):
    """POST /api/crons/{id}"""
    call.need_superuser()
    if id not in call.app.cron.jobs:
        raise not_found("Missing or invalid cron job.")
    call.app.cron.run(id)


# ---- files

@route("POST", "/api/files/token")
def create_file_token(call):
    """POST /api/files/token"""
    call.need_auth()
    return {"token": new_token(call.auth, "file")}


@route("GET", "/api/files/<name>/<id>/<filename>", "file")
def download_file(call, name, id, filename):
    """GET /api/files/{collection}/{id}/{filename}"""
    app = call.app
    collection = records_collection(call, name, "Missing or invalid collection context.")
    row = find_row(app, app.store, None, collection, id, None)
    if row is None:
        raise not_found()
    field = next((f for f, v in zip(collection.fields, row) if f.type == "file" and filename in f.items(f.load(v))), None)
    if field is None:
        raise not_found()
    if field.protected and not _may_see_file(call, collection, id):
        raise not_found()
    source = view_source(app.schema, collection, field.name) if collection.is_view else (collection, field)
    if source is None:
        raise not_found()
    owner = _file_owner(app, source, collection, id, filename)
    key = file_key(source[0].id, owner, filename)
    try:
        return send_stored_file(call, app.storage, *_wanted_file(call, field, key, filename))
    except (OSError, ValueError) as error:
        if not isinstance(error, FileNotFoundError):
            LOG.warning("%s cannot be served: %s", key, error)
        raise not_found() from None


def _wanted_file(call, field, key, filename):
    """(StoredFile, name to serve it under): the thumb that `thumb` asks for, if the field has such and it can be made; else the file itself."""
    storage, size = call.app.storage, call.param("thumb")
    found = storage.stat(key)
    if found.content_type in THUMB_TYPES and (size == DEFAULT_THUMB or size in field.thumbs):
        thumb = thumb_key(key, size)
        if storage.exists(thumb) or call.app.thumbs.ensure(storage, found, thumb, size):
            return storage.stat(thumb), f"{size}_{filename}"
    return found, filename


def _may_see_file(call, collection, id):
    """The viewRule as the bearer of a file token sees it."""
    app = call.app
    auth = app.identities.of_token(call.param("token"), "file") if call.param("token") else None
    superuser = auth is not None and auth.collection.name == SUPERUSERS and superuser_ip_allowed(app, call.ip)
    if superuser:
        return True
    if auth is not None and auth.collection.name == SUPERUSERS:
        auth = None
    query = {k: v[0] for k, v in call.query.items()}
    info = RequestInfo(context="protectedFile", method=call.method, headers=call.headers, query=query, body={}, auth=auth, superuser=False)
    return satisfies_rule(app, app.store, info, collection, collection.view_rule, id)


def _file_owner(app, source, collection, id, filename):
    """The id of the record whose folder holds the file: for a view, the source record that names it."""
    owner_collection, owner_field = source
    if not collection.is_view:
        return id
    table, column = quote_name(owner_collection.name), quote_name(owner_field.name)
    condition = f"EXISTS (SELECT 1 FROM json_each({column}) WHERE value=?)" if owner_field.multiple else f"{column}=?"
    rows = app.store.read(f"SELECT `id` FROM {table} WHERE {condition} LIMIT 1", (filename,))
    if not rows:
        raise not_found()
    return rows[0][0]


def send_stored_file(call, storage, found, name):
    """A StoredFile as an answer, with ranges, conditions and the headers that keep it harmless. OSError when it cannot be read."""
    headers = served_headers(found.content_type, name, call.param("download") in TRUE_TEXTS)
    content_type = headers.pop("Content-Type")
    headers = (*headers.items(), *_FILE_SECURITY_HEADERS)
    return file_response(call.request, found.path, content_type, headers, found.modified, file=storage.open(found.key), size=found.size)


_FILE_SECURITY_HEADERS = [header for header in SECURITY_HEADERS if header[0] != "X-Frame-Options"]


# ============================================================================
#  20. Dashboard
# ============================================================================
# The admin page under /_/: static assets that talk to the same API as everybody.
# It decides nothing; what it may do is what its token may do.

DASHBOARD_CSP = "; ".join((
    "default-src 'self'",
    "style-src 'self' 'unsafe-inline'",
    "img-src 'self' http://127.0.0.1:* https://tile.openstreetmap.org data: blob:",
    "connect-src 'self' http://127.0.0.1:* https://nominatim.openstreetmap.org",
    "script-src 'self' http://127.0.0.1:*",
    "frame-ancestors 'none'"))


def assets_directory():
    """Where the assets lie: unpacked beside the frozen program, in the zipapp's site, or next to this file."""
    base = getattr(sys, "_MEIPASS", None) or os.path.dirname(os.path.abspath(__file__))
    return os.path.join(base, "assets")


@route("GET", "/_/")
def show_dashboard(call):
    """GET /_/"""
    return serve_asset(call, "")


@route("GET", "/_/<path:path>")
def show_asset(call, path):
    """GET /_/{path...}"""
    return serve_asset(call, path)


@route("GET", "/_/extensions.js")
def show_extensions(call):
    """GET /_/extensions.js"""
    return dashboard_response(call, Response(200, (*SECURITY_HEADERS, ("Content-Type", "text/javascript")), b""), "extensions.js")


def serve_asset(call, path):
    try:
        response = serve_static(call.request, assets_directory(), "/" + path, False, SECURITY_HEADERS)
    except ApiError as error:
        response = error_response(error)
    return dashboard_response(call, response, path)


def dashboard_response(call, response, path):
    """Adds what every answer under /_/ carries; compresses it for who can read that."""
    headers = [*response.headers, ("Content-Security-Policy", DASHBOARD_CSP), ("Vary", "Accept-Encoding")]
    if path and not call.app.dev:
        headers.append(("Cache-Control", "max-age=1209600, stale-while-revalidate=86400"))
    if "gzip" in call.request.header("accept-encoding") and response.status == 200 and type(response.body) is bytes and response.body:
        response.body = compressed(response.body)
        headers.append(("Content-Encoding", "gzip"))
    response.headers = tuple(headers)
    return response


@functools.lru_cache(maxsize=64)
def compressed(data):
    """An asset's gzip form; kept, since assets never change while the program runs."""
    return gzip.compress(data, 6)


# ============================================================================
#  21. Command line
# ============================================================================
# serve and superuser: flags before or after the command, `--flag value` or
# `--flag=value`.  Commands, flags and their help are tables; any failure is one
# line on stderr and exit code 1.

VERSION = "0.40.6"          # the release whose wire and disk formats this program speaks
NAME = "pocketbase"

#: flag -> (kind, default, help); valid before and after every command.
GLOBAL_FLAGS = {
    "dir": ("text", "./pb_data", "the PocketBase data directory"),
    "dev": ("bool", False, "enable dev mode, aka. printing logs and sql statements to the console"),
    "encryptionEnv": ("text", "", "the env variable whose value of 32 characters will be used\n"
                                  "as encryption key for the app settings (default none)"),
    "publicDir": ("text", "./pb_public", "the directory to serve static files"),
    "indexFallback": ("bool", True, "fallback the request to index.html on missing static path, e.g. when pretty urls are used with SPA"),
    "queryTimeout": ("int", 30, "the default SELECT queries timeout in seconds"),
    "sync": ("text", "normal", "what an acknowledged write survives: normal (a crash of the program) or full (also a power cut; slower)"),
}
SERVE_FLAGS = {
    "http": ("text", "", "TCP address to listen for the HTTP server\n"
                         "(if domain args are specified - default to 0.0.0.0:80, otherwise - default to 127.0.0.1:8090)"),
    "https": ("text", "", "TCP address to listen for the HTTPS server\n"
                          "(if domain args are specified - default to 0.0.0.0:443, otherwise - default to empty string, aka. no TLS)\n"
                          "The incoming HTTP traffic also will be auto redirected to the HTTPS version"),
    "httpsCert": ("text", "", "the PEM file with the certificate (chain) of the HTTPS server"),
    "httpsKey": ("text", "", "the PEM file with the private key of the HTTPS server"),
    "origins": ("list", ["*"], "CORS allowed domain origins list"),
}


class CommandError(Exception):
    """What a command failed with: printed with the time, exit code 1."""


class Command:
    """One command: its words, help, argument usage, own flags and function(options, arguments)."""

    def __init__(self, words, summary, run=None, usage="", flags=None, example=""):
        self.words, self.summary, self.run, self.usage, self.flags, self.example = words, summary, run, usage, flags or {}, example


COMMANDS = {}


def command(words, summary, usage="", flags=None, example=""):
    """Registers a command: `@command("superuser create", "Creates a new superuser")`."""
    def register(function):
        COMMANDS[words] = Command(words, summary, function, usage, flags, example)
        return function
    return register


COMMANDS["superuser"] = Command("superuser", "Manage superusers")


def open_app(options):
    """The App of the command line's options."""
    if options["sync"] not in ("full", "normal"):
        raise CommandError('invalid value for --sync: must be "full" or "normal"')
    app = App(options["dir"], encryption_env=options["encryptionEnv"], query_timeout=options["queryTimeout"],
              sync=options["sync"], dev=options["dev"])
    return app.open()


# ---- serve

@command("serve", "Starts the web server (default to 127.0.0.1:8090 if no domain is specified)", "[domain(s)] [flags]", SERVE_FLAGS)
def serve(options, domains):
    """Serves until SIGINT or SIGTERM."""
    os.makedirs(options["dir"], exist_ok=True)
    lock = DirectoryLock(options["dir"])
    raise_fd_limit()
    app = open_app(options)
    start_services(app)
    stop = gevent.event.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(signal_number, stop.set)
    boundary = Boundary(app, options["origins"], options["publicDir"], options["indexFallback"])
    app.realtime = Broker(app, boundary.allows_origin)
    servers = start_servers(options, domains, boundary)
    print_banner(servers[0][0], options, app)
    background = [gevent.spawn(look_around_forever, app), gevent.spawn(app.cron.run_forever)]
    app.events.fire(("serve",), no_work, app=app)
    stop.wait()
    app.events.fire(("terminate",), no_work, app=app)
    gevent.joinall([gevent.spawn(server.stop, 1.0) for _, server in servers])
    gevent.killall(background)
    app.outbox.stop(3)
    app.close()
    lock.release()


def look_around_forever(app):
    """Notices what other processes did to the data, and keeps the WAL short."""
    while True:
        gevent.sleep(1)
        for store in (app.store, app.logs):
            try:
                store.look_around()
            except Exception:               # a full disk must not end the watch
                LOG.exception("the periodic look at %s failed", store.path)


def start_servers(options, domains, boundary):
    """[(base URL, HttpServer)] for --http and --https; with both, http only redirects."""
    http = options["http"] or ("0.0.0.0:80" if domains else "" if options["https"] else "127.0.0.1:8090")
    https = options["https"] or ("0.0.0.0:443" if domains else "")
    servers = []
    if https:
        context = tls_context(options)
        servers.append(listen("https", https, boundary, context, domains))
        boundary = functools.partial(redirect_to_https, servers[0][0])
    if http:
        servers.append(listen("http", http, boundary, None, domains))
    return servers


def tls_context(options):
    """TLS 1.2 or newer with the given certificate files."""
    if not options["httpsCert"] or not options["httpsKey"]:
        raise CommandError("https needs a certificate: give its PEM files with --httpsCert and --httpsKey (automatic certificates are not built yet)")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(options["httpsCert"], options["httpsKey"])
    except (OSError, ssl.SSLError) as error:
        raise CommandError(f"failed to load the certificate: {error}") from None
    return context


def listen(scheme, address, handler, context, domains):
    host, port = split_address(address)
    server = HttpServer(handler, host, port, ssl_context=context, on_error=log_failure)
    try:
        server.start()
    except OSError as error:
        raise CommandError(f"listen tcp {address}: bind: {(os.strerror(error.errno) if error.errno else str(error)).lower()}") from None
    shown = domains[0] if domains else host
    shown = f"[{shown}]" if ":" in shown else shown
    default = {"http": 80, "https": 443}[scheme]
    return f"{scheme}://{shown}" + ("" if domains and server.port == default else f":{server.port}"), server


def log_failure(error, request):
    LOG.error("request failed: %s", request and request.target, exc_info=error)


def split_address(address):
    """`127.0.0.1:8090` -> ("127.0.0.1", 8090); `:80` listens everywhere."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise CommandError(f"listen tcp: address {address}: missing or invalid port in address")
    return host.strip("[]") or "0.0.0.0", int(port)


def redirect_to_https(base, request):
    """302 to the same path over TLS."""
    host = request.header("host").rpartition(":")[0] or request.header("host")
    port = base.rpartition(":")[2]
    return Response(302, (("Location", f"https://{host}{':' + port if port.isdecimal() else ''}{request.target}"),), b"")


def print_banner(base, options, app):
    stamp = time.strftime("%Y/%m/%d %H:%M:%S")
    print(f"{stamp} Server started at {base}\n├─ REST API:  {base}/api/\n└─ Dashboard: {base}/_/", flush=True)
    link = installer_link(app, base)
    if link:
        print(f"\n(!) Launch the URL below in the browser if it hasn't been open already to create your first superuser account:\n{link}\n"
              f"(you can also create your first superuser by running: {program_name()} superuser upsert EMAIL PASS)\n", flush=True)


def program_name():
    """How to call this program again: the executable, or python and the script."""
    return f"{sys.executable} {sys.argv[0]}" if sys.argv[0].endswith(".py") else sys.argv[0]


def installer_link(app, base):
    """The link that creates the first superuser, None when there is one; its token lives 30 minutes."""
    collection = app.schema.find(SUPERUSERS)
    if app.store.read("SELECT 1 FROM `_superusers` WHERE `email`<>? LIMIT 1", (INSTALLER_EMAIL,)):
        return None
    record = find_record_by(app.store, collection, "email", INSTALLER_EMAIL)
    if record is None:
        record = Record(collection)
        record["email"] = INSTALLER_EMAIL
        record.values["password"] = hash_password(app, random_text(30, ALPHANUMERIC))
        app.transaction(lambda tx: save_record(app, tx, record, validate=False))
    return f"{base}/_/#/pbinstall/{new_token(record, 'auth', 1800, refreshable=False)}"


# ---- superuser

def _superuser(options):
    """(app, the _superusers collection)"""
    app = open_app(options)
    return app, app.schema.find(SUPERUSERS)


def _email_and_password(arguments):
    if len(arguments) != 2:
        raise CommandError("missing email and password arguments")
    if not is_email(arguments[0]):
        raise CommandError("missing or invalid email address")
    return arguments


def _only_email(arguments):
    if len(arguments) != 1 or not is_email(arguments[0]):
        raise CommandError("invalid or missing email address")
    return arguments[0]


def _find_superuser(app, collection, email):
    record = find_by_unique(app.store, collection, "email", email)
    if record is None:
        raise CommandError(f'superuser with email "{email}" doesn\'t exist')
    return record


def _save_superuser(app, record, password, doing):
    """Saves with a new password; field errors become the command's message."""
    field = record.collection.by_name["password"]
    record.passwords["password"] = password
    if field.check_plain(password) is None:
        record.values["password"] = hash_password(app, password, field.cost)
    try:
        app.transaction(lambda tx: save_record(app, tx, record))
    except ApiError as error:
        texts = "; ".join(f"{name}: {item.message.removesuffix('.')}" for name, item in sorted(error.data.items())) or error.message.removesuffix(".")
        raise CommandError(f"{doing}: {texts}.") from None


def _new_superuser(collection, email):
    record = Record(collection)
    record["email"] = email
    return record


@command("superuser create", "Creates a new superuser", example="superuser create test@example.com 1234567890")
def create_superuser(options, arguments):
    email, password = _email_and_password(arguments)
    app, collection = _superuser(options)
    _save_superuser(app, _new_superuser(collection, email), password, "failed to create new superuser account")
    print(f'Successfully created new superuser "{email}"!')


@command("superuser upsert", "Creates, or updates if email exists, a single superuser", example="superuser upsert test@example.com 1234567890")
def upsert_superuser(options, arguments):
    email, password = _email_and_password(arguments)
    app, collection = _superuser(options)
    record = find_by_unique(app.store, collection, "email", email) or _new_superuser(collection, email)
    _save_superuser(app, record, password, "failed to upsert superuser account")
    print(f'Successfully saved superuser "{email}"!')


@command("superuser update", "Changes the password of a single superuser", example="superuser update test@example.com 1234567890")
def update_superuser(options, arguments):
    email, password = _email_and_password(arguments)
    app, collection = _superuser(options)
    record = _find_superuser(app, collection, email)
    _save_superuser(app, record, password, f'failed to change superuser "{email}" password')
    print(f'Successfully changed superuser "{email}" password!')


@command("superuser delete", "Deletes an existing superuser", example="superuser delete test@example.com")
def delete_superuser(options, arguments):
    email = _only_email(arguments)
    app, collection = _superuser(options)
    record = find_by_unique(app.store, collection, "email", email)
    if record is None:
        print(f'superuser "{email}" is missing or already deleted')
        return
    try:
        app.transaction(lambda tx: delete_record(app, tx, record))
    except ApiError as error:
        raise CommandError(f'failed to delete superuser "{email}": {error.message}') from None
    print(f'Successfully deleted superuser "{email}"!')


@command("superuser otp", "Creates a new OTP for the specified superuser", example="superuser otp test@example.com")
def create_superuser_otp(options, arguments):
    email = _only_email(arguments)
    app, collection = _superuser(options)
    record = _find_superuser(app, collection, email)
    otp = collection.options["otp"]
    if not otp["enabled"]:
        raise CommandError("OTP auth is not enabled for the _superusers collection")
    code = random_text(otp["length"], "0123456789")
    row = app.transaction(lambda tx: save_otp(app, tx, record, code))
    print(f'Successfully created OTP for superuser "{email}":\n├─ Id:    {row.id}\n├─ Pass:  {code}\n└─ Valid: {otp["duration"]}s\n')


@command("superuser ips", "Updates the superuser IPs whitelist setting (the IPs/subnets arguments must be space separated; leave empty to clear the "
         "whitelist restriction)", example="superuser ips 127.0.0.1 10.0.0.0/24")
def set_superuser_ips(options, arguments):
    app, _ = _superuser(options)
    settings = copy.deepcopy(app.settings)
    settings["superuserIPs"] = list(arguments)
    errors = check_settings(settings).get("superuserIPs")
    if errors:
        texts = "; ".join(f"{i}: {e.message[0].lower()}{e.message[1:].removesuffix('.')}" for i, e in sorted(errors.items()))
        raise CommandError(f"superuserIPs: ({texts}.).")
    app.save_settings(settings)
    if not arguments:
        print("Successfully cleared SuperuserIPs setting!")
        return
    lines = [("└─ " if i == len(arguments) - 1 else "├─ ") + ip for i, ip in enumerate(arguments)]
    print("Successfully updated SuperuserIPs setting:\n" + "\n".join(lines))


# ---- flags and help

def parse_arguments(words):
    """(Command or None, options, positional arguments) of a command line; CommandError for what it does not know."""
    flags = {**GLOBAL_FLAGS}
    options = {name: default for name, (_, default, _) in {**GLOBAL_FLAGS, **SERVE_FLAGS}.items()}
    options["help"] = options["version"] = False
    chosen, names, rest, given = None, [], list(words), set()
    while rest:
        word = rest.pop(0)
        if word == "--":
            names += rest
            break
        if word.startswith("-") and word != "-":
            _take_flag(word, rest, options, {**flags, **(chosen.flags if chosen else {})}, given)
            continue
        longer = f"{chosen.words} {word}" if chosen else word
        if longer in COMMANDS and not names:
            chosen = COMMANDS[longer]
        elif chosen is None:
            raise CommandError(f'unknown command "{word}" for "{NAME}"')
        else:
            names.append(word)
    return chosen, options, names


def _take_flag(word, rest, options, flags, given):
    name, equals, value = word.lstrip("-").partition("=")
    if word in ("-h", "--help"):
        options["help"] = True
        return
    if word in ("-v", "--version"):
        options["version"] = True
        return
    if name not in flags or not word.startswith("--"):
        raise CommandError(f"unknown flag: {word.partition('=')[0]}" if word.startswith("--") else f"unknown shorthand flag: {word[1:2]!r} in {word}")
    kind = flags[name][0]
    if kind == "bool":
        options[name] = _flag_bool(name, value) if equals else True
        return
    if not equals:
        if not rest:
            raise CommandError(f"flag needs an argument: --{name}")
        value = rest.pop(0)
    if kind == "int":
        if not re.fullmatch(r"[+-]?\d+", value):
            raise CommandError(f'invalid argument "{value}" for "--{name}" flag: strconv.ParseInt: parsing "{value}": invalid syntax')
        value = int(value)
    if kind == "list":
        value = (options[name] if name in given else []) + value.split(",")
    given.add(name)
    options[name] = value


def _flag_bool(name, text):
    if text not in TRUE_TEXTS + FALSE_TEXTS:
        raise CommandError(f'invalid argument "{text}" for "--{name}" flag: strconv.ParseBool: parsing "{text}": invalid syntax')
    return text in TRUE_TEXTS


def help_text(chosen):
    """The usage text of the program or of one command."""
    words = chosen.words if chosen else ""
    inner = {w: c for w, c in sorted(COMMANDS.items()) if w.rpartition(" ")[0] == words}
    lines = [chosen.summary if chosen else f"{NAME} CLI", "", "Usage:"]
    if chosen is None or not chosen.run:
        lines.append(f"  {NAME} {words + ' ' if words else ''}[command]")
    else:
        lines.append(f"  {NAME} {words} {chosen.usage or '[flags]'}")
    if chosen and chosen.example:
        lines += ["", "Examples:", chosen.example]
    if inner:
        width = max(11, *(len(w.rpartition(" ")[2]) for w in inner))
        lines += ["", "Available Commands:", *[f"  {w.rpartition(' ')[2]:{width}} {c.summary}" for w, c in inner.items()]]
    own = {"help": ("bool", False, f"help for {words.rpartition(' ')[2] or NAME}"), **(chosen.flags if chosen else GLOBAL_FLAGS)}
    if chosen is None:
        own["version"] = ("bool", False, f"version for {NAME}")
    lines += ["", "Flags:", *_flag_lines(own)]
    if chosen:
        lines += ["", "Global Flags:", *_flag_lines(GLOBAL_FLAGS)]
    if inner:
        lines += ["", f'Use "{NAME} {words + " " if words else ""}[command] --help" for more information about a command.']
    return "\n".join(lines)


_FLAG_SHORTHANDS = {"help": "-h, ", "version": "-v, "}
_FLAG_KINDS = {"text": " string", "int": " int", "list": " strings", "bool": ""}


def _flag_default(default):
    """How the help names a flag's default; nothing for one that is off or empty."""
    if not default:
        return ""
    if isinstance(default, bool):
        return " (default true)"
    if isinstance(default, str):
        return f' (default "{default}")'
    if isinstance(default, list):
        return f" (default [{','.join(default)}])"
    return f" (default {default})"


def _flag_lines(flags):
    names = {name: f"  {_FLAG_SHORTHANDS.get(name, '    ')}--{name}{_FLAG_KINDS[kind]}" for name, (kind, _, _) in flags.items()}
    width = max(map(len, names.values())) + 3
    for name, (_, default, text) in sorted(flags.items()):
        yield names[name].ljust(width) + (text + _flag_default(default)).replace("\n", "\n" + " " * width)


def main(words=None):
    """Runs the command line; returns the exit code."""
    words = sys.argv[1:] if words is None else words
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%Y/%m/%d %H:%M:%S", level=logging.ERROR)
    try:
        chosen, options, arguments = parse_arguments(words)
        if options["version"] and chosen is None:
            print(f"{NAME} version {VERSION}")
        elif options["help"] or chosen is None or not chosen.run:
            print(help_text(chosen))
        else:
            if options["dev"]:
                LOG.setLevel(logging.DEBUG)
            chosen.run(options, arguments)
    except (CommandError, PlainError) as error:
        print(time.strftime("%Y/%m/%d %H:%M:%S"), error, file=sys.stderr)
        return 1
    except sqlite3.Error as error:
        print(time.strftime("%Y/%m/%d %H:%M:%S"), sqlite_message(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
