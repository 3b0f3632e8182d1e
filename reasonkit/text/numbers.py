"""Reads a number from clean text exactly, with its percent sign, clock time, currency or unit.

Entry point: `read_number`. Text is matched, never executed. Length and exponent are limited, so no text can make a huge
number. Surprise: the whole text must be the number, so "288, maybe 3" is not one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from fractions import Fraction

from reasonkit.text.cleaning import unbracket
from reasonkit.text.hedges import NUMBER_WORDS, NUMERALS, has_hedge
from reasonkit.text.units import format_unit, is_known, read_unit

MAX_NUMBER_CHARACTERS = 200
MAX_EXPONENT = 400

# Shapes of digits, each with its decimal sign. The first shape that fits the whole numeral decides.
_SHAPES = tuple((re.compile(shape), decimal) for shape, decimal in (
    (r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+", "."),
    (r"[1-9][0-9]{0,2}([, '])[0-9]{3}(?:\1[0-9]{3})*(?:\.[0-9]+)?", "."),  # 1,234,567.8
    (r"[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}(?:\.[0-9]+)?", "."),             # 12,34,567.8
    (r"[1-9][0-9]{0,2}([ .'])[0-9]{3}(?:\1[0-9]{3})*,[0-9]+", ","),        # 1.234.567,8
    (r"[1-9][0-9]{0,2}(?:\.[0-9]{3}){2,}", ","),                           # 1.234.567
    (r"[0-9]+,[0-9]+", ","),                                               # 3,14
))
_NUMERAL = r"\.?[0-9](?:[0-9.,' ]*[0-9])?"
_RAISED = r"\s*(?:\^|\*\*|to\s+the\s+power\s+(?:of\s+)?)\s*"
_NUMBER = re.compile(
    rf"""(?:[A-Za-z]?\s*+=\s*+)?+  (?P<sign>[+-]?)\s*+
    (?P<money>(?:[A-Z]{{0,2}}\$|[€£¥₹₩₽]|(?:USD|EUR|GBP|JPY|INR|CNY|RMB|CHF|CAD|AUD|KRW|RUB|Rs\.?)(?=[\s0-9.+-]))?)\s*+
    (?P<inner_sign>[+-]?)\s*+
    (?: (?P<whole>[0-9]+)\s+(?:and\s+)?(?=[0-9]+\s*/\s*[0-9]) )?
    (?: (?P<power>10)(?={_RAISED}\(?[+-]?[0-9]) | (?P<top>{_NUMERAL}) (?:\s*/\s*(?P<bottom>{_NUMERAL}))? )
    (?: [eE](?P<e>[+-]?[0-9]+)
      | (?(power)|\s*(?:[xX×*·•]|times\b)\s*10){_RAISED}(?P<bracket>\()?(?P<exponent>[+-]?[0-9]+)(?(bracket)\)) )?
    (?: \s*(?: (?P<percent>%|per\s?cent\b|pct\b|prozent\b|pour\s?cent\b|por\s?ciento\b|процент\w*)
             | (?P<permille>‰|per\s?mill?e?\b|promille\b) ) )?
    (?P<tail>\s*.*)""",
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
# Most answers are this plain and need no cleaning.
_PLAIN = re.compile(r"\s*([+-]?(?:[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+)(?:\.[0-9]+)?)\.?\s*")
_TIME = re.compile(
    r"(?:at\s+)?(?:([01]?[0-9]|2[0-3])(?:(?::|\.(?=[0-9]{2}\s*[ap]))([0-5][0-9])(?::([0-5][0-9]))?)?\s*"
    r"(?:h|hrs?|hours|uhr|(?P<clock>o'clock))?\s*(?:(?P<half>[ap])\.?\s?m\b\.?|in\s+the\s+(?P<part>morn|aftern|even)\w*)?"
    r"|(?:12\s+)?(?P<word>noon|midnight))", re.IGNORECASE)
_BASED = re.compile(
    r"\(?(?P<digits>[0-9A-Za-z]+)\)?\s*(?:_\s*\{?\(?\s*(?P<base>[0-9]{1,2}|[a-z]{3,7})\s*\)?\}?"
    r"|\(?\s*(?:in\s+)?base[\s-]+(?P<named>[0-9]{1,2}|[a-z]{3,7})\)?)", re.IGNORECASE)
_BASES = {word: base for word, base in NUMBER_WORDS.items() if 2 <= base <= 12 or base == 16}
_UNIT = re.compile(r"(?:(?:^|[\s/·*-])(?:[^\W\d_]+\.?(?:\^-?[0-9])?|°[A-Za-z]?|[$€£¥₹₩₽¢])){0,4}")
_WORD = re.compile(r"[\s-]*([^\W\d_]+)\.?(?=$|[^\w])\s*-?|\s*([千万萬億亿兆만억])")


def _table(spellings: dict[int | Fraction, str]) -> dict[str, int | Fraction]:
    return {word: factor for factor, words in spellings.items() for word in words.split()}


# Words that multiply, in languages that write them after the digits.
_MULTIPLIERS = _table({
    12: "dozen", 100: "hundred", 10**4: "万 萬 만", 10**5: "lakh lac लाख", 10**7: "crore करोड़", 10**8: "億 亿 억",
    10**3: "thousand tausend mille mila mil tys tysiąc tysiące tysięcy duizend тысяча тысячи тысяч тыс 千",
    10**6: "million millionen mio millón millon millones milhão milhões milione milioni miljoen miljon miljoner milion "
    "miliony milionów milyon миллион миллиона миллионов млн",
    10**9: "billion milliard milliarde milliarden mrd miliardo miliardi mld miljard miljarder miliard miliardy "
    "miliardów milyar bilhão bilhões миллиард миллиарда миллиардов млрд",
    10**12: "trillion billionen billón billones триллион триллиона триллионов трлн 兆", 10**15: "quadrillion",
})
# Only in English prose, because in a formula 5k is a product. `m` and `t` multiply only money, and " K" is a unit.
_SHORT = _table({10**3: "k K", 10**6: "M mn mln", 10**7: "cr Cr", 10**9: "B b bn Bn", 10**12: "tn trn"})
_SHORT_MONEY = _SHORT | _table({10**6: "m MM mm", 10**12: "T t"})
_SAID = {word: number for word, number in NUMBER_WORDS.items() if 1 <= number <= 10}
_PARTS = {word: Fraction(1, parts) for word, parts in dict(
    half=2, halves=2, third=3, quarter=4, fourth=4, fifth=5, sixth=6, seventh=7, eighth=8, ninth=9, tenth=10,
    eleventh=11, twelfth=12, twentieth=20, hundredth=100, thousandth=1000, millionth=10**6).items()}
_COUNTRY = re.compile(
    r"\A(?:u\.?s\.?|american|swiss|british|japanese|indian|chinese)\s+(?=(?:dollar|franc|pound|rupee)s?\b|yen\b|yuan\b)"
    r"|(?<=pounds)\s+sterling\b", re.IGNORECASE)
_ABROAD = re.compile(r"\A(canadian|australian)\s+dollars?\b", re.IGNORECASE)
_SAID_SIGN = re.compile(r"\A(?:minus|negative)\s+(?=[0-9.$])", re.IGNORECASE)
# "three quarters", "a third", "half". In prose only, digits replace the words before the part.
_SAID_PARTS = re.compile(
    rf"(?:(?P<said>an?|{'|'.join(_SAID)})[\s-]+)?(?=(?P<part>{'|'.join(_PARTS)})s?\b)", re.IGNORECASE)
_CURRENCY = {name: currency for currency, names in {
    "dollar": "$ US$ USD dollar dollars buck bucks", "euro": "€ EUR euro euros", "pound": "£ GBP pound pounds quid",
    "yen": "¥ JPY yen", "rupee": "₹ INR Rs rupee rupees", "yuan": "CNY RMB yuan", "franc": "CHF franc francs",
    "CAD": "CAD C$ CA$ CAN$", "AUD": "AUD A$ AU$", "won": "₩ KRW won", "ruble": "₽ RUB ruble rubles rouble roubles",
    "cent": "¢ cent cents",
}.items() for name in names.casefold().split()}
# Letters and words that make the number before them a product or a power, and so cannot be its unit.
_NOT_UNITS = frozenset("x y z n i e k pi π by over under below less negative squared cubed factorial half halves third "
                       "thirds quarter quarters".split())
_GLUED = tuple(NUMERALS - {"one", "ten", "nil"})  # 20ornineteen, but not 12stone
_RATES = frozenset("per a an every each in the of".split())  # before a word that multiplies: per million


@dataclass(frozen=True, slots=True)
class Number:
    """`mark` is "%", "‰", ":" for a clock time (value in hours), "_5" for base 5, or empty. `unit` is in normal form,
    and `tail` is the unit as written. `quotient` is true if a division was not carried out: 70/2 for 35."""

    value: Fraction
    mark: str = ""
    unit: str = ""
    tail: str = field(default="", compare=False)
    quotient: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        if self.mark == ":":
            seconds = int(self.value * 3600)
            return f"{seconds // 3600}:{seconds // 60 % 60:02}" + (f":{seconds % 60:02}" if seconds % 60 else "")
        if self.mark[:1] == "_":
            return f"{self.tail}{self.mark}"
        return f"{self.value}{self.mark} {self.unit}".strip()


def read_plain(text: str) -> Number | None:
    """Read raw text of only digits, a sign, a decimal point and thousands commas. None for other text."""
    if len(text) > MAX_NUMBER_CHARACTERS or not (match := _PLAIN.fullmatch(text)):
        return None
    digits = match[1].replace(",", "")
    return Number(Fraction(digits) if "." in digits else Fraction(int(digits)))


def read_number(text: str, prose: bool = False) -> Number | None:
    """The number that is the whole of clean text, else None. It may have a sign, a currency, a fraction, a power of
    ten, a percent sign, words that multiply, and a unit. It may also be a time of day, or digits in a named base.

    With `prose`, also what only prose uses: 5k, 2.5 M, 3 pm, noon, FF_16, minus 3, half an hour."""
    text = text.rstrip(".,; \n")
    if len(text) > MAX_NUMBER_CHARACTERS:
        return None
    if prose and (time := _read_time(text, prose)):
        return time
    if prose:
        text = _SAID_SIGN.sub("-", text)
        part = _SAID_PARTS.match(text)
        if part and (part["said"] or part["part"].casefold() == "half"):
            rest = re.sub(r"(?<=half) an? ", " ", text[part.end():], flags=re.IGNORECASE)  # half a dozen
            text = f"{_SAID.get((part['said'] or '').casefold(), 1)} {rest}"
    if (number := read_value(text, prose)) and (unit := _unit(number)) is not None:
        return replace(number, unit=unit)
    return _read_time(text) or _read_based(text, prose)


def read_value(text: str, prose: bool = False) -> Number | None:
    """The number at the start of clean text. The rest becomes `tail`, and `unit` is at most a currency sign."""
    match = _NUMBER.fullmatch(text)
    if match is None or match["sign"] and match["inner_sign"]:
        return None
    top = Fraction(1) if match["power"] else _numeral(match["top"])
    bottom = _numeral(match["bottom"]) if match["bottom"] else Fraction(1)
    exponent = int(match["e"] or match["exponent"] or 0)
    if top is None or not bottom or match["whole"] and top >= bottom:
        return None
    if abs(exponent) > MAX_EXPONENT or match["bottom"] and exponent:
        return None
    value = (int(match["whole"] or 0) + top / bottom) * Fraction(10) ** exponent
    money, tail = match["money"], match["tail"]
    if tail:
        if tail[0].isalpha() and tail.casefold().endswith(_GLUED):
            return None
        short = _SHORT_MONEY if money or tail[-1] in "$€£¥₹" else _SHORT if prose else {}
        value, tail = _multiply(value, tail, short)
    mark = "%" if match["percent"] else "‰" if match["permille"] else ""
    whole = top.denominator == bottom.denominator == 1
    quotient = bool(match["bottom"]) and (not whole or top % bottom == 0)
    return Number(-value if "-" in match["sign"] + match["inner_sign"] else value, mark, money, tail, quotient)


def _multiply(value: Fraction, tail: str, short: dict) -> tuple[Fraction, str]:
    """The value multiplied by the words at the start of the tail, and the rest of the tail."""
    while match := _WORD.match(tail):
        written = match[1] or match[2]
        word = written.casefold()
        factor = _MULTIPLIERS.get(word) or _MULTIPLIERS.get(word.removesuffix("s")) or short.get(written)
        if not factor and (word[-1] == "s" or value == 1):
            factor = _PARTS.get(word) or _PARTS.get(word.removesuffix("s"))
        if not factor or written == "K" and tail[0] == " " and short is _SHORT:
            break
        value, tail = value * factor, tail[match.end():].removeprefix("d'")
    return value, tail.strip()


def value_pairs(found: Number, expected: Number) -> list[tuple[Fraction, Fraction]]:
    """The pairs of values to compare: 50% may be 50 or 1/2, and 5 cents are $0.05. There are none if the units differ,
    if only one number is a time or names a base, or if 35 is expected and 70/2 is found."""
    if found.quotient and not expected.quotient:
        return []
    x, y, marks = found.value, expected.value, {found.mark, expected.mark}
    if found.unit and expected.unit and found.unit != expected.unit:
        units = {found.unit, expected.unit}
        if "cent" not in units or units.isdisjoint(("dollar", "euro")):
            return []
        x, y = (x / 100, y) if found.unit == "cent" else (x, y / 100)
    if len(marks) == 1:
        return [(x, y)]
    if not marks <= _SCALES.keys():
        return []
    scaled = (x * _SCALES[found.mark], y * _SCALES[expected.mark])
    return [(x, y), scaled] if marks == {"", "%"} else [scaled]


_SCALES = {"": 1, "%": Fraction(1, 100), "‰": Fraction(1, 1000)}


def same_number(found: Number, expected: Number) -> bool:
    """Whether two numbers have equal `value_pairs`."""
    return any(x == y for x, y in value_pairs(found, expected))


def _read_time(text: str, prose: bool = False) -> Number | None:
    match = _TIME.fullmatch(text)
    if match is None or match["part"] and match["half"]:
        return None
    if match["word"]:
        return Number(Fraction(12 if match["word"][0] in "nN" else 0), ":") if prose else None
    half = match["half"] or match["part"] and {"m": "a"}.get(match["part"][0].casefold(), "p")
    if half and not 1 <= int(match[1]) <= 12 or not match[2] and not (prose and (half or match["clock"])):
        return None
    hours = int(match[1]) % 12 + 12 * (half in "pP") if half else int(match[1])
    return Number(hours + Fraction(int(match[2] or 0), 60) + Fraction(int(match[3] or 0), 3600), ":")


def _read_based(text: str, prose: bool) -> Number | None:
    """Read digits with their base: 204_5. Letters are digits only in prose, because in a formula a_11 is a name."""
    match = _BASED.fullmatch(text)
    if match is None or not (prose or match["digits"].isdecimal()):
        return None
    written = match["base"] or match["named"]
    base = int(written) if written.isdecimal() else _BASES.get(written.casefold(), 0)
    digits = match["digits"].upper()
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits):
        return None
    return Number(Fraction(int(digits, base)), "" if base == 10 else f"_{base}", "", digits)


def _numeral(text: str) -> Fraction | None:
    decimal = next((decimal for shape, decimal in _SHAPES if shape.fullmatch(text)), None)
    return decimal and Fraction(re.sub(f"[^0-9{decimal}]", "", text).replace(decimal, "."))


def _unit(number: Number) -> str | None:
    """The unit in normal form, a currency's name first. None if the tail cannot be a unit."""
    money, tail = number.unit, number.tail
    if not tail and not money:
        return ""
    tail = _ABROAD.sub(lambda match: {"c": "CAD", "a": "AUD"}[match[1][0].casefold()], unbracket(tail))
    tail = _COUNTRY.sub("", tail)
    words = re.findall(r"[^\s/·*.-]+", tail)
    # A single letter keeps its case: N and K are units, n and k change the number.
    changing = [word for word in words if (word if len(word) == 1 else word.casefold()) in _NOT_UNITS]
    if not (money or any(len(word) == 1 for word in changing)) and is_known(unit := read_unit(tail)) and (
            unit != (("pound", 1),)):
        return format_unit(unit)
    if changing or not _UNIT.fullmatch(tail) or has_hedge(
            [word for word in words if len(word) > 1], singular=abs(number.value) == 1):
        return None
    words = [word.casefold() for word in words]
    for before, word in zip(("", *words), words, strict=False):
        if word.removesuffix("s") in _MULTIPLIERS and before not in _RATES:
            return None
    named = [_CURRENCY.get(word, word.removesuffix("s")) for word in (money.casefold().rstrip("."), *words) if word]
    return " ".join(named[1:] if named[1:2] in (["dollar"], ["CAD"], ["AUD"]) else named)  # $5 CAD
