"""What goes with an exported model: `write_card`, from the run's manifests, and `publish`, the upload to Kaggle.

Every figure and setting of the card comes from a manifest. The exports themselves are in `export`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from reasonkit.session.files import RecordError, check, write_atomic
from reasonkit.session.manifest import cut_short, progress
from reasonkit.session.records import Count, Extra, Manifest, Text, Written
from reasonkit.session.secrets import describe_error, kaggle_login, secret
from reasonkit.show.data_card import markdown_line, markdown_table
from reasonkit.text.tags import TAGS

TERMS = "ai.google.dev/gemma/terms"
# The terms ask for both in what is passed on: this sentence, and that files say they were modified.
NOTICE = f"Gemma is provided under and subject to the Gemma Terms of Use found at {TERMS}\n"
_MEASURES = {"accuracy": "Accuracy", "content": "By content", "form": "Format kept", "steps": "Step accuracy"}
_SLUG = re.compile(r"[a-z0-9]([a-z0-9._-]{0,48}[a-z0-9])?")
_WEIGHTS = ("*.safetensors", "*/_METADATA")


Interval = Annotated[list[float], Field(min_length=3, max_length=3)]  # mean, low, high


class _DataExtra(Extra):
    title: Text
    licence: Text


class _DataManifest(Manifest):
    """What the card says of the data."""

    metrics: dict[str, Count]
    extra: _DataExtra


class _Measures(Written):
    accuracy: Interval
    content: Interval
    form: Interval
    steps: Interval


class _EvaluationExtra(Extra):
    problems: Count


class _EvaluationManifest(Manifest):
    """What the card says of the scores."""

    metrics: dict[str, _Measures]
    extra: _EvaluationExtra


class PublishError(RuntimeError):
    """Nothing was published; says why, and what to set or click."""


def write_card(folder: str | Path, manifests: Sequence[Mapping[str, Any]], base: str,
               data_card: Path | None = None) -> Path:
    """Write README.md, the model card, and NOTICE into an export's folder; returns the card.

    manifests: as `manifest.read_manifest` returns them, of the stages data and evaluation at least. base: the name of
    the base model. data_card: that of notebook 1, which is copied along as DATA.md. Raises ValueError when a stage or
    what the card needs of it is missing, and when two stages knew a file by different hashes.
    """
    stages = {manifest["stage"]: manifest for manifest in manifests}
    again = "run the notebooks from 01 again"
    for stage in ("data", "evaluation"):
        if stage not in stages:
            raise ValueError(f"the card needs {stage!r} of the manifests of data and evaluation, and there are "
                             f"{', '.join(stages) or 'none'}: {again}")
    hashes: dict[str, str] = {}
    for stage, manifest in stages.items():
        try:
            model = {"data": _DataManifest, "evaluation": _EvaluationManifest}.get(stage, Manifest)
            inputs = check(manifest, model).inputs
        except RecordError as error:
            raise ValueError(f"no card: the manifest of {stage!r} is none ({error}), {again}") from None
        for entry in inputs.values():
            if hashes.setdefault(entry.path, entry.sha256) != entry.sha256:
                raise ValueError(f"{entry.path} has changed between the stages: {stage!r} knew another than those "
                                 f"before it, and a card would state the hash of another file: {again}")
    data, scores = stages["data"], stages["evaluation"]
    about = [f"{data['extra']['title']}, {data['extra']['licence']}."]
    counts = [f"{value} {name}" for name, value in data["metrics"].items()]
    rows = [[name, *(_interval(score[key]) for key in _MEASURES)] for name, score in scores["metrics"].items()]
    tested = scores["extra"]["problems"]
    adapter = scores["lora"] or {}
    settings = [["stage", "minutes", "steps", "ended by", "settings"], *(
        [name, f"{manifest['minutes']:.1f}", *(told or "–" for told in progress(manifest)),
         _words({key: value for key, value in manifest["extra"].get("settings", {}).items() if key != "steps"})]
        for name, manifest in stages.items())]
    name = markdown_line(base)
    warning = "".join(f"**{markdown_line(sentence)}**\n\n" for sentence in cut_short(manifests))
    versions = {package: version for manifest in manifests for package, version in manifest["versions"].items()}
    text = f"""---
license: gemma
base_model: {json.dumps(base)}
pipeline_tag: text-generation
tags: [reasoning, grpo, lora, tunix]
---
# {name} that shows its work

{warning}{name}, modified: one LoRA adapter ({markdown_line(_words(adapter))}) was trained with Tunix on all
attention and feed-forward matrices. It replies with its reasoning and then its answer, each in a tag of its own, to
this prompt, byte for byte:

{_fenced(TAGS.template)}

## Scores

{markdown_table([["", *_MEASURES.values()], *rows])}

{tested} test problems that no stage was trained on, greedy decoding. Means with 95 % intervals. Accuracy counts
answers in their tag, in whatever format. By content, a completion without that tag counts by what it says last, which
measures the base model too. Nothing else was measured.

## Data

{markdown_line(' '.join(about))} {markdown_line(', '.join(counts))} problems; SHA-256 of the files:

{markdown_table([["file", "SHA-256"], *([name, entry["sha256"]] for name, entry in data["inputs"].items())])}

## Training

{markdown_table(settings)}

Prompt SHA-256 {markdown_line(scores["prompt_sha256"])}. {markdown_line(_words(versions))}.

## Licence and limits

{NOTICE.strip()}. This is a small model, trained on the problems above: elsewhere its reasoning may be fluent and wrong.
"""
    folder = Path(folder)
    write_atomic(folder / "NOTICE", NOTICE)
    write_atomic(folder / "README.md", text)
    if data_card:
        write_atomic(folder / "DATA.md", data_card.read_text(encoding="utf-8"))
    return folder / "README.md"


def handle_from_secrets() -> str | None:
    """Where to publish: the secret or variable KAGGLE_MODEL_HANDLE; None without one."""
    return secret("KAGGLE_MODEL_HANDLE")


def publish(folder: str | Path, handle: str, notes: str = "", licence: str | None = None) -> str:
    """Upload an exported folder as a new version of a Kaggle model, which is made if it is not there.

    handle: owner/model/framework/variation without a version, such as you/gemma2-2b-reasons/flax/2b-it. licence: its
    name in Kaggle's list; None leaves the choice to the model's page. Credentials are as in `secrets.kaggle_login`.
    Returns what to do next, in words.

    Raises PublishError for a malformed handle, a folder without weights, card or NOTICE, missing or unreadable
    credentials, and with the cause when the upload fails.
    """
    import kagglehub  # only where it is needed: it reads its settings and credentials on import
    from kagglehub.handle import parse_model_handle

    folder = Path(folder)
    try:
        parsed = parse_model_handle(handle)
        parsed.framework_enum()
    except ValueError as error:
        raise PublishError(f"handle {handle!r}: {error}; it is owner/model/framework/variation, such as "
                           "you/gemma2-2b-reasons/flax/2b-it") from error
    if handle.count("/") > 3:
        raise PublishError(f"handle {handle!r} names a version: leave it out, Kaggle counts them")
    for slug in (parsed.owner, parsed.model, parsed.variation):
        if not _SLUG.fullmatch(slug):
            raise PublishError(f"handle {handle!r}: {slug!r} must be small letters, digits and, inside, hyphens, "
                               "underscores and dots")
    missing = [name for name in ("README.md", "NOTICE") if not (folder / name).is_file()]
    if missing or not any(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        raise PublishError(f"{folder} lacks {' and '.join(missing) or 'weights'}: export the model there and write its "
                           "card (publish.write_card) first")
    failed = ""
    try:
        with kaggle_login() as keys:
            if not keys:
                raise PublishError("no Kaggle credentials: make a token in your Kaggle settings and set it as the "
                                   "secret or variable KAGGLE_API_TOKEN")
            try:
                kagglehub.model_upload(handle, str(folder), license_name=licence, version_notes=notes)
            except Exception as error:  # kagglehub's own, and those of its HTTP client; it may quote the token
                failed = (f"the upload to {handle} failed ({describe_error(error, *keys)}); nothing was published, or "
                          "only a part: run it again")
    except ValueError as error:  # of kaggle_login, which quotes none
        failed = str(error)
    if failed:  # raised here, so that what was raised is not even its context
        raise PublishError(failed)
    name = f"{parsed.owner}/{parsed.model}"
    return (f"published to {handle}. Kaggle makes a new model private: make it public on kaggle.com/models/{name} and "
            f'choose its licence there; the submission then names it as unrestricted_kaggle_model = "{name}"')


def _interval(values: Sequence[float]) -> str:
    mean, low, high = (100 * value for value in values)
    return f"{mean:.1f} % [{low:.1f}, {high:.1f}]"


def _words(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items()) or "–"


def _fenced(text: str) -> str:
    return f"````\n{text}\n````"
