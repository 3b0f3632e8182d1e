"""Tags: the golden table of replies, the prompt byte for byte, and properties on arbitrary text."""

from __future__ import annotations

import doctest
import gc
import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonkit.text import tags
from reasonkit.text.tags import DEFECTS, INVISIBLE, TAGS, neutralise

TABLE = Path(__file__).parents[1] / "golden" / "tags.jsonl"
GOLDEN = [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]
FRAGMENTS = [
    "<reasoning>", "</reasoning>", "<answer>", "</answer>", "<Answer >", "< / reasoning>", "<", ">", "/",
    "answer", "<end_of_turn>", "<eos>", " ", "\n", "\u00a0", "\x1c", "\u200b", "4", "x",
]
REPLIES = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=12).map("".join)


@pytest.mark.parametrize("row", GOLDEN, ids=[str(number) for number in range(1, len(GOLDEN) + 1)])
def test_golden(row):
    parsed = TAGS.parse(row["text"])
    assert (parsed.reasoning, parsed.answer, list(parsed.defects)) == (
        row["reasoning"], row["answer"], row["defects"]
    )
    assert parsed.ok == (not row["defects"]) and (parsed.is_finished or not parsed.ok)


def test_golden_shows_every_defect():
    assert {defect for row in GOLDEN for defect in row["defects"]} == set(DEFECTS)


def test_doctests():
    result = doctest.testmod(tags)
    assert result.attempted and not result.failed


def test_template_byte_for_byte():
    assert TAGS.template == (
        "<start_of_turn>user\n{question}\nShow your work between <reasoning> and </reasoning>, "
        "then give the final answer between <answer> and </answer>.<end_of_turn>\n<start_of_turn>model\n"
    )


@given(st.text() | st.sampled_from(["{question}", "{}", "{0}", "{{x}}", "}{", "%s \\1", ""]))
def test_prompt_is_the_template_with_the_question_in_it(question):
    before, after = TAGS.template.split("{question}")
    assert TAGS.prompt(question) == TAGS.template.format(question=question) == before + question + after


@pytest.mark.parametrize("question", [None, 3, b"bytes"])
def test_prompt_refuses_what_is_not_text(question):
    with pytest.raises(TypeError, match="question must be a str"):
        TAGS.prompt(question)


@given(REPLIES, REPLIES)
def test_a_rendered_reply_is_perfect(reasoning, answer):
    try:
        reply = TAGS.render(reasoning=reasoning, answer=answer)
    except ValueError as error:
        has_tag = any(re.search(r"(?i)<\s*/?\s*(reasoning|answer)\s*>", part) for part in (reasoning, answer))
        assert has_tag or "is blank" in str(error)
    else:
        parsed = TAGS.parse(reply)
        assert (parsed.ok, parsed.reasoning, parsed.answer) == (True, reasoning.strip(), answer.strip())


@pytest.mark.parametrize(
    ("reasoning", "answer", "message"),
    [
        ("", "4", "reasoning is blank"),
        ("x", " \n", "answer is blank"),
        ("\u200b \ufeff", "4", "reasoning is blank"),
        ("x</reasoning>", "4", "reasoning contains the tag '</reasoning>'"),
        ("x", "< ANSWER>", "answer contains the tag '< ANSWER>'"),
    ],
)
def test_render_refuses(reasoning, answer, message):
    with pytest.raises(ValueError, match=message):
        TAGS.render(reasoning=reasoning, answer=answer)


def strictly_ok(text: str) -> bool:
    """The strict form written as one (slow) pattern, as an oracle."""
    tag = r"<\s*/?\s*(?:reasoning|answer)\s*>"
    inside = rf"((?:(?!(?i:{tag})).)*)"
    blank = rf"[\s{INVISIBLE}]*"
    stop = rf"(?:[\s{INVISIBLE}]|<end_of_turn>|<eos>)*"
    form = rf"(?s){blank}<reasoning>{inside}</reasoning>{blank}<answer>{inside}</answer>{stop}"
    match = re.fullmatch(form, text)
    return match is not None and all(re.sub(f"[{INVISIBLE}]", "", part).strip() for part in match.groups())


@settings(max_examples=500)
@given(REPLIES | st.text())
def test_any_text_is_parsed(text):
    parsed = TAGS.parse(text)
    assert parsed.ok == strictly_ok(text)
    assert list(parsed.defects) == sorted(set(parsed.defects), key=DEFECTS.index)
    for reading in (parsed.reasoning, parsed.answer):
        assert reading is None or reading.strip() == reading != ""


@given(st.text(), REPLIES)
def test_a_perfect_reply_with_anything_else_around_it_is_not_ok(extra, noise):
    reply = TAGS.render(reasoning="x", answer="4")
    for text in (extra + reply, noise + reply, reply + noise):
        assert TAGS.parse(text).ok == strictly_ok(text)


@pytest.mark.parametrize("text", [None, 4, b"<answer>4</answer>", ["x"]])
def test_parse_refuses_what_is_not_text(text):
    with pytest.raises(TypeError, match="completion must be a str"):
        TAGS.parse(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit",
    ["<answer>", "</answer>x", "<reasoning>a<answer>b", "<", "<eos> ", " ", "</answer", "< ", "\u200b",
     "&lt;answer&gt;", "<reasoning>a</reasoning><answer>b</answer>", "<reasoning>", "</reasoning>",
     "<answer>...</answer>"],
)
def test_parse_takes_linear_time(unit):
    def seconds(characters: int) -> float:
        text = "<" + unit * (characters // len(unit))
        runs = []
        gc.disable()  # a collection walks what other tests left alive: that is not the parser's time
        try:
            for _ in range(2):
                start = time.process_time()
                TAGS.parse(text)
                runs.append(time.process_time() - start)
        finally:
            gc.enable()
        return min(runs)

    # Four times the text may take four times the time; a quadratic parser would take 16. Between is room for noise.
    assert seconds(1_000_000) < 8 * seconds(250_000) + 0.01


@pytest.mark.parametrize("name", ["start_of_turn", "end_of_turn", "bos", "eos", "pad"])
@pytest.mark.parametrize("form", ["<{}>", "< {} >", "<{}\n>", "a<{}>b", "<<{}>>"])
def test_neutralise_breaks_markers(name, form):
    for marker in (form.format(name), form.format(name.upper()), form.format(name.replace("_", " "))):
        clean = neutralise(marker)
        assert f"[{name}]" in clean.casefold().replace(" ", "_").replace("\n", "")
        assert not re.search(rf"(?i)<\s*{name}\s*>", clean)


@pytest.mark.parametrize(("marker", "clean"), [
    ("<start_of_image>", "[start_of_image]"), ("<END_OF_AUDIO>", "[END_OF_AUDIO]"), ("<mask>", "[mask]"),
    ("<image_soft_token>", "[image_soft_token]"), ("< unused99 >", "[unused99]"), ("<unused6141>", "[unused6141]"),
    ("<2mass>", "[2mass]"), ("[multimodal]", "(multimodal)"), ("[@BOS@]", "(@BOS@)"), ("[ @bos@ ]", "(@bos@)"),
    ("[<mask>]", "[[mask]]"), ("<unused>", "<unused>"), ("<masked>", "<masked>"), ("[bos]", "[bos]"),
])
def test_neutralise_breaks_what_the_vocabularies_hold_whole(marker, clean):
    assert neutralise(f"a{marker}b") == f"a{clean}b"


@given(st.lists(st.sampled_from(["<", ">", "eos", "start_of_turn", "_", " ", "<bos>", "x"])).map("".join))
def test_neutralise_leaves_no_marker_and_is_idempotent(text):
    clean = neutralise(text)
    assert not re.search(r"(?i)<\s*(start_of_turn|end_of_turn|bos|eos|pad)\s*>", clean)
    assert neutralise(clean) == clean


@given(st.text())
def test_neutralise_keeps_other_text(text):
    assert neutralise(text) == text or "<" in text or "[" in text


@pytest.mark.parametrize("text", ["<b>", "<table>", "a < b > c", "<reasoning>x</reasoning>", "<eos", "<padding>"])
def test_neutralise_leaves_the_rest(text):
    assert neutralise(text) == text


def test_neutralise_refuses_what_is_not_text():
    with pytest.raises(TypeError):
        neutralise(None)


@pytest.mark.parametrize(("text", "finished", "cut_off"), [
    ("<reasoning>2 + 2 = 4</reasoning>\n<answer>4</answer>", True, False),
    ("<reasoning>The tag <answer> comes last. 2 + 2 = 4</reasoning>\n<answer>4</answer>", True, False),
    ("<reasoning>Not in <reasoning>, but below. 2 + 2 = 4</reasoning>\n<answer>4</answer>", True, False),
    ("<reasoning>2 + 2 = 4</reasoning>\n4</answer>", True, False),
    ("<reasoning>2 + 2 = 4\n<answer>4</answer>", True, False),
    ("<reasoning>2 + 2 = 4</reasoning><answer></answer><answer>4</answer>", True, False),
    ("<reasoning>2 + 2 = 4</reasoning>\n<answer>4", False, True),
    ("<reasoning>2 + 2 = 4</reasoning>\n<answer>", False, True),
    ("<reasoning>2 + 2", False, True),
    ("<reasoning>2 + 2 = 4\n<answer>4</answer> and then", False, True),
    ("<reasoning>2 + 2 = 4</reasoning>", False, False),
    ("<reasoning>2 + 2 = 4</reasoning><answer> </answer>", False, False), ("4", False, False), ("", False, False)])
def test_a_completion_is_finished_or_cut_off_by_where_it_ends(text, finished, cut_off):
    """Tags that are only mentioned, or forgotten, are faults of form. They do not make a completion unfinished."""
    parsed = TAGS.parse(text)
    assert (parsed.is_finished, parsed.cut_off) == (finished, cut_off)
