"""Keys: where they are looked for, what may be sent as one, and how they are kept out of all that is told.

Entry points: `secret`, `kaggle_login`, `check_key`, `redact` and `told`. A key that is no single line of visible ASCII
is
refused before use, because what it breaks (a header) is then reported with the key in it. Whatever a service or its SDK
says goes through `redact`, which looks for the key's pieces in their usual disguises, not for the key alone.
"""

from __future__ import annotations

import base64
import contextlib
import html
import json
import logging
import os
import re
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import quote, quote_plus

_MEND_KAGGLE = ('make a token in your Kaggle settings and set KAGGLE_API_TOKEN; the file is as it was downloaded, '
                '{"username": ..., "key": ...}, or is deleted')
KAGGLE = ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY")  # the last two are the older way, and go together
PIECE = 8     # characters of a key in a row that are too much to tell
SHORTEST = 4  # a line of fewer characters says nothing, and hiding it would garble the text
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)  # str.lower changes the length of some texts
_HEADER = re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE)
_ADDRESS = re.compile(r"(https?://)(?:[^\s/?#@'\"]*+@)?([^\s?#'\"]*+)(?:\?[^\s'\"]*+)?", re.IGNORECASE)


def sources() -> Iterator[Callable[[str], str | None]]:
    """Where secrets are, as functions from a name to its value; one that isn't there may raise anything."""
    yield os.environ.get
    try:
        from kaggle_secrets import UserSecretsClient
        yield lambda name: UserSecretsClient().get_secret(name)
        return  # Kaggle's image has Colab's modules too, and they wait for ever for a front end that isn't there
    except ImportError:
        pass
    try:
        from google.colab import userdata
        yield userdata.get
    except ImportError:
        pass


def read(source: Callable[[str], str | None], name: str) -> str | None:
    """The secret of this name from one of `sources`, without white space around it; None where it isn't."""
    try:
        return (source(name) or "").strip() or None
    except Exception:  # no such secret, no access to it, no network: each platform has its own
        return None


def secret(name: str) -> str | None:
    """A secret from the environment, then from Kaggle's or else Colab's; None when it is nowhere."""
    return next(filter(None, (read(source, name) for source in sources())), None)


def check_key(key: object, name: str) -> str:
    """`key`, which is called `name`. Raises ValueError, without the key, for one that no header can carry."""
    if not _sendable(key):
        raise ValueError(f"{name} is empty, or holds a space, a line break or a letter that no key has: copy it again, "
                         "whole and on one line")
    return key


def _sendable(key: object) -> bool:
    return isinstance(key, str) and re.fullmatch(r"[!-~]+", key) is not None


def redact(text: str, *keys: str) -> str:
    """`text` with "[key]" in place of every key, and of every 8 characters or more that it shares with one.

    A key is found raw, escaped as in Python, JSON, HTML and URLs, in hexadecimal and base64, in upper and lower case,
    cut short, and line by line. Time is linear in the text's length.

    >>> redact("Invalid header b'Bearer sk-0123456789'", "sk-0123456789")
    "Invalid header b'Bearer [key]'"
    """
    forms = {form.translate(_LOWER) for key in keys for form in _forms(key)}
    pieces = {form[n:n + PIECE] for form in forms for n in range(len(form) - PIECE + 1)}
    short = [re.escape(form) for form in forms if SHORTEST <= len(form) < PIECE]
    low, marks = text.translate(_LOWER), bytearray(len(text))
    for n in range(len(text) - PIECE + 1 if pieces else 0):
        if low[n:n + PIECE] in pieces:
            marks[n:n + PIECE] = b"\x01" * PIECE
    for found in re.finditer("|".join(short), low) if short else ():
        marks[found.start():found.end()] = b"\x01" * len(found[0])
    out, end = [], 0
    for run in re.finditer(rb"\x01+", marks):
        out += [text[end:run.start()], "[key]"]
        end = run.end()
    return "".join([*out, text[end:]])


def _forms(key: str) -> Iterator[str]:
    for part in {key, *(line.strip() for line in key.splitlines())}:
        data = part.encode("utf-8", "surrogatepass")
        yield from (part, repr(part)[1:-1], repr(data)[2:-1], json.dumps(part)[1:-1], html.escape(part),
                    quote(data, ""), quote_plus(data), data.hex())
        for before in range(3):  # what stands before the key shifts its base64; the characters of the key alone count
            for code in (base64.b64encode, base64.urlsafe_b64encode):
                coded = code(bytes(before) + data).decode()
                yield coded[-(-8 * before // 6):8 * (before + len(data)) // 6]


def told(error: BaseException, *keys: str) -> str:
    """An exception as one line of visible text, its kind first, without the keys, and without what looks like one of
    others: credentials of a header, the user and the query of an address."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # it cannot say what it is
        text = type(error).__name__
    return printable_ascii(redact(_ADDRESS.sub(r"\1\2", _HEADER.sub(r"\1 [key]", text)), *keys))


def printable_ascii(text: str) -> str:
    """`text` in one line, with a space for all that is not printable: a service may send what moves a cursor."""
    return "".join(c if c.isprintable() else " " for c in text)


def hide_in_logs(packages: tuple[str, ...], key: str) -> None:
    """From now on the loggers whose names begin so write without the key, which a service may repeat in its headers."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(packages):
            logging.getLogger(name).addFilter(_Hiding(key))


@dataclass(frozen=True)
class _Hiding:
    """A filter of logs; equal ones are added once."""

    key: str = field(repr=False)

    def __call__(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage(), self.key), ()
        if record.exc_info:
            record.exc_text = redact(logging.Formatter().formatException(record.exc_info), self.key)
            record.exc_info = None
        return True


@contextlib.contextmanager
def kaggle_login() -> Iterator[tuple[str, ...]]:
    """For the block, kagglehub has credentials if there are any, and waits for nobody; yields the keys, to be hidden.

    They are its own (the environment, ~/.kaggle), else the secrets KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY,
    which are in the environment for the block alone. kagglehub 1.0 reads no secret of Kaggle's, and of Colab's the
    older two only where the token is there, too. Raises ValueError, without the key, for one that cannot be sent and
    for a kaggle.json that cannot be read.
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
    """The keys that kagglehub finds. What it raises may quote them, so that nothing of it is passed on."""
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
