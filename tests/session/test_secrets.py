"""Keys: what may be one, and that none is left in a text, whatever it went through."""

from __future__ import annotations

import base64
import html
import json
import time
import traceback
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonkit.session.secrets import _forms, check_key, describe_error, redact

KEYS = ("sk-very-secret-0123456789", "AIzaSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY", "KGAT_0a1b2c3d4e5f60718293a4b5c6d7e8f9",
        "k3y/with+signs=&%\"'<>\\n", "first-line-of-it\nsecond-line-of-it", "schl\u00fcssel-\u2028-geheim-\U0001f511")
DISGUISES = {
    "raw": str, "in a header": lambda key: f"Authorization: Bearer {key}\r\n", "repr": repr,
    "repr of bytes": lambda key: repr(key.encode()), "repr of a repr": lambda key: repr(repr(key)),
    "JSON": json.dumps, "JSON in JSON": lambda key: json.dumps(json.dumps({"error": key})),
    "JSON in Unicode": lambda key: json.dumps(key, ensure_ascii=False),
    "unicode_escape": lambda key: key.encode("unicode_escape").decode(), "HTML": html.escape, "URL": quote,
    "URL, all of it": lambda key: f"?key={quote(key, '')}&alt=json", "form": quote_plus,
    "URL in small letters": lambda key: quote(key, "").lower(),
    "base64": lambda key: base64.b64encode(key.encode()).decode(),
    "Basic header": lambda key: "Basic " + base64.b64encode(f"someone:{key}".encode()).decode(),
    "Basic header of another": lambda key: "Basic " + base64.b64encode(f"ab:{key}\n".encode()).decode(),
    "URL-safe base64": lambda key: base64.urlsafe_b64encode(f"x{key}".encode()).decode(),
    "hexadecimal": lambda key: key.encode().hex(), "capitals": str.upper, "small letters": str.lower,
    "line by line": lambda key: "\n".join(f"| {line}" for line in key.splitlines()), "cut behind": lambda key: key[:-5],
    "cut before": lambda key: key[6:], "wrapped": lambda key: f"{key[:12]}\n    {key[12:]}",
    "masked": lambda key: f"{key[:10]}***********{key[-10:]}", "twice": lambda key: key * 2,
    "in words": lambda key: f"the key{key}is bad",
}


def shown(text: str, key: str) -> list[str]:
    """What of the key, in any of its forms, is still to be read: 8 characters and more."""
    low = text.lower()
    return [form[n:n + 8] for form in {*_forms(key), *_forms(key.lower())} for n in range(len(form) - 7)
            if form[n:n + 8].lower() in low]


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("key", KEYS, ids=range(len(KEYS)))
def test_a_key_is_hidden_in_any_disguise(key, disguise):
    text = f"before {DISGUISES[disguise](key)} after"
    found = redact(text, "another-key-0123", key)
    assert shown(text, key) and not shown(found, key)
    assert found.startswith("before ") and found.endswith(" after") and "[key]" in found


@pytest.mark.parametrize("text", [
    "", "key", "very", "the quick brown fox", "\u0130 \ud800 \x00", "sk-very", "0" * 10_000])
def test_other_text_stays_as_it_is(text):
    assert redact(text, *KEYS[:3]) == text == redact(text) == redact(text, "")


@pytest.mark.parametrize(("key", "found"), [
    ("abcd", "x [key] y [key]"), ("abc", "x ABCD y abcd"), ("a", "x ABCD y abcd")])
def test_a_key_of_a_few_letters(key, found):
    """One of three letters guards nothing, and without it a text could not be read."""
    assert redact("x ABCD y abcd", key) == found


@given(st.text(min_size=8, max_size=60), st.text(max_size=40), st.text(max_size=40), st.sampled_from(list(DISGUISES)))
def test_no_key_is_left(key, before, after, disguise):
    try:
        text = before + DISGUISES[disguise](key) + after
    except UnicodeEncodeError:  # a lone surrogate has no bytes
        text = before + key + after
    if key.isascii():  # case and bytes of other letters have forms of their own
        assert not shown(redact(text, key), key)


@pytest.mark.parametrize("piece", ["x", "sk-very-", KEYS[0], KEYS[0][:-1], "[key]", "\n", "%73k", "\\n"])
def test_hiding_is_linear(piece):
    began = time.perf_counter()
    redact(piece * (200_000 // len(piece)), KEYS[0])
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("key", [
    "", " ", "\n", "a b-0123456789", " sk-0123456789", "sk-0123456789\n", "sk-\r\n0123456789", "sk-01234\n56789",
    "sk-0123\t456789", "sk-0123\x00456789", "sk-0123\x1b[2J456789", "sk-0123\x7f456789", "sk-0123\x85456789",
    "sk-0123\u00a0456789", "sk-0123\u200b456789", "sk-0123\u2028456789", "sk-0123\ufeff456789", "\u202esk-0123456789",
    "schl\u00fcssel-0123456789", "sk-\u0660\u0661\u0662345678", "\ud8000123456789", "\uff53\uff4b-0123456789",
    "sk-0123456789\u2026", "sk-\u201301234567", None, 12345678, b"sk-0123456789", ["sk-0123456789"]])
def test_a_key_that_no_header_carries_is_refused_and_not_shown(key):
    with pytest.raises(ValueError, match="MY_KEY is empty, or holds a space, a line break .* copy it again") as caught:
        check_key(key, "MY_KEY")
    said = "".join(traceback.format_exception(caught.value))
    assert "345678" not in said and "sk-0" not in said


@pytest.mark.parametrize("key", ["x", *KEYS[:4], "a" * 5000, "".join(map(chr, range(33, 127)))])
def test_a_key_is_any_line_of_visible_ascii(key):
    assert check_key(key, "MY_KEY") == key


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")


@pytest.mark.parametrize(("error", "said"), [
    (ValueError("no"), "ValueError: no"), (Mute(), "Mute"), (ValueError(f"{KEYS[0]}!"), "ValueError: [key]!"),
    (ValueError("Bearer 0123456789abc"), "ValueError: Bearer [key]"),
    (ValueError("a\n\x1b[2Jb\ud800"), "ValueError: a  [2Jb "),
    (ValueError("authorization: BASIC dXNlcjpwYXNz"), "ValueError: authorization: BASIC [key]"),
    (ValueError("GET https://u:p4ss@h.org/a/b?sig=0123&x=1 failed"), "ValueError: GET https://h.org/a/b failed"),
    (ValueError("'http://h:8/?token=t0ken'"), "ValueError: 'http://h:8/'"),
    (ValueError("at https://h.org/a, see user@h.org"), "ValueError: at https://h.org/a, see user@h.org"),
    (ValueError(f"https://h.org/{KEYS[0]}/x"), "ValueError: https://h.org/[key]/x"),
    (KeyboardInterrupt(), "KeyboardInterrupt: ")])
def test_an_exception_is_told_in_one_visible_line(error, said):
    assert describe_error(error, KEYS[0]) == said
