"""One raw row of a source to one row of ours: `read_row`, by the source's table of columns and its named reader.

`READERS` turn the shapes in which real sets keep worked answers into reasoning and answer. Options, message lists and
rubric lists are told by their shape. Golden rows: tests/golden/readers.jsonl. A row that can't be read is `Refused`.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reasonkit.data.options import Refused, as_text, pose_choice, split_options
from reasonkit.data.screening import OPEN, gold_fault
from reasonkit.data.sources import OwnFile, Source, SourceError, Template
from reasonkit.judge.rubric import WEIGHTS, Criterion, rubric_from_json, rubric_to_json
from reasonkit.text.answers import KINDS
from reasonkit.text.choices import read_yes_no
from reasonkit.text.tags import TAGS, is_blank, neutralise, printable

MAX_CHARACTERS = 100_000  # of a row's question, reasoning and answer together
SHORT_ANSWER = 60  # characters. A longer one without a kind is a reference for a judge.
_TEXTS = ("question", "answer", "reasoning", "group", "kind", "domain", "task")
_COLUMN = re.compile(r"\{([^{}]+)\}")
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_THOUGHT = re.compile(r"(?s)\s*(?:<think>|<\|begin_of_thought\|>)(.*?)(?:</think>|<\|end_of_thought\|>)(.*)")
_SOLUTION = re.compile(r"<\|(?:begin|end)_of_solution\|>")
_OPENING = re.compile(r"^Let's think step by step\.?\s*|^We refer to Wikipedia articles? on .{0,80}? for help\.\s*"
                      r"|^Let[’']s solve this problem step by step\.?\s*")
_CLOSING = re.compile(r"\*\*Final Answer\*\*:|[Tt]he (?:correct |final )*(?:answer|option) is:?")
_NAMED_WEIGHT = re.compile(r"(Essential|Important|Optional|Pitfall)(?: Criteria)?:\s*")
_SEVERAL = re.compile(r"\s*-?\d+(?:\.\d+)?(?:\s*,\s*-?\d+(?:\.\d+)?)+\s*")  # numbers: the roots of a polynomial
_ONE = re.compile(r"\s*-?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?\s*")  # number, with its thousands set apart
_MAYBE_ONE = re.compile(rf"{_ONE.pattern}|\s*\d+,\d+\s*")  # or with a decimal comma
_LEADING = re.compile(r"(?:\b(?:So|Therefore|Thus|Hence)\b,?)\s*$")


def read_row(source: Source, number: int, raw: Mapping[str, Any]) -> dict[str, str]:
    """A row of our schema: `screening.COLUMNS`, and domain, task, source, licence, group.

    Raises Refused for a row to leave out, and SourceError for a column that is not there.
    """
    where = f"source {source.name!r}, row {number}"
    if isinstance(source, OwnFile):  # a line of JSON may lack what others have
        raw = dict.fromkeys(_COLUMN.findall(" ".join(source.columns.values())), "") | dict(raw)
    fields: dict[str, Any] = dict.fromkeys((*_TEXTS, "reply", "options", "rubric"), "")
    fields |= {name: fill(template, raw, where) for name, template in source.columns.items()}
    inside = fields["options"] and fields["options"] == fields["question"]  # the question's text has the options
    if isinstance(fields["question"], list):
        fields["question"], spoken = from_messages(fields["question"])
        fields["reply"] = fields["reply"] or spoken
    if inside:
        fields["question"], fields["options"] = split_options(fields["question"])
    if isinstance(fields["reply"], list):
        fields["reply"] = from_messages(fields["reply"])[1]
    if isinstance(fields["reasoning"], list):  # facts, one per step
        steps = "; ".join(as_text(step).strip(" ;") for step in fields["reasoning"] if step)
        fields["reasoning"] = steps.replace(".; ", ". ")
    READERS[source.reader](fields)
    if fields["options"]:
        fields["kind"] = "choice"
        pose_choice(fields, random.Random(f"{source.name}-{number}") if source.shuffle else None)
    made = {name: printable(neutralise(as_text(fields[name]))).strip() for name in _TEXTS}
    if is_blank(made["question"]):
        raise Refused("no question")
    if sum(map(len, made.values())) > MAX_CHARACTERS:
        raise Refused("row too long")
    kind = made["kind"] = made["kind"] or source.kind or answer_kind(made["answer"], source.reader == "boxed")
    if kind not in (OPEN, *KINDS):
        raise Refused("unknown kind")
    if kind != OPEN and is_blank(made["answer"]):
        raise Refused("no answer")
    if kind == "expression" and _SEVERAL.fullmatch(made["answer"]) and not _ONE.fullmatch(made["answer"]):
        made["answer"] = re.sub(r"\s*,\s*", ", ", made["answer"])  # without a space, 1,2 would also be 1.2
    if kind == "yes_no":
        made["answer"] = read_yes_no(made["answer"]) or {"0": "no", "1": "yes"}.get(made["answer"], made["answer"])
    domain = made["domain"] or source.domain
    return {"id": f"{source.name}-{number}", **made, "family": domain, "domain": domain, "source": source.name,
            "task": made["task"] or source.task, "licence": source.licence,
            "rubric": read_rubric(fields["rubric"]) if fields["rubric"] else ""}


def fill(template: Template, raw: Mapping[str, Any], where: str) -> Any:
    """The texts of a template, with the values of its {columns}. One column alone keeps its type."""
    if isinstance(template, dict):
        return {label: fill(part, raw, where) for label, part in template.items()}
    if isinstance(template, list):
        return [fill(part, raw, where) for part in template]

    def value(name: str) -> Any:
        found: Any = raw
        for part in [name] if name in raw else name.split("."):
            try:
                found = found[int(part)] if isinstance(found, Sequence) else found[part]
            except (KeyError, IndexError, TypeError, ValueError):
                raise SourceError(f"{where} has no column {name!r}, only {', '.join(map(str, raw))}: mend `columns` "
                                  "in the recipe") from None
        return "" if found is None else found

    alone = _COLUMN.fullmatch(template)
    return value(alone[1]) if alone else _COLUMN.sub(lambda match: as_text(value(match[1])), template)


def passes(source: Source, raw: Mapping[str, Any]) -> bool:
    """Whether a raw row passes the source's filters. Raises SourceError for a column that is not there."""
    for column in (*source.keep, *source.at_most, *source.longest):
        if column not in raw:
            raise SourceError(f"source {source.name!r} has no column {column!r} to filter by, only {', '.join(raw)}")
    return (all(raw[column] in values for column, values in source.keep.items())
            and all(_number(raw[column]) <= limit for column, limit in source.at_most.items())
            and all(len(as_text(raw[column])) <= limit for column, limit in source.longest.items()))


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.inf  # a row without a number passes no limit


def answer_kind(answer: str, latex: bool = False) -> str:
    """The kind of a gold answer. Without one, or with a long text, the row is open. 2,5 is two numbers in LaTeX, and
    elsewhere one with a decimal comma.

    >>> [answer_kind(gold) for gold in ("1,200", "5 apples", "-2,1", "No", "(B)", "\\\\frac{1}{2}", "Vitamin K", "")]
    ['number', 'number', 'expression', 'yes_no', 'choice', 'expression', 'text', 'open']
    """
    if is_blank(answer):
        return OPEN
    if _SEVERAL.fullmatch(answer) and not (_ONE if latex else _MAYBE_ONE).fullmatch(answer):
        return "expression"
    if read_yes_no(answer):
        return "yes_no"
    if re.fullmatch(r"[A-J]|[(\[][A-J][)\]]", answer):
        return "choice"
    if re.search(r"[\\^=]", answer) and len(answer) <= SHORT_ANSWER:
        return "expression"
    if gold_fault(answer, "number") is None:
        return "number"
    return OPEN if len(answer) > SHORT_ANSWER else "text"


def from_messages(messages: list) -> tuple[str, str]:
    """The user's words and the assistant's reply, of [{role, content}] or [{from, value}]. Several are refused."""
    said: dict[str, list[str]] = {"user": [], "assistant": []}
    for turn in messages:
        if not isinstance(turn, Mapping):
            raise Refused("message list of another shape")
        role = turn.get("role", turn.get("from"))
        role = {"human": "user", "gpt": "assistant"}.get(role, role)
        if role in said:
            said[role].append(as_text(turn.get("content", turn.get("value"))))
    if not said["user"]:
        raise Refused("message list of another shape")
    if max(map(len, said.values())) > 1:
        raise Refused("several turns")
    return said["user"][0], (said["assistant"] or [""])[0]


# -- worked answers


def _gsm8k(fields: dict) -> None:
    """One sentence per line with calculator marks, then "#### 1,200". Without that mark, a plain answer."""
    work, mark, final = as_text(fields["answer"]).partition("####")
    if not mark:
        return
    fields["reasoning"] = _CALCULATOR.sub("", work).strip()
    fields["answer"] = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", final.strip()).lstrip("$")


def _read_boxed(fields: dict) -> None:
    """LaTeX with the final answer in its last \\boxed{}."""
    text = as_text(fields["reply"])
    if "[asy]" in text + as_text(fields["question"]) or "\\includegraphics" in text:
        raise Refused("needs a figure")
    start, inner, end = last_boxed(text)
    fields["reasoning"] = text[:start] + inner + text[end:]
    fields["answer"] = as_text(fields["answer"]) or inner


def last_boxed(text: str) -> tuple[int, str, int]:
    """Where the last \\boxed{…} starts, its contents, and where it ends. Braces are counted."""
    start = text.rfind("\\boxed{")
    depth = 0
    for place in range(start, len(text) if start >= 0 else start):
        depth += (text[place] == "{") - (text[place] == "}")
        if text[place] == "}" and depth == 0:
            inner = text[start + len("\\boxed{"):place]
            if inner.strip():
                return start, inner, place + 1
            break
    raise Refused("no boxed answer")


def _think(fields: dict) -> None:
    """<think>…</think> and the reply. Without a column of answers, what is boxed or the whole reply is the answer."""
    match = _THOUGHT.fullmatch(as_text(fields["reply"]))
    if not match:
        raise Refused("broken thought tags")
    fields["reasoning"], rest = match[1].strip(), _SOLUTION.sub("", match[2]).strip()
    if not as_text(fields["answer"]):
        fields["answer"] = last_boxed(rest)[1] if "\\boxed{" in rest else rest


def _read_tagged(fields: dict) -> None:
    """Our own tags, once each and in order."""
    parsed = TAGS.parse(as_text(fields["reply"]))
    if not parsed.ok:
        raise Refused("broken tags")
    fields["reasoning"], fields["answer"] = _CALCULATOR.sub("", parsed.reasoning or ""), parsed.answer


def _read_worked(fields: dict) -> None:
    """Steps in words that end "The answer is (C)." Stock openings are taken off."""
    text = as_text(fields["reply"]).strip()
    while (shorter := _OPENING.sub("", text).lstrip()) != text:
        text = shorter
    ends = list(_CLOSING.finditer(text))
    if not ends:
        raise Refused("no final answer")
    fields["reasoning"] = _LEADING.sub("", text[:ends[-1].start()]).strip()
    fields["answer"] = text[ends[-1].end():].strip().rstrip(".").lstrip("$")


READERS: dict[str, Callable[[dict], None]] = {"plain": lambda fields: None, "gsm8k": _gsm8k, "boxed": _read_boxed,
                                              "think": _think, "tagged": _read_tagged, "worked": _read_worked}


# -- rubrics


def read_rubric(value: Any) -> str:
    """Our rubric as JSON, from our JSON or a list of texts, {title, description, weight} or {criterion, points}.

    A criterion with negative points describes a fault and becomes a pitfall. A text that begins with the name of its
    weight, as in *Rubrics as Rewards*, gets that weight. Other points are divided by the largest.
    """
    if isinstance(value, str) and re.match(r'\s*\[\s*[\[{"\]]', value):  # as a cell of a CSV
        try:
            return rubric_to_json(rubric_from_json(value))
        except ValueError:
            raise Refused("a rubric that is no JSON list of {title, description, weight}") from None
    made = []
    for number, entry in enumerate(value if isinstance(value, list) else [value], 1):
        entry = {"description": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, Mapping):
            raise Refused("rubric of another shape")
        text = as_text(entry.get("description") or entry.get("criterion") or entry.get("criteria_description") or "")
        points = entry.get("weight", entry.get("points", 1))
        if is_blank(text) or isinstance(points, bool) or not isinstance(points, int | float) or not points:
            raise Refused("rubric of another shape")
        named = _NAMED_WEIGHT.match(text)
        name, text = (named[1].lower(), text[named.end():]) if named else ("", text)
        title = as_text(entry.get("title") or entry.get("name") or f"Criterion {number}")
        made.append((title, f"Avoids this fault: {text}" if points < 0 else text, abs(float(points)), name,
                     points < 0 or name == "pitfall"))
    largest = max(points for _, _, points, _, _ in made)
    return rubric_to_json([Criterion(printable(neutralise(title)), printable(neutralise(text)),
                                     WEIGHTS.get(name, points / largest), pitfall=pitfall)
                           for title, text, points, name, pitfall in made])


