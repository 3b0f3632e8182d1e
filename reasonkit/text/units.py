"""Reads units as people write them into symbols and powers: `J/(kg·K)`, "per second squared", `s-1`, "sq ft".

Entry points: `read_unit`, and `is_known` to tell "5 km" from "5 apples". A word that is in no table is kept for pint.
Source: the SI brochure, 9th edition, sections 5.3 and 5.4. Surprise: J/kg K is J/(kg·K), because everything after a
slash belongs below it until the next sign.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

MAX_UNIT_CHARACTERS = 100
Unit = tuple[tuple[str, int], ...]  # symbols that pint knows, sorted, and their powers

_PREFIXES = {"k": "kilo", "M": "mega", "G": "giga", "T": "tera", "d": "deci", "c": "centi", "m": "milli", "u": "micro",
             "n": "nano", "p": "pico", "f": "femto"}
# Units that take a prefix: the symbol, and its names.
_PREFIXED = {
    "m": "meter metre", "g": "gram gramme gm", "s": "second sec", "A": "ampere amp", "K": "kelvin", "mol": "mole",
    "J": "joule", "N": "newton", "W": "watt", "Pa": "pascal", "Hz": "hertz", "V": "volt", "ohm": "ohm", "C": "coulomb",
    "F": "farad", "T": "tesla", "Wb": "weber", "H": "henry", "S": "siemens", "L": "liter litre", "cal": "calorie",
    "B": "byte", "bit": "", "bar": "", "eV": "electronvolt", "lm": "lumen", "lx": "lux", "Bq": "becquerel",
    "Gy": "gray", "Sv": "sievert", "Da": "dalton", "pc": "parsec", "Eq": "equivalent", "Osm": "osmole",
}
# Units that take none. Hertz and turns both count cycles, so 60 rpm is 1 Hz.
_PLAIN = {
    "min": "minute", "h": "hour hr", "day": "d", "week": "wk", "month": "", "year": "yr", "century": "", "inch": "in",
    "foot": "ft feet", "yard": "yd", "mile": "mi", "nautical_mile": "nmi", "ounce": "oz", "pound": "lb", "t": "tonne",
    "ton": "", "degC": "°c celsius centigrade", "degF": "°f fahrenheit", "degree": "° deg", "rad": "radian",
    "percent": "%", "permille": "‰", "ppm": "", "ppb": "", "gallon": "gal", "quart": "", "pint": "", "hectare": "ha",
    "acre": "", "atm": "atmosphere", "psi": "", "torr": "mmhg", "knot": "", "horsepower": "hp", "light_year": "ly",
    "astronomical_unit": "au", "cd": "candela", "IU": "", "foot_pound": "", "fluid_ounce": "", "mol_percent": "mol%",
    "mass_percent": "wt% mass%", "volume_percent": "vol%", "hPa": "", "hL": "hl", "M": "molar", "mM": "millimolar",
    "uM": "micromolar", "nM": "nanomolar", "count": "rotation revolution rev cycle beat", "kg": "kilo", "mL": "ml",
}
# Products, and spellings that the tables do not derive.
_ALIASES = {
    "mph": "mile h^-1", "kph": "km h^-1", "kmh": "km h^-1", "kmph": "km h^-1", "mpg": "mile gallon^-1", "cc": "cm^3",
    "rpm": "count min^-1", "rps": "count s^-1", "bpm": "count min^-1", "diopter": "m^-1", "diopters": "m^-1",
    "dioptre": "m^-1", "dioptres": "m^-1", "bps": "bit s^-1", "kbps": "kbit s^-1", "Mbps": "Mbit s^-1",
    "Gbps": "Gbit s^-1", "kwh": "kW h", "Cal": "kcal", "Cals": "kcal", "Calorie": "kcal", "Calories": "kcal",
    "centuries": "century", "henries": "H", "kms": "km", "mgs": "mg", "cms": "cm", "mcg": "ug", "Mb": "Mbit",
    "Gb": "Gbit", "Tb": "Tbit", "mhz": "MHz", "MPA": "MPa", "Mpa": "MPa", "meq": "mEq", "mosm": "mOsm",
    "mosmol": "mOsm", "Ω": "ohm", "°k": "K",
}
_SYMBOLS = {symbol: symbol for symbol in _PLAIN}
_NAMES = {name: symbol for symbol, names in _PLAIN.items() for name in (symbol, *names.split())}
for _symbol, _names in _PREFIXED.items():
    _SYMBOLS[_symbol] = _symbol
    _NAMES |= dict.fromkeys(_names.split(), _symbol)
    for _short, _long in _PREFIXES.items():
        _SYMBOLS.setdefault(_short + _symbol, _short + _symbol)
        _NAMES |= {_long.removesuffix("o" * (name == "ohm")) + name: _short + _symbol for name in _names.split()}
for _short in _PREFIXES:
    _SYMBOLS |= {_short + "l": _short + "L", _short + "Ω": _short + "ohm"}
_SYMBOLS |= {"µ" + symbol[1:]: name for symbol, name in _SYMBOLS.items() if symbol[0] == "u" and len(symbol) > 1}
# Case is ignored if only one unit has the letters: KM, Kg, KHZ. But mW is not MW.
_folded: dict[str, set[str]] = {}
for _written, _symbol in _SYMBOLS.items():
    _folded.setdefault(_written.casefold(), set()).add(_symbol)
_FOLDED = {folded: min(symbols) for folded, symbols in _folded.items() if len(symbols) == 1}
_KNOWN = frozenset(_SYMBOLS.values())

_PRODUCT = re.compile(r"([kMGmµun]?)(N|A|V|W|J|Pa|C|T)(m|s|h|A)")  # Nm and As, but not mA and ms
_PHRASES = tuple((re.compile(pattern, re.IGNORECASE), name) for pattern, name in (
    (r"(?:\bdeg(?:rees?)?\.?|°)\s*([cfk])(?:elsius|entigrade|ahrenheit|elvin)?\b", r" °\1 "),
    (r"\bpounds?(?:-force)? per square inch\b", " psi "),
    *((rf"\b(?:{name})\.?[\s-]*(?:%|per\s?cent\b)|(?:%|per\s?cent\b)\s*(?:by\s+|\(?[wv]/)?(?:{name})\b\)?",
       f" {unit} ")
      for name, unit in ((r"mol(?:es?)?", "mol%"), (r"wt|weight|w|mass", "wt%"), (r"vol|volume|v", "vol%"))),
    (r"\b(?:foot|feet|ft)[\s·*.-]*(?:pounds?|lbs?)(?:[\s-]?force|f)?\b", " foot_pound "),
    (r"\b(?:pounds?|lbs?)f?[\s·*.-]*(?:foot|feet|ft)\b", " foot_pound "),
    (r"\bmm\s*hg\b|\bmillimet(?:er|re)s?\s+of\s+mercury\b", " torr "),
    (r"\b(kilo|mega|milli|micro|nano)-(?=[a-z])", r"\1"),
    (r"\bsquared(?![^\W\d_])", "^2"), (r"\bcubed(?![^\W\d_])", "^3"),
    (r"\bfl(?:uid|\.)?\s*(?:ounces?|oz)\b", " fluid_ounce "), (r"\belectron[\s-]volts?\b", " eV "),
    (r"\b(nautical|light|astronomical)[\s-]*(mile|year|unit)s?\b", r" \1_\2 "), (r"\bmetric\s+tons?\b", " t "),
))
_TOKEN = re.compile(
    r"\s*(?:(?:(?:\^|\*\*)\s*(?P<around>\()?|(?<=[A-Za-zµΩ)])(?=[+-]?[0-9](?![0-9])))(?P<power>[+-]?[0-9])(?(around)\))"
    r"|(?P<below>/|\b(?:per|an?)\b)|(?P<open>[(\[])|(?P<close>[)\]])|(?P<stop>\.(?=\s|\Z))|(?P<times>[*·×•.-])"
    r"|(?P<word>(?:°[A-Za-z]?|[^\W\d_][^\W\d]*)%?|%|‰)|(?P<one>1(?=\s*/))|(?P<other>\S))")
_COMPACT = re.compile(r"\bms(?=\^?-[0-9])")
_SHAPES = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}


@lru_cache(maxsize=4096)
def read_unit(text: str, loose: bool = False) -> Unit | None:
    """The unit in clean text, or () if the text is empty. None if it does not have the form of a unit.

    With `loose`, J/kg·K is read as J/(kg·K), and ms⁻¹ as m/s.

    >>> read_unit("joules per (kilogram kelvin)")
    (('J', 1), ('K', -1), ('kg', -1))
    """
    if len(text) > MAX_UNIT_CHARACTERS:
        return None
    if loose:
        text = _COMPACT.sub("m s", text)
    for pattern, name in _PHRASES:
        text = pattern.sub(name, text)
    factors: list[list] = []   # [symbol, power]
    last, opened = 0, []       # start of the last factor, and (start, base, side) of each open bracket
    base, side, shape, expecting = 1, 1, 1, False
    for match in _TOKEN.finditer(text.rstrip()):
        kind, token = match.lastgroup, match[match.lastgroup]
        if kind == "word" and token.casefold() in _SHAPES:
            shape, expecting = _SHAPES[token.casefold()], True
        elif kind == "power":
            if expecting or last == len(factors):
                return None
            for factor in factors[last:]:
                factor[1] *= int(token)
            last = len(factors)
        elif kind == "word":
            last = len(factors)
            factors += [[symbol, power * base * side * shape] for symbol, power in _resolve(token)]
            shape, expecting = 1, False
        elif kind == "open":
            opened.append((len(factors), base, side))
            base, side, expecting = base * side, 1, True
        elif kind == "close":
            if not opened or expecting:
                return None
            last, base, side = opened.pop()
        elif kind == "below":
            if expecting:
                return None
            side, expecting = -1, True
        elif kind == "times":
            if expecting or not factors:
                return None
            side, expecting = side if loose else 1, True
        elif kind == "other":
            return None
    if opened or expecting or len(factors) > 12:
        return None
    powers = Counter()
    for symbol, power in factors:
        powers[symbol] += power
    return tuple(sorted((symbol, power) for symbol, power in powers.items() if power))


def is_known(unit: Unit | None) -> bool:
    """Whether all of it is units of physics."""
    return bool(unit) and all(symbol in _KNOWN for symbol, _ in unit)


def format_unit(unit: Unit) -> str:
    """The unit as text that pint reads. Equal units give equal text."""
    return " ".join(symbol if power == 1 else f"{symbol}^{power}" for symbol, power in unit)


def _resolve(word: str) -> Unit:
    word = word.replace("μ", "µ")
    folded = word.casefold()
    if alias := _ALIASES.get(word) or _ALIASES.get(folded):
        return tuple((symbol, int(power or 1)) for symbol, _, power in (part.partition("^") for part in alias.split()))
    if symbol := _SYMBOLS.get(word):
        return ((symbol, 1),)
    if product := _PRODUCT.fullmatch(word):
        return ((product[1].replace("µ", "u") + product[2], 1), (product[3], 1))
    for name in (folded, folded.removesuffix("s"), folded.removesuffix("es")):
        if symbol := _NAMES.get(name):
            return ((symbol, 1),)
    return ((_FOLDED.get(folded, folded if len(word) > 3 else word), 1),)
