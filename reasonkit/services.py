"""Models behind an API, one call each: Gemini, and any endpoint that speaks OpenAI's chat completions; and secrets.

It is a prompt and a JSON schema to a text and its tokens, by the vendors' own SDKs, and what their errors mean. It is
not a judge and repeats no call (`judge_api` does): the SDKs' retries are switched off. The SDKs are imported only where
they are needed, so that nobody has to install them.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import partial
from time import time
from typing import Any

_MEND_KAGGLE = ('make a token in your Kaggle settings and set KAGGLE_API_TOKEN; the file is as it was downloaded, '
                '{"username": ..., "key": ...}, or is deleted')
KAGGLE = ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY")  # the last two are the older way, and go together
MODELS = {"gemini": "gemini-2.5-flash", "openai": "gpt-4.1-mini"}  # when no variable names one


class CallError(Exception):
    """A call without an answer. `retry_after`: seconds that the service asks to wait before the next."""

    def __init__(self, cause: str, detail: str, retry_after: float = 0.0) -> None:
        super().__init__(detail)
        self.cause, self.retry_after = cause, retry_after


@dataclass(frozen=True)
class Answer:
    """The text, and the tokens that are billed; None where the service doesn't say."""

    text: str
    tokens_in: int | None
    tokens_out: int | None


@dataclass(frozen=True)
class Service:
    """One model behind an API: `call(prompt, schema)`, where `schema` is the JSON schema of the answer's text.

    max_tokens: the most that an answer may have, thinking included, which `call` sees to. secret: cut out of all that
    is reported.
    """

    name: str
    call: Callable[[str, dict[str, Any]], Awaitable[Answer]]
    max_tokens: int
    secret: str = field(default="", repr=False)


def call_error(error: Exception) -> CallError:
    """What an SDK, httpx or aiohttp raised, as one of our causes; by name, so that none of them need be there."""
    if isinstance(error, CallError):
        return error
    detail = f"{type(error).__name__}: {error}"
    names = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(error, "status_code", None) or getattr(error, "code", None)  # openai, google-genai
    if isinstance(status, int) and status >= 400:
        # Gemini answers 400 to a key that is none
        special = {401: "auth", 403: "auth", 408: "timeout", 429: "rate_limit"}
        cause = "auth" if "API_KEY_INVALID" in detail else special.get(status, "server" if status >= 500 else "request")
        return CallError(cause, detail, _retry_after(getattr(error, "response", None), detail))
    if names & {"TimeoutError", "TimeoutException", "APITimeoutError"}:
        return CallError("timeout", detail)
    if names & {"OSError", "TransportError", "APIConnectionError", "ClientError"}:
        return CallError("connection", detail)
    return CallError("unparsable" if isinstance(error, ValueError) else "backend", detail)


def _retry_after(response: Any, detail: str) -> float:
    """Seconds, from the header (a number or a date) or from Gemini's RetryInfo; 0 without either."""
    value = str((getattr(response, "headers", None) or {}).get("retry-after", ""))
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (ValueError, OverflowError):
        found = re.search(r"retryDelay\W{1,9}(\d{1,9}(\.\d{1,9})?)s", detail)
        return float(found[1]) if found else 0.0


def _whole(text: str | None, ended: Any, tokens_in: int | None, tokens_out: int | None) -> Answer:
    if any(word in str(ended).upper() for word in ("MAX_TOKENS", "LENGTH")):
        raise CallError("too_long", f"cut at max_tokens ({ended}); thinking counts, give it more")
    if not text:
        raise CallError("blocked", f"no text, ended by {ended}")
    return Answer(text, tokens_in, tokens_out)


def gemini(key: str, model: str, *, max_tokens: int = 4096, base_url: str | None = None) -> Service:
    """A Gemini model. Raises ImportError without google-genai."""
    try:
        from google import genai
    except ImportError as error:
        raise ImportError('a Gemini judge needs google-genai: pip install "reasonkit[judge]"') from error
    options = {"base_url": base_url, "retry_options": {"attempts": 1}}
    client = genai.Client(api_key=key, vertexai=False, http_options=options)

    async def call(prompt: str, schema: dict[str, Any]) -> Answer:
        config = {"response_mime_type": "application/json", "response_json_schema": schema,
                  "max_output_tokens": max_tokens}
        reply = await client.aio.models.generate_content(model=model, contents=prompt, config=config)
        ended = reply.candidates[0].finish_reason if reply.candidates else reply.prompt_feedback
        used = reply.usage_metadata
        if used is None or used.prompt_token_count is None:
            return _whole(reply.text, ended, None, None)
        out = (used.candidates_token_count or 0) + (used.thoughts_token_count or 0)
        return _whole(reply.text, ended, used.prompt_token_count, out)

    return Service(f"gemini {model}", call, max_tokens, key)


def openai_compatible(key: str, model: str, *, max_tokens: int = 4096, base_url: str | None = None) -> Service:
    """A model behind OpenAI's chat completions; `base_url` for another endpoint. Raises ImportError without openai."""
    try:
        from openai import AsyncOpenAI
    except ImportError as error:
        raise ImportError('an OpenAI-compatible judge needs openai: pip install "reasonkit[judge]"') from error
    client = AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0)

    async def call(prompt: str, schema: dict[str, Any]) -> Answer:
        form = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}
        reply = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": prompt}], max_completion_tokens=max_tokens,
            response_format=form)
        if not getattr(reply, "choices", None):  # the SDK passes on whatever is not JSON as text
            raise CallError("unparsable", f"no choices in {reply!r}")
        used, (choice, *_) = reply.usage, reply.choices
        counts = (used.prompt_tokens, used.completion_tokens) if used else (None, None)
        return _whole(choice.message.content, choice.finish_reason, *counts)

    return Service(f"openai {model}", call, max_tokens, key)


def _sources() -> Iterator[Callable[[str], str | None]]:
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


def _read(source: Callable[[str], str | None], name: str) -> str | None:
    try:
        return (source(name) or "").strip() or None  # a line's end would break the header
    except Exception:  # no such secret, no access to it, no network: each platform has its own
        return None


def secret(name: str) -> str | None:
    """A secret from the environment, then from Kaggle's or else Colab's; None when it is nowhere."""
    return next(filter(None, (_read(source, name) for source in _sources())), None)


@contextlib.contextmanager
def kaggle_login() -> Iterator[bool]:
    """For the block, kagglehub has credentials if there are any, and waits for nobody; yields whether there are.

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


def _known_to_kaggle() -> bool:
    """Whether kagglehub finds credentials. What it raises may quote them, so that nothing of it is passed on."""
    from kagglehub import config  # only where it is needed: it reads its settings on import

    file = os.path.join(os.environ.get("KAGGLE_CONFIG_DIR", os.path.expanduser("~/.kaggle")), "kaggle.json")
    try:
        found = config.get_kaggle_credentials()
    except Exception as error:  # of json, of the file system, and its own
        raise ValueError(f"{file} or a variable of Kaggle's cannot be read as credentials ({type(error).__name__}): "
                         f"{_MEND_KAGGLE}") from None
    if found is None:
        return False
    keys = (found.api_key,) if found.api_key else (found.username, found.key)
    if not all(isinstance(key, str) and re.fullmatch(r"[!-~]+", key) for key in keys):  # it would break the header
        raise ValueError(f"Kaggle's credentials ({', '.join(KAGGLE)} or {file}) are empty, or hold a space, a line "
                         f"break or a letter that no key has: {_MEND_KAGGLE}")
    return True


def service_from_secrets(max_tokens: int = 4096) -> Service | None:
    """The service that a secret switches on, or None without one.

    Looked for in the environment, then in Kaggle's secrets or else Colab's: GEMINI_API_KEY or GOOGLE_API_KEY (model:
    GEMINI_MODEL), else OPENAI_API_KEY (OPENAI_MODEL, OPENAI_BASE_URL). The models default to `MODELS`. Raises
    ImportError for a key whose SDK is missing.
    """
    for source in _sources():
        read = partial(_read, source)
        if key := read("GEMINI_API_KEY") or read("GOOGLE_API_KEY"):
            return gemini(key, read("GEMINI_MODEL") or MODELS["gemini"], max_tokens=max_tokens)
        if key := read("OPENAI_API_KEY"):
            return openai_compatible(key, read("OPENAI_MODEL") or MODELS["openai"], max_tokens=max_tokens,
                                     base_url=read("OPENAI_BASE_URL"))
    return None
