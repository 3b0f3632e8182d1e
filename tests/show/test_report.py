from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest

from reasonkit.eval.evaluate import Difference, EvalResult, compare_paired, evaluate
from reasonkit.session.run_log import RunLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.show.dashboard import Dashboard
from reasonkit.show.figures import LABEL
from reasonkit.show.report import (
    MAX_SAMPLES,
    changes,
    comparison_table,
    failure_table,
    family_table,
    results_table,
    side_by_side,
    write_report,
)
from reasonkit.text.tags import TAGS

NASTY = "<script>alert(1)</script><img src=x onerror=alert(1)></pre>\"'&\ud800"
PNG = b"\x89PNG\r\n\x1a\n"
MANIFESTS = [
    {"stage": stage, "minutes": minutes, "prompt_sha256": "ab" * 32, "lora": lora, "metrics": {},
     "inputs": {}, "versions": {"jax": "0.10.2", "flax": "0.12.8"}}
    for stage, minutes, lora in [("data", 0.5, None), ("sft", 2.0, {"rank": 16, "alpha": 16.0})]
]
DIFFERENCE = Difference(0.0, -0.1, 0.1, 1.0, 40)
VOID = {"meta", "img", "line", "br"}


class Page(HTMLParser):
    """Reads a page strictly: tags must nest; keeps what a reader sees, row by row, and every attribute."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts, self.rows = [], [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.texts.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data.replace("\N{NO-BREAK SPACE}", " ")

    @property
    def text(self):
        return "".join(self.texts).replace("\N{NO-BREAK SPACE}", " ")


def stage(right: int, n: int = 12, broken: bool = False, families: int = 3) -> EvalResult:
    """The first `right` of `n` problems answered well, the others wrongly, or with broken form."""
    rows = [{"id": f"p{number:03}", "family": f"family_{number % families}", "kind": "number",
             "question": f"What is {number} + 1?", "reasoning": f"{number}=0+{number}; {number}+1={number + 1}",
             "answer": str(number + 1)} for number in range(n)]
    replies = iter(
        TAGS.render(reasoning=row["reasoning"], answer=row["answer"]) if number < right
        else NASTY if broken else TAGS.render(reasoning="?", answer="-5")
        for number, row in enumerate(rows))
    return evaluate(lambda prompts: [next(replies) for _ in prompts], rows, 4)


def test_without_solutions_in_steps_there_is_no_step_accuracy(tmp_path, results):
    assert [*changes(results["Stock"], results["After SFT"])] == ["format", "accuracy", "step accuracy"]
    for result in results.values():
        for sample in result.samples:
            sample["steps"] = None
    page = write(tmp_path, results)
    assert [*changes(results["Stock"], results["After SFT"])] == ["format", "accuracy"]
    assert ["", "n", "Accuracy", "Content accuracy", "Format rate"] in page.rows
    assert "reasoning steps are" not in page.text
    assert "steps –" in " ".join(page.text.split())


@pytest.fixture
def results():
    return {"Stock": stage(3, broken=True), "After SFT": stage(6), "After GRPO": stage(9)}


def write(tmp_path, results, comparisons=None, manifests=(), log_rows=()):
    return Page(write_report(tmp_path / "report.html", results, comparisons or {}, list(manifests), list(log_rows)))


def test_the_headline_has_every_stage_with_intervals(tmp_path, results):
    page = write(tmp_path, results)
    header = page.rows.index(["", "n", "Accuracy", "Content accuracy", "Format rate", "Step accuracy"])
    table = page.rows[header + 1:header + 4]
    assert [row[:2] for row in table] == [["Stock", "12"], ["After SFT", "12"], ["After GRPO", "12"]]
    for row, result in zip(table, results.values(), strict=True):
        expected = (result.accuracy, result.content_accuracy, result.format_rate, result.step_accuracy)
        for cell, interval in zip(row[2:], expected, strict=True):
            mean, low, high = (100 * value for value in interval)
            assert cell == f"{mean:.1f} % {low:.1f}–{high:.1f}"
    assert "After GRPO answers 75.0 % of 12 test problems correctly, up from 25.0 % for Stock." in page.text


def test_step_accuracy_says_of_how_many_problems_it_is(tmp_path, results):
    assert "with a solution in steps." not in results_table(results)
    for result in results.values():
        for sample in result.samples[:5]:
            sample["steps"] = None
    assert "Step accuracy is of the 7 problems with a solution in steps." in write(tmp_path, results).text
    results["After GRPO"].samples[5]["steps"] = results["After GRPO"].samples[6]["steps"] = None  # 5 of 12
    text = write(tmp_path, results).text
    assert "Step accuracy" not in text.split("Notes")[0] and "reasoning steps are" not in text


def test_the_lede_does_not_call_a_loss_a_gain(tmp_path, results):
    page = write(tmp_path, dict(reversed(results.items())))
    assert "answers 25.0 % of 12 test problems correctly, against 75.0 % for After GRPO" in page.text


def test_a_notebook_shows_the_same_tables_with_their_style(tmp_path, results):
    page = (tmp_path / "report.html").read_text() if write(tmp_path, results, {"same": DIFFERENCE}) else ""
    for part in (results_table(results), comparison_table({"same": DIFFERENCE}), family_table(results),
                 failure_table(results), side_by_side(results)):
        assert part in page and part in part._repr_html_() and "<style>" in part._repr_html_()
    for sample in results["After GRPO"].samples:
        sample.update(family=NASTY, question=NASTY, completion=NASTY, failures=[NASTY])
    for part in (family_table(results), failure_table(results), side_by_side(results)):
        assert "<script" not in part and "&lt;script&gt;" in part


def test_one_stage_alone_will_do(tmp_path):
    page = write(tmp_path, {"Stock": stage(3)})
    assert "Stock answers 25.0 % of 12 test problems correctly. " in page.text


def test_differences_say_where_zero_lies(tmp_path, results):
    a, b = stage(100, n=400), stage(300, n=400)
    page = write(tmp_path, results, {"gain": compare_paired(a, b), "loss": compare_paired(b, a),
                                     "none": compare_paired(a, a)})
    rows = {row[0]: row for row in page.rows if row[0] in ("gain", "loss", "none")}
    assert rows["gain"][1].startswith("+50.0 ") and rows["gain"][1].endswith("above zero")
    assert rows["loss"][1].startswith("-50.0 ") and rows["loss"][1].endswith("below zero")
    assert rows["none"][1:] == ["+0.0 -0.7 to +0.7, zero lies inside", "1.000", "400"]
    assert rows["gain"][2] == "< 0.001"


def test_a_scale_has_its_mean_inside_its_interval(results):
    a, b = stage(100, n=400), stage(300, n=400)
    tables = results_table(results), comparison_table({"gain": compare_paired(a, b), "loss": compare_paired(b, a)})
    scales = re.findall(r'"range" x1="([\d.]+)" x2="([\d.]+)".*?"mean" x1="([\d.]+)"', "".join(tables))
    assert len(scales) == 3 * 4 + 2
    for low, high, mean in (map(float, scale) for scale in scales):
        assert 0 <= low <= mean <= high <= 100


def test_families_are_apart(tmp_path, results):
    page = write(tmp_path, results)
    header = page.rows.index(["", "n", "Stock", "After SFT", "After GRPO"])
    table = page.rows[header + 1:header + 4]
    assert [row[:2] for row in table] == [[f"family_{number}", "4"] for number in range(3)]
    assert table[0][2].startswith("25.0 %") and table[0][4].startswith("75.0 %")


def test_failures_are_counted_by_stage(tmp_path, results):
    rows = {row[0]: row[1:] for row in write(tmp_path, results).rows if len(row) == 4}
    assert rows["wrong answer"] == ["0", "6", "3"]
    assert rows["no answer"] == ["9", "0", "0"]
    assert rows["missing answer"] == ["9", "0", "0"]
    assert "No answer means none in the tag." in failure_table(results)


def test_the_judge_is_told_by_criterion_and_time(tmp_path, results):
    rows = [{"t": 0.0, "event": "verdict", "judge": "j", "titles": ["Steps", "<b>Short"], "score": n / 10,
             "per_criterion": [n / 10, 1.0]} for n in range(10)]
    rows += [{"t": 0.0, "event": "verdict", "judge": "j", "titles": ["Steps", "<b>Short"], "cause": "timeout"}] * 3
    rows += [{"t": 0.0, "event": "verdict", "judge": "i", "titles": ["Steps", "<b>Short"], "score": 0.5,
              "per_criterion": [0.5]}]
    page = write(tmp_path, results, log_rows=rows)
    assert {"the score", "Steps", "<b>Short"} <= {row[0] for row in page.rows}
    told = {row[0]: row[1:] for row in page.rows}
    assert told["Steps"] == ["10", "5.0 %", "85.0 %"] and told["<b>Short"] == ["10", "100.0 %", "100.0 %"]
    assert told["the score"][0] == "11" and any("timeout 3" in text for text in page.texts)
    assert "The judge" in page.texts and "The judge" not in write(tmp_path, results).texts


def test_samples_follow_the_stated_rule(tmp_path, results):
    page = write(tmp_path, results)
    asked = [text for text in page.texts if text.startswith("What is ")]
    assert asked == [f"What is {number} + 1?" for number in (0, 1, 2, 9, 10, 11)]
    words = " ".join(page.text.split())
    assert "the first problem of each family, then the first of each with a wrong completion" in words
    assert words.count("right · format kept · steps 100 %") == 3 * 3
    many = write(tmp_path, {"Stock": stage(0, n=60, families=30)})
    assert sum(text.startswith("What is ") for text in many.texts) == MAX_SAMPLES


def test_problems_without_worked_steps_are_shown_and_compared(tmp_path):
    """As in a file of one's own."""
    row = {"id": "p0", "family": "f", "kind": "number", "question": "6 + 6?", "reasoning": "", "answer": "12"}
    result = evaluate(lambda prompts: ["<answer>12</answer>"], [row], 1)
    page = write(tmp_path, {"After": result}, {"steps": compare_paired(result, result, "steps")})
    assert "right · format broken · steps –" in " ".join(page.text.split())
    assert ["steps", "+0.0 -100.0 to +100.0, zero lies inside", "1.000", "0"] in page.rows


@pytest.mark.parametrize(("reply", "said", "border"), [
    ("<answer>12</answer>", "right ·", " right"), ("12", "right by content, none in the tag ·", " by_content"),
    ("<answer>twelve or so, the total is **12**</answer>", "right by content ·", " by_content"),
    ("13", "no answer ·", ""), ("<answer>13</answer>", "wrong ·", "")])
def test_a_completion_that_is_right_outside_of_the_tag_is_not_called_one_without_an_answer(reply, said, border):
    row = {"id": "p0", "family": "f", "kind": "number", "question": "6 + 6?", "reasoning": "", "answer": "12"}
    shown = side_by_side({"base model": evaluate(lambda prompts: [reply], [row], 1)})
    assert f"<small>{said} format broken" in " ".join(shown.split()) and f'class="completion{border}"' in shown


def test_samples_need_common_problems(tmp_path, results):
    other = EvalResult([dict(sample, id="x" + sample["id"]) for sample in stage(3).samples])
    assert "side by side" not in write(tmp_path, results | {"Other": other}).text


def test_nothing_that_comes_from_outside_is_markup(tmp_path, results):
    for sample in results["After GRPO"].samples:
        sample.update(id=NASTY + sample["id"], family=NASTY, gold=NASTY, question=NASTY, completion=NASTY,
                      failures=[NASTY])
    manifest = {"stage": NASTY, "minutes": 1.0, "prompt_sha256": NASTY, "lora": {NASTY: NASTY}, "metrics": {},
                "versions": {NASTY: NASTY}}
    rows = [{"event": "reward", "mode": "train", "mean": 1.0, "parts": {NASTY: {"mean": 1.0, "no_signal": 0.0}},
             "sample": {"completion": NASTY}}]
    same = compare_paired(results["Stock"], results["Stock"])
    page = write(tmp_path, {NASTY: results["After GRPO"]}, {NASTY: same}, [manifest], rows)
    assert page.tags.count("img") == 1 and "script" not in page.tags  # the curves
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") >= 10  # shown, as text


def test_the_page_is_self_contained(tmp_path, results):
    rows = [{"event": "sft_step", "step": step, "loss": 1.0 / step} for step in range(1, 30)]
    page = write(tmp_path, results, log_rows=rows)
    [source] = [value for name, value in page.attributes if name in ("src", "href")]
    assert source.startswith("data:image/png;base64,")
    assert base64.b64decode(source.split(",")[1]).startswith(PNG)
    assert ("alt", "Training as logged (faint) and its running mean (bold).") in page.attributes
    raw = (tmp_path / "report.html").read_text()
    assert "http" not in raw and "@import" not in raw and "url(" not in raw


def test_run_facts(tmp_path, results):
    page = write(tmp_path, results, manifests=MANIFESTS)
    assert ["data", "0.5", "–", "–", "–"] in page.rows
    assert ["sft", "2.0", "–", "–", "rank 16, alpha 16.0"] in page.rows
    assert "2.5 minutes in all. One prompt across the stages. jax 0.10.2, flax 0.12.8." in page.text
    other = dict(MANIFESTS[1], prompt_sha256="cd" * 32, versions={"jax": "0.11"})
    text = write(tmp_path, results, manifests=[MANIFESTS[0], other]).text
    assert "2 different prompts across the stages. jax 0.10.2/0.11, flax 0.12.8." in text


def test_a_run_that_the_clock_cut_short_says_so_before_any_figure(tmp_path, results):
    def trained(stage, steps, planned, stopped):
        return dict(MANIFESTS[1], stage=stage, metrics={"steps": steps},
                    extra={"stopped": stopped, "settings": {"steps": planned}})

    page = write(tmp_path, results, manifests=[trained("sft", 120, 120, "data"), trained("grpo", 17, 64, "time")])
    said = "Stage grpo was cut short: 17 of 64 steps, ended by the clock. What follows is of that shorter run."
    words = page.text.split("Evaluation report")[-1].strip()
    assert words.startswith(said) and words.count(said) == 2, "at the head, and with the table of results"
    assert [row[:4] for row in page.rows if row[0] in ("sft", "grpo")] == [
        ["sft", "2.0", "120 of 120", "its last step"], ["grpo", "2.0", "17 of 64", "the clock"]]
    assert "cut short" not in write(tmp_path, results, manifests=[trained("sft", 120, 120, "data")]).text


def test_a_stock_model_is_measured_by_content_too(tmp_path, results):
    bare = {"id": "p0", "family": "f", "kind": "number", "question": "6 + 6?", "reasoning": "6+6=12", "answer": "12"}
    stock, after = (evaluate(lambda prompts, reply=reply: [reply], [bare], 1)
                    for reply in ("12", "<reasoning>6+6=12</reasoning><answer>12</answer>"))
    text = write(tmp_path, {"Stock": stock, "After": after}).text
    assert "correctly, against 100.0 % for Stock, with or without the tags. In the tag, 100.0 % are right." in text


def test_empty_inputs_leave_their_sections_out(tmp_path, results):
    text = write(tmp_path, results).text
    for heading in ("Paired differences", "Training", "The run"):
        assert heading not in text
    assert "What goes wrong" not in write(tmp_path, {"Perfect": stage(12)}).text


def test_notes_say_what_correct_means(tmp_path, results):
    text = " ".join(write(tmp_path, results).text.split())
    assert "a completion without that tag gives no answer, and is not correct" in text


def test_the_file_is_written_whole(tmp_path, results):
    path = write_report(tmp_path / "deep" / "report.html", results, {}, [], [])
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_no_results_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no results"):
        write_report(tmp_path / "report.html", {}, {}, [], [])


# -- what text from outside may not do

DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
FORMULAS = ("$\\frac$", "$", "$$", "$x$", "\\$", "$\\frac{1}{2}$", "$^$", "$_{$", "a$b", "$\\notacommand$", "\\frac",
            "${", "}$", "_hidden", "__", "_", "", " ", "\n", "a\nb", "\t", "x" * 5000, "$" * 999, "%", "{x}", "%s",
            "<b>", "&amp;")


def hostile(results, text):
    """Every name and text of a report."""
    for sample in results["After GRPO"].samples:
        sample.update(family=text or "f", gold=text, question=text, completion=text, failures=[text])
    manifest = {"stage": text, "minutes": 1.0, "prompt_sha256": "ab" * 32, "lora": {text: text},
                "versions": {text: text}, "metrics": {"steps": 1}, "extra": {"stopped": text, "settings": {"steps": 2}}}
    rows = [{"t": 0.0, "event": "reward", "mode": "train", "mean": 1.0, "sample": {text: text, "parts": {text: 1.0}},
             "parts": {text: {"mean": 1.0, "no_signal": 1.0}, "b": {"mean": 0.5, "no_signal": 0.0}}},
            {"t": 0.0, "event": "verdict", "titles": [text], "score": 0.5, "per_criterion": [0.5]},
            {"t": 0.0, "event": "verdict", "cause": text},
            {"t": 0.0, "event": "flag", "name": text, "step": 1, "value": 1.0, "limit": 0.5, "why": text,
             "example": text}]
    rows += [{"t": 0.0, "event": f"{text}_step", "step": step, "loss": 1.0} for step in (1, 2)]
    return {text: results["After GRPO"]}, {text: compare_paired(results["Stock"], results["Stock"])}, [manifest], rows


@pytest.mark.parametrize("text", FORMULAS)
def test_a_name_is_no_formula_and_ends_no_page(tmp_path, results, text):
    page = write(tmp_path, *hostile(results, text))
    assert page.tags.count("img") == 1 and "Training" in page.texts
    log = RunLog(tmp_path / "log.jsonl")
    for row in hostile(results, text)[-1]:
        log.write(row["event"], **{name: value for name, value in row.items() if name not in ("t", "event")})
    board = Dashboard(log, TimeBudget(), text, 5)
    board.update()
    assert board._plot.value.startswith("<svg") and log.skipped == 0
    labels = [label.get_text() for axes in board.figure(tmp_path / "curves.png").axes if axes.get_legend()
              for label in axes.get_legend().get_texts()]
    assert "b" in labels and len(labels) == 3, "no name is left out of a legend"


@pytest.mark.parametrize("sign", DIRECTIONS)
def test_no_text_turns_the_page_round(tmp_path, results, sign):
    text = f"a{sign}b"
    write(tmp_path, *hostile(results, text))
    raw, shown = (tmp_path / "report.html").read_text(), f"a[U+{ord(sign):04X}]b"
    assert sign not in raw and raw.count(shown) >= 10
    log = RunLog(tmp_path / "log.jsonl")
    for row in hostile(results, text)[-1]:
        log.write(row["event"], **{name: value for name, value in row.items() if name not in ("t", "event")})
    board = Dashboard(log, TimeBudget(), text, 5)
    board.update()
    for box in (board.widget.children[0], board._status, board._flags, board._samples, board._plot):
        assert sign not in box.value and shown in box.value


def test_no_word_widens_the_page_or_the_live_view(tmp_path, results):
    """All text inherits that it may be broken anywhere; a cell is bounded, and breaks what is wider than that."""
    write(tmp_path, results)
    style = (tmp_path / "report.html").read_text().split("<style>")[1].split("</style>")[0]
    rules = dict(rule.split("{") for rule in style.replace("\n", " ").split("}") if rule.count("{") == 1)
    assert "overflow-wrap: anywhere" in next(rule for name, rule in rules.items() if name.strip() == ".report")
    assert "td, th { overflow-wrap: break-word; max-width: 16rem; }" in style and style.count("overflow-wrap") == 2
    assert style.count("white-space: nowrap") == 1 and "word-break" not in style
    log = RunLog(tmp_path / "log.jsonl")
    log.write("reward", mean=1.0, parts={}, sample={"completion": "x" * 9999})
    board = Dashboard(log, TimeBudget(), "x" * 9999, 5)
    board.update()
    for box in (board.widget.children[0], board._samples):
        assert "overflow-wrap:anywhere" in box.value.split(">")[0]
    log.write("grpo_step", step=1)
    log.write("reward", parts={"x" * 9999: {"no_signal": 1.0}})
    board._due = 0.0
    board.update()
    assert f"no signal from {'x' * LABEL}: 100%" in board._status.value, "a plain line, also where no page shows it"


def test_what_was_left_out_is_told(tmp_path, results):
    some = {"Stock": EvalResult(results["Stock"].samples, 3)}
    assert "3 problems could not be scored, and Stock was not asked them." in write(tmp_path, some).text
    assert "could not be scored" not in write(tmp_path, results).text
