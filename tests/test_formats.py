"""Numbers, JSON, dates, casts, formats, patterns, random text: the tables were read off PocketBase 0.40."""

import json
import math
import subprocess
import sys

from unit import pocketbase as formats
import pytest

NUMBER_TEXTS = [
    (5, "5"),
    (5.0, "5"),
    (0.1, "0.1"),
    (-0.0, "-0"),
    (1e20, "100000000000000000000"),
    (1e21, "1e+21"),
    (1e-6, "0.000001"),
    (1e-7, "1e-7"),
    (1.5e-7, "1.5e-7"),
    (5e-324, "5e-324"),
    (1.7976931348623157e308, "1.7976931348623157e+308"),
    (12345678901234567890, "12345678901234567000"),
    (9007199254740993, "9007199254740992"),
    (123456.789, "123456.789"),
    (-1.5e-10, "-1.5e-10"),
    (1e300, "1e+300"),
]


@pytest.mark.parametrize(("number", "text"), NUMBER_TEXTS)
def test_numbers_print_in_ecmascript_form(number, text):
    assert formats.format_number(number) == text
    assert formats.to_json({"n": [number]}) == f'{{"n":[{text}]}}'


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, 10**400])
def test_numbers_json_cannot_hold_are_refused(number):
    with pytest.raises(ValueError):
        formats.to_json({"n": number})


def test_json_is_compact_unescaped_and_sorted_on_request():
    value = {"b": "é<>&\u2028\x7f", "a": [None, True, "\x01\n", 1.5]}
    assert formats.to_json(value) == '{"b":"é<>&\u2028\x7f","a":[null,true,"\\u0001\\n",1.5]}'
    assert formats.to_json({**value, "c": 2.0}, sort_keys=True) == '{"a":[null,true,"\\u0001\\n",1.5],"b":"é<>&\u2028\x7f","c":2}'


BODIES = [
    (b'{"a":1}', {"a": 1}),
    (b"null", None),
    (b"{} x", {}),
    (b"{}}", {}),
    (b" \n{}", {}),
    (b"{}\xff", {}),
    (b'{"a":"\\ud83d\\ude00"}', {"a": "😀"}),
    (b'{"a":1E+2,"b":1.0}', {"a": 100.0, "b": 1.0}),
    (b'{"x":1e-400}', {"x": 0.0}),
    (b'{"x":"\\u0000\\/"}', {"x": "\0/"}),
    (b"nullx", None),
    (b'{"n":12345678901234567890}', {"n": 12345678901234567890.0}),
]


@pytest.mark.parametrize(("body", "value"), BODIES)
def test_json_bodies_that_are_read(body, value):
    assert formats.parse_json(body) == value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"\xef\xbb\xbf{}",
        b'{"t":"\xff"}',
        b'{"\xff":1}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\uDC00"}',
        b'{"a":"\\ud800\\u0041"}',
        b'{"a":1,"a":2}',
        b'{"x":{"a":1,"a":2}}',
        b'{"a\\u0062":1,"ab":2}',
        b'{"x":1e400}',
        b'{"x":-1e400}',
        b'{"x":' + b"9" * 400 + b"}",
        b'{"x":NaN}',
        b'{"x":Infinity}',
        b'{"x":-Infinity}',
        b'{"x":01}',
        b'{"x":+1}',
        b'{"x":.5}',
        b'{"x":1.}',
        b'{"x":1,}',
        b"{'x':1}",
        b'{"x":"\t"}',
        b'{"x":"\\x41"}',
        b"{1:1}",
        b"truex",
        b'{"x":"\xed\xa0\x80"}',
        b'{"x":"\xc0\x80"}',
        b"/*c*/{}",
        b"[" * 600 + b"]" * 600,
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_json_bodies_that_are_refused(body):
    with pytest.raises(ValueError):
        if formats.parse_json(body) is True:
            raise ValueError("a body must be an object")


def test_minus_zero_survives_a_round_trip():
    assert formats.to_json(formats.parse_json('{"a":-0,"b":-0.0}')) == '{"a":-0,"b":-0}'


def test_deep_values_are_an_error_not_a_crash():
    value = 1.0
    for _ in range(10_000):
        value = [value]
    with pytest.raises(ValueError):
        formats.to_json(value)


DATES = [
    ("2024-01-02 03:04:05.678Z", "2024-01-02 03:04:05.678Z"),
    ("2024-01-02 03:04:05.6789Z", "2024-01-02 03:04:05.678Z"),
    ("2024-01-02 03:04:05,5", "2024-01-02 03:04:05.500Z"),
    ("2024-01-02T03:04:05+02:00", "2024-01-02 01:04:05.000Z"),
    ("2024-01-02T03:04:05-02:30", "2024-01-02 05:34:05.000Z"),
    ("2024-01-02T03:04:05+0200", "2024-01-02 01:04:05.000Z"),
    ("2024-01-02T03:04:05+24:00", "2024-01-01 03:04:05.000Z"),
    ("2024-01-02T03:04:05+02:60", "2024-01-02 00:04:05.000Z"),
    ("2024-01-02", "2024-01-02 00:00:00.000Z"),
    ("2024-01-02 3:04:05", "2024-01-02 03:04:05.000Z"),
    ("2024-01-02  03:04:05", "2024-01-02 03:04:05.000Z"),
    ("2024-02-29", "2024-02-29 00:00:00.000Z"),
    ("0000-02-29", "0000-02-29 00:00:00.000Z"),
    ("0001-01-01 00:00:00.001Z", "0001-01-01 00:00:00.001Z"),
    ("9999-12-31T23:59:59-01:00", "10000-01-01 00:59:59.000Z"),
    ("0000-01-01T00:00:00+01:00", "-0001-12-31 23:00:00.000Z"),
    ("Mon, 02 Jan 2006 15:04:05 MST", "2006-01-02 15:04:05.000Z"),
    ("Tue, 02 Jan 2006 15:04:05 GMT", "2006-01-02 15:04:05.000Z"),
    ("Mon, 02 Jan 2006 15:04:05 GMT+3", "2006-01-02 18:04:05.000Z"),
    ("Mon, 02 Jan 2006 15:04:05 +0100", "2006-01-02 14:04:05.000Z"),
    ("02 Jan 69 15:04 MST", "1969-01-02 15:04:00.000Z"),
    ("02 Jan 68 15:04 -0700", "2068-01-02 22:04:00.000Z"),
    ("monday, 02-jan-06 15:04:05 MST", "2006-01-02 15:04:05.000Z"),
    ("2006-01-02 15:04:05 -0700 MST", "2006-01-02 22:04:05.000Z"),
    ("02 JAN 2006", "2006-01-02 00:00:00.000Z"),
    ("Mon Jan  2 15:04:05.5 2006", "2006-01-02 15:04:05.500Z"),
    ("Mon Jan 02 15:04:05 -0700 2006", "2006-01-02 22:04:05.000Z"),
    ("3:04PM", "0000-01-01 15:04:00.000Z"),
    ("12:04AM", "0000-01-01 00:04:00.000Z"),
    ("Feb 29 15:04:05", "0000-02-29 15:04:05.000Z"),
    ("1969-12-31 23:59:59.9999Z", "1969-12-31 23:59:59.999Z"),
]
NO_DATES = (
    "",
    " 2024-01-02",
    "2024-01-02 ",
    "2024-1-2",
    "2024-01",
    "2024-01-02 03:04",
    "2024-01-02T03:04:05z",
    "2024-01-02t03:04:05Z",
    "2024-02-30",
    "2023-02-29",
    "2024-01-02 24:00:00Z",
    "2024-01-02 23:59:60Z",
    "0001-01-01 00:00:00Z",
    "0001-01-01 00:00:00.000Z",
    "10000-01-01",
    "2 Jan 2006",
    "02 January 2006",
    "Mon Jan 2 15:04:05 -0700 2006",
    "Foo, 02 Jan 2006 15:04:05 GMT",
    "Mon, 02 Jan 2006 15:04:05 ABCDE",
    "3:04pm",
    "13:04PM",
    "1700000000",
    "01/02/2006",
    "2024-01-02T03:04:05+25:00",
    "2024-01-02 03:04:05.",
    "٢٠٢٤-01-02",
    "2" * 100_000,
    1700000000,
    1.5,
    None,
    True,
    [],
    {},
)


@pytest.mark.parametrize(("text", "stored"), DATES)
def test_dates_are_normalised_to_utc(text, stored):
    assert formats.parse_date(text) == stored


@pytest.mark.parametrize("value", NO_DATES, ids=lambda value: repr(value)[:30])
def test_what_is_no_date_becomes_empty(value):
    assert formats.parse_date(value) == ""


NUMBERS = [
    ("5", 5),
    ("+5", 5),
    (" 5 ", 0),
    (".5", 0.5),
    ("1.", 1),
    ("1_000", 1000),
    ("0x10", 0),
    ("0x1p4", 16),
    ("0x_1p4", 16),
    ("0X1P-2", 0.25),
    ("1,5", 0),
    ("1e400", 0),
    ("1e-400", 0),
    ("1__0", 0),
    ("_1", 0),
    ("1_", 0),
    ("1_.5", 0),
    ("1_0.5", 10.5),
    ("1e1_0", 1e10),
    ("007", 7),
    ("1e", 0),
    ("+nan", 0),
    ("\u0665", 0),
    ("0b11", 0),
    ("", 0),
    (True, 1),
    (False, 0),
    (None, 0),
    ([1], 0),
    ({}, 0),
    ("12345678901234567890", 1.2345678901234567e19),
]


@pytest.mark.parametrize(("value", "number"), NUMBERS)
def test_number_cast(value, number):
    assert formats.cast_number(value) == number


@pytest.mark.parametrize("text", ["Inf", "inf", "-inf", "+Infinity", "infinity", "NaN", "nan"])
def test_number_texts_that_are_no_number_stay_visible_to_the_validator(text):
    assert not math.isfinite(formats.cast_number(text))


def test_text_cast():
    values = [None, True, False, 0, -0.0, 1.5, 1e21, 1e-7, 12345678901234567890, [], {}, ["a"], " x "]
    expected = ["", "true", "false", "0", "-0", "1.5", "1000000000000000000000", "0.0000001", "12345678901234567000", "", "", "", " x "]
    assert [formats.cast_text(value) for value in values] == expected


def test_bool_cast():
    assert all(formats.cast_bool(value) for value in (True, 1, -1, 0.1, "1", "t", "T", "true", "TRUE", "True"))
    assert not any(formats.cast_bool(value) for value in (False, 0, None, "", "0", "2", "tRue", "yes", "on", " true", "f", [1], {"a": 1}))


LISTS = [
    (None, []),
    ("", []),
    ("a", ["a"]),
    (" a ", [" a "]),
    (5, ["5"]),
    (True, ["true"]),
    ({"a": 1}, []),
    (["a", "b", "a", ""], ["a", "b"]),
    ([1, "1", True, None, 1.5], ["1", "true", "1.5"]),
    ([["a"]], []),
    ('["a","b"]', ["a", "b"]),
    (' ["q"] ', ["q"]),
    ("[]", []),
    ("[ ]", []),
    ("[1,2]", ["[1,2]"]),
    ('["a",1]', ["a", '["a",1]']),
    ('["q"', ["q", '["q"']),
    ('["a"] x', ["a", '["a"] x']),
    ('["a",null,"b"]', ["a", "b"]),
    ('["a",["x"]]', ["a", '["a",["x"]]']),
    ('["a"', ["a", '["a"']),
    ('["a', ['["a']),
    ("[", ["["]),
    ('["a","\\ud800"]', ["a", '["a","\\ud800"]']),
    ('\u00a0["a"]', ['\u00a0["a"]']),
    ('{"0":"a"}', ['{"0":"a"}']),
    ('["a\tb"]', ['["a\tb"]']),
    ("null", ["null"]),
    ('["a",]', ["a", '["a",]']),
]


@pytest.mark.parametrize(("value", "items"), LISTS)
def test_list_cast(value, items):
    assert formats.cast_list(value) == items


def test_single_takes_the_last_item():
    assert [formats.cast_single(value) for value in (["a", "b"], '["a","b"]', "x", [], None, {}, ['["a"]'])] == ["b", "b", "x", "", "", "", "a"]


JSON_CASTS = [
    (None, None),
    (True, "true"),
    (1.0, "1"),
    (1e21, "1e+21"),
    ({"b": 1, "a": [2.0]}, '{"a":[2],"b":1}'),
    ("", '""'),
    ("null", "null"),
    ("nullx", '"nullx"'),
    ("5 ", "5 "),
    ("01", '"01"'),
    ("+5", '"+5"'),
    ('{"b": 1,  "a": 2.0}', '{"b": 1,  "a": 2.0}'),
    (" [1]", '" [1]"'),
    ("[1", '"[1"'),
    ('"abc"', '"abc"'),
    ("é<>&\u2028", '"é<>&\\u2028"'),
    ("\ufeff{}", '"\\ufeff{}"'),
    ('a\tb\n"\\/', '"a\\tb\\n\\"\\\\/"'),
    ("[NaN]", '"[NaN]"'),
    ("TRUE", '"TRUE"'),
]


@pytest.mark.parametrize(("value", "stored"), JSON_CASTS)
def test_json_cast(value, stored):
    assert formats.cast_json(value) == stored
    assert stored is None or formats.is_json(stored)


@pytest.mark.parametrize("value", ["1e400", '{"a":1,"a":2}', "a\0b", "\x7f", "\a", "\U000e0001", '{"lon":1e400}', "[" * 600 + "]" * 600])
def test_json_texts_the_validator_refuses(value):
    assert not formats.is_json(formats.cast_json(value))


POINTS = [
    ({"lon": 1, "lat": 2, "x": 3}, (1, 2)),
    ({"lat": 2}, (0, 2)),
    ({"Lon": 1}, (0, 0)),
    ({"lon": "1", "lat": 2}, (0, 2)),
    ({"lon": None, "lat": 3}, (0, 3)),
    (None, (0, 0)),
    ([1, 2], (0, 0)),
    (5, (0, 0)),
    ('{"lon":1,"lat":2}', (1, 2)),
    ('{"lon":1,"lat":2} x', (1, 2)),
    ('{"lon":1,"lat":2', (1, 2)),
    ('{"lon":1,"lon":2}', (1, 0)),
    ('{"lon":1,"lat":"x"}', (1, 0)),
    ('{"lat":"x","lon":1}', (0, 0)),
    ('{"lo\\u006e":1}', (1, 0)),
    ("[1,2]", (0, 0)),
    ('{"lon":1e2,"lat":1E1}', (100, 10)),
    ("", (0, 0)),
    ("[" * 9999, (0, 0)),
    ('{"lon":1,"x":' + "[" * 9999, (1, 0)),
]


@pytest.mark.parametrize(("value", "point"), POINTS, ids=lambda value: repr(value)[:30])
def test_geo_point_cast(value, point):
    assert formats.cast_geo_point(value) == {"lon": point[0], "lat": point[1]}


def test_reading_values_other_programs_stored():
    assert [formats.read_text(value) for value in (None, 5, b"hi", b"\xff\xfe", "x")] == ["", "5", "hi", "\ufffd\ufffd", "x"]
    assert [formats.read_number(value) for value in (None, "abc", "7.5", 1e300, b"5", "0x1p4", "Inf", math.inf, 3)] == [
        0,
        0,
        7.5,
        1e300,
        5,
        16,
        0,
        0,
        3,
    ]
    assert [formats.read_bool(value) for value in (None, 1, 0, 2, 1.5, "yes", "true", b"1", "T")] == [
        False,
        True,
        False,
        False,
        False,
        False,
        True,
        True,
        True,
    ]
    assert [formats.read_date(value) for value in (None, 1700000000, b"2024-01-02", "x")] == ["", "", "2024-01-02 00:00:00.000Z", ""]
    assert [formats.read_single(value) for value in (None, '["a","b"]', "[1,2]", "[]", "x", b'["a"]')] == ["", "b", "[1,2]", "", "x", "a"]
    assert [formats.read_list(value) for value in (None, "", "a", '["a","a",""]', b'["a", "b"]', 1e20, 5)] == [
        [],
        [],
        ["a"],
        ["a"],
        ["a", "b"],
        ["1e+20"],
        ["5"],
    ]


JSON_READS = [
    (None, "null"),
    (5, "5"),
    (1234567.5, "1.2345675e+06"),
    (0.0001, "0.0001"),
    (1e-05, "1e-05"),
    (1e20, "1e+20"),
    (math.inf, '"+Inf"'),
    ("not json", '"not json"'),
    ("", '""'),
    ("null", "null"),
    (" null", '" null"'),
    ('{"a": 1,  "b" : [1.0, 1E5]}', '{"a":1,"b":[1.0,1E5]}'),
    ('{"a":1,"a":2}', '{"a":1,"a":2}'),
    ('["\\ud800"]', '["\ufffd"]'),
    ('"\\u00e9\\/"', '"é/"'),
    (b'["a", "b"]', '["a","b"]'),
    ("[1e400]", "[1e400]"),
    ("[-0]", "[-0]"),
    ("x\0y", '"x\\u0000y"'),
    ('["a b\\\\", "c"]', '["a b\\\\","c"]'),
]


@pytest.mark.parametrize(("stored", "text"), JSON_READS)
def test_json_reads(stored, text):
    assert formats.read_json(stored) == text
    json.loads(text)


def test_geo_point_reads():
    assert [formats.read_geo_point(value) for value in (None, "", "null", "{}", ' {"lon":1.50}', b'{"lat":1}')] == [
        {"lon": 0, "lat": 0},
        {"lon": 0, "lat": 0},
        {"lon": 0, "lat": 0},
        {"lon": 0, "lat": 0},
        {"lon": 1.5, "lat": 0},
        {"lon": 0, "lat": 1},
    ]
    for value in ("bad", "[1,2]", '{"lat":"x"}', '{"lon":1} x', '{"a":1,"a":2}', 5):
        with pytest.raises(ValueError):
            formats.read_geo_point(value)


EMAILS = (
    "a@b.c",
    "é@b.com",
    "a@пример.рф",
    '"x"@e.com',
    '" x "@e.com',
    '"(x"@b.co',
    "a+b@c.de",
    "a@b.c.",
    "a@b_c.de",
    "a@b.c--d",
    "a@b..c.d",
    "a@1.com",
    "}~@b.co",
    "a\u00a0b@c.de",
    "a@é.é",
)
NO_EMAILS = (
    "",
    "a",
    "a@",
    "@b.co",
    "a@b",
    "a@localhost",
    '"x y"@e.com',
    '""@c.de',
    '"xy"@b.co',
    "a..b@c.de",
    ".a@c.de",
    "a.@c.de",
    "a@-b.com",
    "a@b.c-",
    "a@b..c",
    "a@b.1",
    " a@b.c",
    "a@b.c ",
    "a@b.c\n",
    "a@1.2.3.4",
    "a@[1.2.3.4]",
    "a@b@c.de",
    "😀@b.co",
    "<a@b.co>",
    "a@" + "a." * 50_000 + "!",
)


def test_email_addresses():
    assert [text for text in EMAILS if not formats.is_email(text)] == []
    assert [text for text in NO_EMAILS if formats.is_email(text)] == []


URLS = (
    "http://localhost:8090",
    "http://[::1]",
    "http://[::1]:80/x",
    "http://[fe80::1%25eth0]",
    "http://a",
    "http://a_b.com",
    "mailto:a@b.c",
    "tel:123",
    "example.com",
    "a.bc",
    "a.é",
    "ftp://a.com",
    "wss://a.com",
    "https://a.com?q=1",
    "http://user:pw@a.com",
    "http://é.com",
    "a.com:80/x",
    "http://a.com./",
    "http://a.com/é",
    "localhost:80",
    "http://a.com:0",
    "http://1.2.3.4",
    "http//a.com",
    "http://us%65r:pw@a.com",
    "http://a.com?%zz",
    "http://x@?y@a.com.",
)
NO_URLS = (
    "",
    "a.b",
    "//a.com",
    "HTTP://A.COM",
    "javascript:alert(1)",
    "http://a..com",
    "http://a b.com",
    "http://a.com:",
    "http://a.com:999999",
    "gopher://a.com",
    "file:///etc/x.y",
    "http://",
    "http://-a.com",
    ".a.com",
    "localhost",
    "abc:def",
    "http://a.com/%zz",
    "http://a.com#%zz",
    "http://%41.com",
    "http://a.com\n",
    "http://[a.com]",
    "http://::1",
    "/a.b",
    "http://é@a.com",
    "http://a.com/" + "y" * 2070,
    "h~ttp://:pw@a.co",
    "http://[fe80:::1%25eth0]",
    "data:a.b",
    "http://.com/@x",
    "http://" + "a-" * 1000 + "!",
)


def test_urls():
    assert [text for text in URLS if not formats.is_url(text)] == []
    assert [text for text in NO_URLS if formats.is_url(text)] == []


def test_domains_and_hosts():
    assert all(formats.is_domain(text) for text in ("a.b", "A.COM", "xn--80.com", "x--y.com", "x" * 63 + ".com", "a." * 126 + "com"))
    assert not any(
        formats.is_domain(text) for text in ("", "localhost", "a.b.", "a..b", "a_b.com", "-a.com", "*.a.com", "é.com", "1.2.3.4", "a.c1", "a.com:80")
    )
    assert all(formats.is_host(text) for text in ("localhost", "a.com", "a_b.com", "1.2.3.4", "::1", "a.com.", "_", "256.1.1.1"))
    assert not any(formats.is_host(text) for text in ("", "[::1]", "-a.com", "a..com", "é.com", "a.com:25", "a/b", "x" * 64, "fe80::1%eth0"))


def test_url_host_includes_the_port_and_needs_a_scheme():
    assert [formats.url_host(text) for text in ("http://u@a.com:80/x", "a.com/x", "mailto:a@b.com", "wss://x.y?z")] == ["a.com:80", "", "", "x.y"]


PATTERN_FAULTS = [
    ("((", "missing closing ): `((`"),
    ("a)", "unexpected ): `a)`"),
    ("[a", "missing closing ]: `[a`"),
    ("[b-a]", "invalid character class range: `b-a`"),
    ("a**", "invalid nested repetition operator: `**`"),
    ("*a", "missing argument to repetition operator: `*`"),
    ("a{1001}", "invalid repeat count: `{1001}`"),
    ("(?=a)", "invalid or unsupported Perl syntax: `(?=`"),
    ("(?<!a)", "invalid named capture: `(?<!a)`"),
    ("(?P<n", "invalid named capture: `(?P<n`"),
    ("\\", "trailing backslash at end of expression: ``"),
    ("\\1", "invalid escape sequence: `\\1`"),
    ("\\C", "invalid escape sequence: `\\C`"),
    ("a{99999999999}", "invalid repeat count: `{99999999999}`"),
    ("(?P<é>a)", "invalid named capture: `(?P<é>`"),
    ("[z-a]+$", "invalid character class range: `z-a`"),
]


@pytest.mark.parametrize(("pattern", "fault"), PATTERN_FAULTS)
def test_pattern_faults_have_the_known_words(pattern, fault):
    with pytest.raises(ValueError) as error:
        formats.compile_pattern(pattern)
    assert str(error.value) == f"error parsing regexp: {fault}"


def test_patterns_search_like_re2():
    assert formats.compile_pattern("^[a-z0-9]+$").search("abc1") and not formats.compile_pattern("^[a-z0-9]+$").search("abc\n")
    assert not formats.compile_pattern("^\\w+$").search("é")
    assert formats.compile_pattern("^\\pL+$").search("éa") and formats.compile_pattern("b|c").search("abc")


def test_a_pattern_that_hangs_a_backtracking_engine_returns():
    assert not formats.compile_pattern("^(a+)+$").search("a" * 50_000 + "!")


def test_a_trivial_pattern_does_not_load_the_engine():
    code = "import pocketbase as formats, sys; formats.compile_pattern('^[a-z0-9]+$'); formats.generate_from_pattern('[a-z0-9]{15}')"
    code = code.replace("formats.generate", "formats.compile_pattern('[a-z0-9]{15}'); formats.generate")
    subprocess.run([sys.executable, "-c", code + "; assert 're2' not in sys.modules"], check=True, cwd=formats.__file__.rpartition("/")[0])


GENERATED = [
    ("[a-z0-9]{15}", "[a-z0-9]{15}"),
    ("[A-Z]{3}-[0-9]{2,4}", "[A-Z]{3}-[0-9]{2,3}"),
    ("a?", ""),
    ("a*", "a{0,5}"),
    ("a+", "a{1,5}"),
    ("a{2,}", "a{2,5}"),
    ("a{0}", ""),
    ("(ab|cd)", "ab|cd"),
    ("(a{1,3}){2,3}", "a{2,4}"),
    (".{9}", "[A-Za-z0-9]{9}"),
    ("(?i)abc", "ABC"),
    ("(?i)[a-c]{9}", "[a-cA-C]{9}"),
    ("\\d{5}", "[0-9]{5}"),
    ("[[:upper:]]{3}", "[A-Z]{3}"),
    ("\\x41\\.\\n", "A\\.\n"),
    ("\\Qa.b\\E", "a\\.b"),
    ("[^\\x00-\\x{10FFFE}]", "\U0010ffff"),
    ("", ""),
]


@pytest.mark.parametrize(("pattern", "shape"), GENERATED)
def test_generated_text_has_the_described_shape(pattern, shape):
    matcher = formats.compile_pattern(f"^(?:{shape})$")
    assert [text for text in (formats.generate_from_pattern(pattern) for _ in range(50)) if not matcher.search(text)] == []


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        (p, f"unsupported pattern operator {n}")
        for p, n in (("^a", 9), ("a$", 10), ("\\ba", 11), ("\\Ba", 12), ("(?m)^a", 7), ("(?m)a$", 8), ("a|", 2), ("()", 2))
    ]
    + [("[^\\x00-\\x{10FFFF}]", "no runes to choose from"), ("((", "error parsing regexp: missing closing ): `((`")],
)
def test_patterns_nothing_can_be_generated_from(pattern, fault):
    with pytest.raises(ValueError) as error:
        formats.generate_from_pattern(pattern)
    assert str(error.value) == fault


def test_deeply_nested_generator_patterns_are_refused():
    with pytest.raises(ValueError):
        formats.generate_from_pattern("(" * 900 + "a" + ")" * 900)


def test_random_text_is_even_and_never_repeats():
    assert len({formats.random_id() for _ in range(5000)}) == 5000
    assert set(formats.random_text(20_000, "abcdef")) == set("abcdef")
    counts = [formats.random_text(60_000, "abcdefg").count(letter) for letter in "abcdefg"]
    assert max(counts) - min(counts) < 900  # 8571 each, seven standard deviations
    assert formats.random_text(0) == "" and len(formats.random_text(7, "é😀")) == 7


EXCERPTS = [
    ("<p>Hello <b>w</b>orld</p><div>x</div>", 7, False, "Hello w"),
    ("ab cd", 3, True, "ab..."),
    ("<p>a</p><p>b</p>", 9, False, "a b"),
    ("a&amp;b &lt;c&gt; &eacute;", 99, False, "a&b <c> é"),
    ("a<br>b<u>c</u>", 99, False, "ab c"),
    ("<script>x</script>y<svg>z</svg>", 99, False, "y"),
    ("a < b > c", 99, False, "a < b > c"),
    ("a <b", 99, False, "a"),
    ("a<!-- c -->b", 99, False, "ab"),
    ("<p>un<p>closed", 99, False, "un closed"),
    ("x</div>y", 99, False, "xy"),
    ("<td>a<td>b", 99, False, "ab"),
    ("<table><tr><td>a</td><td>b</table>", 99, False, "a b"),
    ("<1>x", 99, False, "<1>x"),
    ('<p class="a>b">x</p>', 99, False, "x"),
    ("a\u00a0\u00a0b", 99, False, "a\u00a0\u00a0b"),
    ("<plaintext>a<b>", 99, False, "a<b>"),
    ("<script/>x", 99, False, ""),
]


@pytest.mark.parametrize(("text", "length", "ellipsis", "words"), EXCERPTS)
def test_excerpts(text, length, ellipsis, words):
    assert formats.excerpt(text, length, ellipsis) == words


@pytest.mark.parametrize(
    ("piece", "words"),
    [
        ("<", "<" * 9),
        ("<b '", ""),
        ("<b ='", ""),
        ("<b>", ""),
        ("<div>", ""),
        ("</x>", ""),
        ("<!--", ""),
        ("<script>", ""),
        ("&", "&" * 9),
        ("<p>a", "a a a a a"),
    ],
)
def test_excerpts_of_hostile_text(piece, words):
    assert formats.excerpt(piece * 100_000, 9) == words


def test_snake_case():
    names = ["HelloWorldTEST   a--b", "camelCaseName--X", "HTMLParser2Go", "iOSApp", "ünïcodé", "9A", "a1B2", "__x__", "é"]
    assert [formats.snake_case(name) for name in names] == [
        "hello_world_test_a_b",
        "camel_case_name_x",
        "htmlparser2_go",
        "i_osapp",
        "n_cod",
        "9_a",
        "a1_b2",
        "x",
        "",
    ]
