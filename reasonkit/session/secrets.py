"""Keys: where they are found (`secret`, `kaggle_login`), which can be sent (`check_key`), and how they stay out of
errors and logs (`describe_error`, `redact`). All that a service or its SDK says goes through `redact`. A key must be a
line of visible ASCII, because an HTTP header fails on any other with an error that quotes it.
"""

from __future__ import annotations

import base64
import contextlib
import html
import json
import os
import re
import string
from collections.abc import Callable, Iterator
from urllib.parse import quote, quote_plus

_MEND_KAGGLE = ('make a token in your Kaggle settings and set KAGGLE_API_TOKEN; the file is as it was downloaded, '
                '{"username": ..., "key": ...}, or is deleted')
KAGGLE = ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY")  # the last two are the older way, and go together
PIECE = 8     # consecutive characters of a key that are hidden
SHORTEST = 4  # hiding a line of fewer characters would garble the text
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)  # str.lower changes the length of some texts
_HEADER = re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE)
_ADDRESS = re.compile(r"(https?://)(?:[^\s/?#@'\"]*+@)?([^\s?#'\"]*+)(?:\?[^\s'\"]*+)?", re.IGNORECASE)


def sources() -> Iterator[Callable[[str], str | None]]:
    """Functions from a secret's name to its value, which may raise anything."""
    yield os.environ.get
    try:
        from kaggle_secrets import UserSecretsClient
        yield lambda name: UserSecretsClient().get_secret(name)
        return  # Kaggle's image has Colab's modules too, and they wait for ever for a front end that isn't there
    except ImportError:
        pass
    with contextlib.suppress(ImportError):
        from google.colab import userdata
        yield userdata.get


def read(source: Callable[[str], str | None], name: str) -> str | None:
    """The secret of this name from one of `sources`, stripped, or None."""
    try:
        return (source(name) or "").strip() or None
    except Exception:  # no such secret, no access to it, no network: each platform has its own
        return None


def secret(name: str) -> str | None:
    """A secret from the environment, Kaggle or Colab, or None."""
    return next(filter(None, (read(source, name) for source in sources())), None)


def check_key(key: object, name: str) -> str:
    """`key`. Raises ValueError, which names but does not quote it, for a key that no header can carry."""
    if not _sendable(key):
        raise ValueError(f"{name} is empty, or holds a space, a line break or a letter that no key has: copy it again, "
                         "whole and on one line")
    return key


def _sendable(key: object) -> bool:
    return isinstance(key, str) and re.fullmatch(r"[!-~]+", key) is not None


def redact(text: str, *keys: str) -> str:
    """`text` with "[key]" in place of every key, and of any 8 or more characters in a row that it shares with one.

    It finds a key raw, escaped for Python, JSON, HTML and URLs, in hexadecimal and base64, in upper and lower case, cut
    short, and line by line. Takes time linear in the text's length.

    >>> redact("Invalid header b'Bearer sk-0123456789'", "sk-0123456789")
    "Invalid header b'Bearer [key]'"
    """
    forms = {form.translate(_LOWER) for key in keys for form in _forms(key)}
    pieces = {form[n:n + PIECE] for form in forms if len(form) >= SHORTEST
              for n in range(max(1, len(form) - PIECE + 1))}
    sizes = {len(piece) for piece in pieces}
    low, hidden = text.translate(_LOWER), bytearray(len(text))
    for n in range(len(text)):
        for size in sizes:
            if low[n:n + size] in pieces:
                hidden[n:n + size] = b"\x01" * len(low[n:n + size])
    out, end = [], 0
    for run in re.finditer(rb"\x01+", hidden):
        out += [text[end:run.start()], "[key]"]
        end = run.end()
    return "".join([*out, text[end:]])


def _forms(key: str) -> Iterator[str]:
    for part in {key, *(line.strip() for line in key.splitlines())}:
        data = part.encode("utf-8", "surrogatepass")
        yield from (part, repr(part)[1:-1], repr(data)[2:-1], json.dumps(part)[1:-1], html.escape(part),
                    quote(data, ""), quote_plus(data), data.hex())
        for before in range(3):  # base64 depends on where the key begins: keep the characters that code the key alone
            for code in (base64.b64encode, base64.urlsafe_b64encode):
                coded = code(bytes(before) + data).decode()
                yield coded[-(-8 * before // 6):8 * (before + len(data)) // 6]


def describe_error(error: BaseException, *keys: str) -> str:
    """Its type and message in one visible line, without keys, a header's credentials, an address's user and query."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # it cannot say what it is
        text = type(error).__name__
    return printable_line(redact(_ADDRESS.sub(r"\1\2", _HEADER.sub(r"\1 [key]", text)), *keys))


def printable_line(text: str) -> str:
    """`text` in one line, with spaces for the control characters that a service may send."""
    return "".join(c if c.isprintable() else " " for c in text)


@contextlib.contextmanager
def kaggle_login() -> Iterator[tuple[str, ...]]:
    """Within the block, kagglehub has credentials if there are any. Yields the keys, for `redact`.

    They are kagglehub's own (environment, ~/.kaggle), else the secrets KAGGLE_API_TOKEN, or KAGGLE_USERNAME and
    KAGGLE_KEY. kagglehub 1.0 does not read Kaggle's secrets, so these are put into the environment. Raises ValueError,
    without the key, for a key that cannot be sent and for a kaggle.json that cannot be read.
    """
    before = {name: os.environ.get(name) for name in (*KAGGLE, "DISABLE_KAGGLE_CACHE")}
    try:
        os.environ.update({name: value.strip() for name, value in before.items() if value})
        # on Kaggle, it would ask the session to attach the input and wait for it without a timeout
        os.environ["DISABLE_KAGGLE_CACHE"] = "1"
        if not (known := _known_to_kaggle()):
            os.environ.update({name: value for name in KAGGLE if (value := secret(name))})
            known = _known_to_kaggle()
        yield known
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _known_to_kaggle() -> tuple[str, ...]:
    """The keys that kagglehub finds. Its own errors are not passed on, because they may quote them."""
    from kagglehub import config  # only where it is needed: it reads its settings on import

    file = os.path.join(os.environ.get("KAGGLE_CONFIG_DIR", os.path.expanduser("~/.kaggle")), "kaggle.json")
    failed = ""
    try:
        found = config.get_kaggle_credentials()
    except Exception as error:  # of json, of the file system, and its own
        failed = type(error).__name__
    if failed:  # raised here, so that the error, which holds the file, is not even its context
        raise ValueError(f"{file} or a variable of Kaggle's cannot be read as credentials ({failed}): {_MEND_KAGGLE}")
    if found is None:
        return ()
    keys = (found.api_key,) if found.api_key else (found.username, found.key)
    if not all(map(_sendable, keys)):
        raise ValueError(f"Kaggle's credentials ({', '.join(KAGGLE)} or {file}) are empty, or hold a space, a line "
                         f"break or a letter that no key has: {_MEND_KAGGLE}")
    return keys[-1:]  # a user's name is no secret
