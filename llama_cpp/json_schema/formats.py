"""Texts of the formats that JSON Schema names, as patterns.

Each holds less than its standard, so that every reader takes what is written: dates have years of four digits from 1000 on, host
names are short. A format that is not here is an annotation, as the standard has it.
"""

from __future__ import annotations

_YEAR = r"[1-9]\d{3}"
#: Years that 4 divides, but for hundreds that 400 does not.
_LEAP = r"([1-9]\d(0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)"
_DATE = rf"({_YEAR}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))|{_LEAP}-02-29)"
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"{_BYTE}(\.{_BYTE}){{3}}"
_H = r"[0-9a-fA-F]{1,4}"


def _ipv6() -> str:
    """All groups, or two colons where at least one is left out."""
    found = [rf"({_H}:){{7}}{_H}"]
    for before in range(8):
        head = rf"{_H}(:{_H}){{{before - 1}}}" if before else ""
        rest = 7 - before
        found.append(rf"{head}::" + (rf"({_H}(:{_H}){{0,{rest - 1}}})?" if rest else ""))
    return "(" + "|".join(found) + ")"


_LABEL = r"[a-zA-Z0-9]{1,16}(-[a-zA-Z0-9]{1,12})?"
_TOP = r"[a-zA-Z]{2,12}"
_HOST = rf"({_LABEL}\.){{0,3}}{_TOP}"
_SHORT_HOST = r"[a-zA-Z0-9]{1,10}(\.[a-zA-Z0-9]{1,10})?\.[a-zA-Z]{2,4}"
_EMAIL = rf"[a-zA-Z0-9_]{{1,20}}([.+-][a-zA-Z0-9_]{{1,20}})?@({_LABEL}\.){{1,3}}{_TOP}"
_SHORT_EMAIL = rf"[a-zA-Z0-9_]{{1,10}}(\.[a-zA-Z0-9_]{{1,10}})?@{_SHORT_HOST}"
_SHORTEST_EMAIL = r"[a-zA-Z0-9_]{1,8}@[a-zA-Z0-9]{1,8}\.[a-zA-Z]{2,3}"
_OF_PATH = r"([a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})"
_URI_REST = rf"(/{_OF_PATH}*)*(\?({_OF_PATH}|[/?])*)?(#({_OF_PATH}|[/?])*)?"
_SCHEME = r"[a-zA-Z][a-zA-Z0-9+.-]{0,15}"
_URI = rf"{_SCHEME}://{_HOST}(:[1-9]\d{{0,3}})?{_URI_REST}"
_LONG_URI = (
    rf"{_SCHEME}://{_HOST}(:[1-9]\d{{0,3}})?(/{_OF_PATH}{{0,60}}){{0,8}}(\?({_OF_PATH}|[/?]){{0,80}})?(#{_OF_PATH}{{0,40}})?"
)
_MIDDLE_URI = r"https?://" + _SHORT_HOST + r"(/[a-zA-Z0-9._~-]{0,30}){0,4}(\?[a-zA-Z0-9._~=&-]{0,60})?"
_SHORT_URI = r"https?://" + _SHORT_HOST + r"(/[a-zA-Z0-9._~-]{0,20})?"
_OF_DAY = r"(\d{1,3}H(\d{1,3}M(\d{1,3}S)?)?|\d{1,3}M(\d{1,3}S)?|\d{1,3}S)"
_DAYS = r"(\d{1,3}Y(\d{1,3}M(\d{1,3}D)?)?|\d{1,3}M(\d{1,3}D)?|\d{1,4}D)"
_X = "[0-9a-fA-F]"
_UUID = rf"{_X}{{8}}(-{_X}{{4}}){{3}}-{_X}{{12}}"
_POINTER = r'(/([^/~"\\\x00-\x1f]|~[01])*)*'

_NAMED: dict[str, tuple[str, ...]] = {
    "date": (_DATE,),
    "time": (_TIME,),
    "date-time": (f"{_DATE}T{_TIME}",),
    "duration": (rf"P({_DAYS}(T{_OF_DAY})?|T{_OF_DAY}|\d{{1,3}}W)",),
    "email": (_EMAIL, _SHORT_EMAIL, _SHORTEST_EMAIL),
    "hostname": (_HOST, _SHORT_HOST),
    "ipv4": (_IPV4,),
    "ipv6": (_ipv6(),),
    "uri": (_URI, _LONG_URI, _MIDDLE_URI, _SHORT_URI),
    "uri-reference": (rf"({_URI}|{_URI_REST})", _LONG_URI, _MIDDLE_URI, _SHORT_URI),
    "uuid": (_UUID,),
    "json-pointer": (_POINTER,),
}
_NAMED |= {
    "idn-email": _NAMED["email"],
    "idn-hostname": _NAMED["hostname"],
    "iri": _NAMED["uri"],
    "iri-reference": _NAMED["uri-reference"],
    **{f"uuid{n}": (rf"{_X}{{8}}-{_X}{{4}}-{n}{_X}{{3}}-[89abAB]{_X}{{3}}-{_X}{{12}}",) for n in range(1, 9)},
}

#: Patterns by the name of the format; where there are several, each next one is shorter, for strings of a limited length.
FORMATS = {name: tuple(f"^({pattern})$" for pattern in listed) for name, listed in _NAMED.items()}
