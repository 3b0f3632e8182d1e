"""Models behind an API: Gemini, and any endpoint with OpenAI's chat completions, by the vendors' own SDKs.

Entry points: `service_from_secrets`, `gemini`, `openai_compatible`. A `Service` makes one call, and `api_calls` repeats
it. It trusts no reply: `Service.ask` returns a checked `Answer` or raises a `CallError` without the key.
"""

from __future__ import annotations

import logging
import re
from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import partial
from time import time
from typing import Any
from urllib.parse import urlsplit

from reasonkit.session.secrets import check_key, describe_error, printable_line, read, redact, sources

GEMINI, OPENAI = "https://generativelanguage.googleapis.com", "https://api.openai.com/v1"
MODELS = {"gemini": "gemini-3.5-flash-lite", "openai": "gpt-6-luna"}  # when no variable names one
# Dollars per million tokens of text, in and out, by endpoint and model, as listed in October 2026. Models are shut down
# within a year or two. The vendors' own lists: ai.google.dev/gemini-api/docs/pricing and openai.com/api/pricing.
PRICES = {(GEMINI, "gemini-3.5-flash-lite"): (0.30, 2.50), (OPENAI, "gpt-6-luna"): (0.10, 0.50)}
_LOGGERS = ("google_genai", "openai", "httpx", "httpcore", "aiohttp")
_REFUSED = r"content.?(filter|policy|management)|usage policy|safety|prohibited"  # in some bad requests
MOST_TOKENS = 10**7   # no model has a longer context
BYTES_PER_TOKEN = 64  # of any text: only runs of one sign have longer pieces


class CallError(Exception):
    """A call without an answer. `retry_after`: seconds that the service asks to wait before the next."""

    def __init__(self, cause: str, detail: str, retry_after: float = 0.0) -> None:
        super().__init__(detail)
        self.cause, self.retry_after = cause, retry_after


@dataclass(frozen=True)
class Answer:
    """The text, and the tokens that are billed, or None if the service doesn't say."""

    text: str
    tokens_in: int | None
    tokens_out: int | None


@dataclass(frozen=True)
class Service:
    """One model behind an API. `call(prompt, schema)` takes the JSON schema of the answer's text, None for free text.

    name: the vendor's name for the model. max_tokens: the limit that `call` sets for an answer, including thinking.
    secret: removed from every message. endpoint: the address. temperature: None for the vendor's default.
    """

    name: str
    call: Callable[[str, dict[str, Any] | None], Awaitable[Answer]]
    max_tokens: int
    secret: str = field(default="", repr=False)
    endpoint: str = ""
    temperature: float | None = None

    async def ask(self, prompt: str, schema: dict[str, Any] | None) -> Answer:
        """The answer of `call`, with None for a number of tokens that can't be true.

        Raises CallError, in one line without the secret, for anything else that `call` raises or returns.
        """
        try:
            answer = await self.call(prompt, schema)
            if isinstance(answer, Answer) and isinstance(answer.text, str):
                return Answer(answer.text, _count(answer.tokens_in, prompt), _count(answer.tokens_out, answer.text))
            raise CallError("unparsable", f"no text in {answer!r}")
        except (CancelledError, GeneratorExit):
            raise
        except BaseException as error:  # an exit or an interrupt would end the loop of all calls
            failure = call_error(error, self.secret)
        # raised here, so the SDK's error, with the request and its key, is not its context
        raise CallError(failure.cause, printable_line(redact(str(failure), self.secret)), failure.retry_after)


def _count(tokens: object, text: str = "") -> int | None:
    """`tokens` if `text` may have that many, else None."""
    least = max(1, len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)
    return tokens if type(tokens) is int and least <= tokens <= MOST_TOKENS else None


def call_error(error: BaseException, *keys: str) -> CallError:
    """An error of an SDK, httpx or aiohttp as one of our causes. Classes go by name, as any may not be installed."""
    if isinstance(error, CallError):
        return error
    detail = describe_error(error, *keys)
    names = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(error, "status_code", None) or getattr(error, "code", None)  # openai, google-genai
    if isinstance(status, int) and status >= 400:
        # Gemini answers 400 to an invalid key
        special = {401: "auth", 403: "auth", 408: "timeout", 429: "rate_limit"}
        cause = "auth" if "API_KEY_INVALID" in detail else special.get(status, "server" if status >= 500 else "request")
        if cause == "request" and re.search(_REFUSED, detail, re.I):
            cause = "blocked"
        return CallError(cause, detail, _retry_after(getattr(error, "response", None), detail))
    if names & {"TimeoutError", "TimeoutException", "APITimeoutError"}:
        return CallError("timeout", detail)
    if names & {"OSError", "TransportError", "APIConnectionError", "ClientError"}:
        return CallError("connection", detail)
    return CallError("unparsable" if isinstance(error, ValueError) else "backend", detail)


def _retry_after(response: Any, detail: str) -> float:
    """Seconds, from the header (a number or a date) or from Gemini's RetryInfo. 0 without either."""
    headers = getattr(response, "headers", None)
    value = str(headers.get("retry-after", "")) if hasattr(headers, "get") else ""
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (ValueError, OverflowError, OSError):
        found = re.search(r"retryDelay\W{1,9}(\d{1,9}(\.\d{1,9})?)s", detail)
        return float(found[1]) if found else 0.0


def _whole(text: Any, ended: Any, tokens_in: Any, tokens_out: Any) -> Answer:
    if any(word in str(ended).upper() for word in ("MAX_TOKENS", "LENGTH")):
        raise CallError("too_long", f"cut at max_tokens ({ended}); thinking counts, give it more")
    if not text:
        raise CallError("blocked", f"no text, ended by {ended}")
    return Answer(text, tokens_in, tokens_out)


def _address(base_url: str) -> str:
    """Raises ValueError, without quoting it, for a bad address or one that may hold a secret, because it is logged."""
    try:
        parts = urlsplit(check_key(base_url, "the address"))
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        right = False
    if not right or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("the base URL of the service must be http:// or https://, a host, and perhaps a port "
                         "and a path, such as https://api.example.com/v1, without a user, a password or a query")
    return base_url.rstrip("/")


def gemini(key: str, model: str, *, max_tokens: int = 4096, base_url: str | None = None,
           temperature: float | None = None) -> Service:
    """A Gemini model. Raises ImportError without google-genai, ValueError for a key or address that cannot be used."""
    key, endpoint = check_key(key, "the Gemini key"), _address(base_url or GEMINI)
    try:
        from google import genai
    except ImportError as error:
        raise ImportError('Gemini needs google-genai: pip install google-genai') from error
    options = {"base_url": endpoint, "retry_options": {"attempts": 1}}
    client = genai.Client(api_key=key, vertexai=False, http_options=options)
    hide_in_logs(_LOGGERS, key)

    async def call(prompt: str, schema: dict[str, Any] | None) -> Answer:
        config = {"max_output_tokens": max_tokens, "temperature": temperature}
        if schema is not None:
            config |= {"response_mime_type": "application/json", "response_json_schema": schema}
        reply = await client.aio.models.generate_content(model=model, contents=prompt, config=config)
        ended = reply.candidates[0].finish_reason if reply.candidates else reply.prompt_feedback
        used = reply.usage_metadata
        written, thought = (getattr(used, f"{kind}_token_count", None) for kind in ("candidates", "thoughts"))
        out = None if _count(written) is None or thought and _count(thought) is None else written + (thought or 0)
        return _whole(reply.text, ended, getattr(used, "prompt_token_count", None), out)

    return Service(model, call, max_tokens, key, endpoint, temperature)


def openai_compatible(key: str, model: str, *, max_tokens: int = 4096, base_url: str | None = None,
                      temperature: float | None = None) -> Service:
    """A model behind OpenAI's chat completions. `base_url` for another endpoint. Raises ImportError without openai,
    ValueError for a key or address that cannot be used."""
    key, endpoint = check_key(key, "the OpenAI key"), _address(base_url or OPENAI)
    try:
        from openai import APIStatusError, AsyncOpenAI
    except ImportError as error:
        raise ImportError('an OpenAI-compatible service needs openai: pip install openai') from error
    client = AsyncOpenAI(api_key=key, base_url=endpoint, max_retries=0)
    hide_in_logs(_LOGGERS, key)
    unknown: set[str] = set()  # what this endpoint has refused: many know an older set of parameters

    async def call(prompt: str, schema: dict[str, Any] | None) -> Answer:
        limit = "max_tokens" if "max_completion_tokens" in unknown else "max_completion_tokens"
        more = {limit: max_tokens} | ({} if temperature is None else {"temperature": temperature})
        if schema is not None and "response_format" not in unknown:  # the prompt asks for the same JSON in words
            form = {"name": "verdict", "strict": True, "schema": schema}
            more["response_format"] = {"type": "json_schema", "json_schema": form}
        try:
            reply = await client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": prompt}], **more)
        except APIStatusError as error:
            named = {name for name in ("max_completion_tokens", "response_format")
                     if name in more and name in f"{error} {error.body}"}
            if error.status_code not in (400, 422) or not named:
                raise
            unknown.update(named)
            return await call(prompt, schema)
        choices = getattr(reply, "choices", None)  # the SDK passes on whatever is not JSON as text, and checks no type
        message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
        if not hasattr(message, "content"):
            raise CallError("unparsable", f"no message in {reply!r}")
        used = getattr(reply, "usage", None)
        counts = (getattr(used, f"{kind}_tokens", None) for kind in ("prompt", "completion"))
        return _whole(message.content, getattr(choices[0], "finish_reason", None), *counts)

    return Service(model, call, max_tokens, key, endpoint, temperature)


def service_from_secrets(**options: Any) -> Service | None:
    """The service whose key is among the secrets, or None. options: `max_tokens` and `temperature`.

    It looks in the environment, then in Kaggle's or Colab's secrets, for GEMINI_API_KEY or GOOGLE_API_KEY (with
    GEMINI_MODEL), else for OPENAI_API_KEY (with OPENAI_MODEL and OPENAI_BASE_URL). The models default to `MODELS`.
    Raises ImportError for a key whose SDK is missing, and ValueError for a key or address that cannot be used.
    """
    for source in sources():
        secret = partial(read, source)
        for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY"):
            if key := secret(name):
                return gemini(check_key(key, name), secret("GEMINI_MODEL") or MODELS["gemini"], **options)
        if key := secret("OPENAI_API_KEY"):
            return openai_compatible(check_key(key, "OPENAI_API_KEY"), secret("OPENAI_MODEL") or MODELS["openai"],
                                     base_url=secret("OPENAI_BASE_URL"), **options)
    return None


def hide_in_logs(packages: tuple[str, ...], key: str) -> None:
    """Keep the key out of what the packages' loggers write, such as headers that a service repeats."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(packages):
            logging.getLogger(name).addFilter(_Hiding(key))


@dataclass(frozen=True)
class _Hiding:
    """A log filter. Of equal filters a logger keeps only one."""

    key: str = field(repr=False)

    def __call__(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage(), self.key), ()
        if record.exc_info:
            record.exc_text = redact(logging.Formatter().formatException(record.exc_info), self.key)
            record.exc_info = None
        return True
