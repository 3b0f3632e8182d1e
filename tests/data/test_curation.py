"""Mixes: from a recipe's sources to splits, with every row accounted for."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from reasonkit.data import curation, loading, problems
from reasonkit.data.curation import EXTRA, share_out
from reasonkit.data.filters import Ledger, screen
from reasonkit.data.problems import load_recipe
from reasonkit.data.screening import COLUMNS, question_key
from reasonkit.data.sources import Family, SourceError, Wheel
from reasonkit.judge.rubric import Criterion, rubric_from_json

SIZES = {"train": 60, "validation": 10, "test": 20}
HEAD = '''title = "Mine"
licence = "per source"
domain = "science"
{top}
[split]
train = 60
validation = 20
test = 20
'''
SOURCE = '''
[[sources]]
name = "{name}"
from = "file"
path = "{path}"
domain = "{domain}"
licence = "{licence}"
address = "https://example.org"
{more}
[sources.columns]
question = "{{q}}"
answer = "{{a}}"
reasoning = "{{r}}"
'''


@pytest.fixture
def recipe_of(tmp_path, monkeypatch):
    monkeypatch.setattr(problems, "RECIPES", tmp_path)
    (tmp_path / "families").mkdir()
    (tmp_path / "families" / "coins.py").touch()

    def make(*sources, top="", **more):
        text = HEAD.format(top=top)
        for number, rows in enumerate(sources):
            path = tmp_path / f"{number}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            keys = {"name": f"s{number}", "domain": "maths", "licence": "MIT", "more": "", **more.get(f"s{number}", {})}
            text += SOURCE.format(path=path, **keys)
        (tmp_path / "mine.toml").write_text(text + more.get("tail", ""))
        return load_recipe("mine")
    return make


def sums(count, start=0, **changes):
    return [{"q": f"What is {n} plus {n}?", "a": str(2 * n), "r": f"{n}+{n}={2 * n}", **changes}
            for n in range(start, start + count)]


def test_rows_are_dealt_and_accounted_for(recipe_of):
    recipe = recipe_of(sums(120), [*sums(40, 1000), *sums(5)])
    splits, ledger = curation.curate(recipe, SIZES, 0)
    assert {name: len(rows) for name, rows in splits.items()} == SIZES
    assert set(splits["train"].column_names) == {*COLUMNS, *EXTRA}
    assert ledger.steps[0] == ("read", 165, 165) and ("exact duplicates", 165, 160) in ledger.steps
    for (_, _, after), (name, before, _) in zip(ledger.steps[:4], ledger.steps[1:5], strict=True):
        assert after == before, name
    assert {row.id[:3] for row in ledger.dropped} == {"s1-"} and ledger.dropped[0].example.startswith("s0-1: What is 0")
    again, _ = curation.curate(recipe, SIZES, 0)
    assert all(again[name].to_list() == splits[name].to_list() for name in SIZES)
    assert curation.curate(recipe, SIZES, 1)[0]["train"].to_list() != splits["train"].to_list()
    keys = {name: set(map(question_key, rows["question"])) for name, rows in splits.items()}
    assert not keys["train"] & keys["test"]


class Words:
    """A tokenizer with a token per word."""

    def encode(self, text):
        return text.split()


def test_a_question_over_the_limit_makes_room_for_another(recipe_of):
    """Screened after dealing, every split would lack its long rows."""
    long = [{**row, "q": " ".join([row["q"], *(f"{row['a']}x{n}" for n in range(300))])} for row in sums(60, 500)]
    recipe = recipe_of([*sums(160), *long])
    limit = Words(), 300
    splits, ledger = curation.curate(recipe, SIZES, 0, *limit)
    assert ("prompt length", 220, 160) in ledger.steps
    assert {name: len(rows) for name, rows in splits.items()} == SIZES
    ledger = Ledger()
    usable = screen(splits, *limit, ledger)
    assert not ledger.dropped and {name: len(rows) for name, rows in usable.items()} == SIZES
    assert len(screen(curation.curate(recipe, SIZES, 0)[0], *limit, ledger)["train"]) < SIZES["train"]  # the control


def test_a_limit_that_most_questions_miss_is_an_error(recipe_of):
    with pytest.raises(ValueError, match=r"100 of 100 questions are too long, more than 50%.*'s0-\d+': the prompt has"):
        curation.curate(recipe_of(sums(100)), SIZES, 0, Words(), 5)


def test_a_group_stays_in_one_split_and_open_rows_train(recipe_of):
    grouped = [{"q": f"Of passage {n // 4}, item {n}?", "a": str(n), "r": "", "g": str(n // 4)} for n in range(120)]
    opened = [{"q": f"Write a poem about the number {n}.", "a": "", "r": ""} for n in range(20)]
    recipe = recipe_of(grouped, opened, s0={"more": ""}, s1={"more": 'kind = "open"\nrubric = "creative"'})
    recipe.sources[0].columns["group"] = "{g}"
    splits, _ = curation.curate(recipe, {"train": 200, "validation": 50, "test": 50}, 0)
    where = {}
    for name, rows in splits.items():
        for row in rows:
            if row["source"] == "s0":
                group = row["question"].split(",")[0]
                assert where.setdefault(group, name) == name
    assert set(splits["test"]["source"]) == {"s0"} and splits["train"]["source"].count("s1") == 20
    by_source = {row["source"]: row["rubric"] for row in splits["train"]}
    assert by_source["s0"] != by_source["s1"], "each domain has its rubric"


def test_an_open_question_with_criteria_of_its_own_is_judged_by_its_reasoning_too(recipe_of):
    rows = [{"q": f"Tell a story about animal number {n * n}.", "a": "", "r": "", "kind": "open",
             "c": ["The story has an end", "The animal speaks"]} for n in range(5)]
    recipe = recipe_of(sums(60), rows, s1={"domain": "creative"}, tail='kind = "{kind}"\nrubric = "{c}"\n')
    told = [row["rubric"] for row in curation.curate(recipe, SIZES, 0)[0]["train"] if row["source"] == "s1"]
    assert len(told) == 5 and {tuple(one.weight for one in rubric_from_json(text)) for text in told} == {(2 / 3, 1, 1)}


def test_a_licence_that_is_not_open_is_off_until_one_line_switches_it_on(recipe_of):
    closed = {"s1": {"licence": "CC-BY-NC-4.0"}}
    splits, ledger = curation.curate(recipe_of(sums(100), sums(50, 500), **closed), SIZES, 0)
    assert set(splits["train"]["source"]) == {"s0"}
    told = "off: s1, licence 'CC-BY-NC-4.0' (https://example.org). To use it, write `other_licences = true`"
    assert told in str(ledger)
    recipe = recipe_of(sums(100), sums(50, 500), top="other_licences = true", **closed)
    assert set(curation.curate(recipe, SIZES, 0)[0]["train"]["source"]) == {"s0", "s1"}


def test_a_missing_source_stops_the_run_unless_it_is_optional(recipe_of, tmp_path):
    for more, reached in (("", False), ("optional = true", True)):
        recipe = recipe_of(sums(150), sums(3, 500), s1={"more": more})
        (tmp_path / "1.jsonl").unlink()
        if reached:
            splits, ledger = curation.curate(recipe, SIZES, 0)
            assert len(splits["train"]) == 60, "its share goes to the others"
            assert "left out: source 's1' can't be opened" in ledger.notes[0]
        else:
            with pytest.raises(SourceError, match="source 's1' can't be opened .*give the path") as caught:
                curation.curate(recipe, SIZES, 0)
            assert "packaged" not in str(caught.value), "one's own file can be mended"


@pytest.mark.parametrize(("rows", "told"), [
    (None, r"source 'far' can't be opened \(ConnectionError: no such branch"),
    (sums(3, 900), "source 'far' has 3 rows, and the recipe states 9 within 2%"),  # seen after `reach`
    ([{"question": "1 + 1?"}], "source 'far', row 1 has no column 'q', only question")])
def test_a_data_set_of_the_hub_that_fails_names_the_mix_without_it(recipe_of, monkeypatch, rows, told):
    def hub(*_, **__):
        if rows is None:
            raise ConnectionError("no such branch")
        return rows

    monkeypatch.setattr(loading, "load_dataset", hub)
    tail = SOURCE.format(name="far", path="", domain="maths", licence="MIT", more="rows = 9").replace(
        'from = "file"\npath = ""', 'from = "hub"\nid = "a/b"\nsplit = "train"\nrevision = "main"')
    with pytest.raises(SourceError, match=told) as caught:
        curation.curate(recipe_of(sums(150), tail=tail), SIZES, 0)
    assert str(caught.value).endswith(curation.WAY_OUT) and str(caught.value).count("packaged") == 1
    optional = recipe_of(sums(150), tail=tail.replace("rows = 9", "rows = 9\noptional = true"))
    _, ledger = curation.curate(optional, SIZES, 0)
    assert "left out: source 'far'" in str(ledger) and "packaged" not in str(ledger)


@pytest.mark.parametrize(("rows", "more", "told"), [
    (sums(9, q=""), "", "none of its 9 rows can be used .no question: 9.: mend `columns`, `reader` or `keep`"),
    ([*sums(4, q=""), *sums(5)], 'keep = {a = ["none"]}', "none of its 9 rows can be used .filtered out: 9.")])
def test_a_source_of_which_no_row_can_be_used_stops_the_run(recipe_of, rows, more, told):
    """A guess about its columns or labels is wrong. It would vanish without a word."""
    with pytest.raises(SourceError, match=f"source 's1': {told}"):
        curation.curate(recipe_of(sums(150, 100), rows, s1={"more": more}), SIZES, 0)


@pytest.mark.parametrize(("planted", "more", "told"), [
    ({"r": ...}, "", "source 's1', row 3 has no column 'r', only q, a"),
    ({}, "rows = 9", "source 's1' has 3 rows, and the recipe states 9 within 2%")])
def test_an_optional_source_that_goes_wrong_later_is_left_out(recipe_of, planted, more, told):
    """`reach` sees only the first row, so this comes after minutes."""
    last = {name: value for name, value in {**sums(1, 502)[0], **planted}.items() if value is not ...}
    last |= {"q": ""} if not planted else {}  # refused, and of a source that is not used
    recipe = recipe_of(sums(150), [*sums(2, 500), last], s1={"more": f"optional = true\n{more}"})
    splits, ledger = curation.curate(recipe, SIZES, 0)
    assert set(splits["train"]["source"]) == {"s0"} and f"left out: {told}" in ledger.notes[0]
    assert ledger.steps[0] == ("read", 150, 150)
    with pytest.raises(SourceError, match=told[:40]):
        curation.curate(recipe_of(sums(150), [*sums(2, 500), last], s1={"more": more}), SIZES, 0)


def test_another_number_of_rows_than_stated_stops_the_run(recipe_of):
    with pytest.raises(SourceError, match="'s0' has 100 rows, and the recipe states 110 within 2%: look into what"):
        curation.curate(recipe_of(sums(100), s0={"more": "rows = 110"}), SIZES, 0)
    curation.curate(recipe_of(sums(100), s0={"more": "rows = 110\ntolerance = 0.1"}), SIZES, 0)


def test_rows_are_filtered_capped_and_used_as_stated(recipe_of):
    rows = [{**row, "level": n % 3, "split": "x"} for n, row in enumerate(sums(300))]
    rows += sums(9, 400, level=None, split="x")
    recipe = recipe_of(rows, sums(100, 1000), sums(60, 2000), s0={"more": "cap = 30\nkeep = {split = [\"x\"]}\n"
                       "at_most = {level = 1}"}, s1={"more": 'use = "test"'}, s2={"more": 'use = "train"'})
    splits, ledger = curation.curate(recipe, {"train": 500, "validation": 500, "test": 500}, 0)
    assert ledger.steps[0] == ("read", 360, 360)
    assert Counter(splits["train"]["source"]) == {"s2": 60, "s0": 30}
    assert Counter(splits["validation"]["source"]) == {"s0": 30}
    assert Counter(splits["test"]["source"]) == {"s1": 100, "s0": 30}
    with pytest.raises(SourceError, match="'s0' has no column 'grade' to filter by, only q, a, r"):
        curation.curate(recipe_of(sums(100), s0={"more": "at_most = {grade = 1}"}), SIZES, 0)


def test_rows_with_longer_texts_are_left_out(recipe_of):
    long = [{**row, "q": f"{row['q']} Take your time{' and' * 20}"} for row in sums(50, 1000)]
    splits, ledger = curation.curate(recipe_of([*sums(200), *long], s0={"more": "longest = {q = 80, a = 9}"}), SIZES, 0)
    assert ledger.steps[0] == ("read", 200, 200) and not any("Take your time" in row["question"]
                                                             for rows in splits.values() for row in rows)
    with pytest.raises(SourceError, match="'s0' has no column 'story' to filter by, only q, a, r"):
        curation.curate(recipe_of(sums(100), s0={"more": "longest = {story = 1}"}), SIZES, 0)


def test_a_training_row_that_tells_a_test_question_is_dropped(recipe_of):
    passage = "The quick brown fox jumps over the lazy dog near the old stone bridge at noon on {}. How many legs?"
    train = [{"q": passage.format("Monday") + f" Case {n}", "a": "4", "r": "4"} for n in range(3)]
    test = [{"q": passage.format("Sunday") + " Tell.", "a": "4", "r": "4"}]
    recipe = recipe_of(sums(100), train, test, s1={"more": 'use = "train"'}, s2={"more": 'use = "test"'})
    splits, ledger = curation.curate(recipe, {"train": 500, "validation": 50, "test": 500}, 0)
    assert "s1" not in splits["train"]["source"] and "s2" in splits["test"]["source"]
    assert [(row.step, row.cause) for row in ledger.dropped] == [("decontamination", "13 words of a test question")] * 3


def test_families_are_sources_too(recipe_of):
    tail = '''
[[sources]]
name = "toys"
from = "family"
families = ["coins"]
domain = "maths"
licence = "Apache-2.0"
address = "https://example.org"
cap = 80
'''
    splits, ledger = curation.curate(recipe_of(sums(50), tail=tail), {"train": 500, "validation": 50, "test": 50}, 0)
    assert Counter(splits["train"]["source"]).keys() == {"s0", "toys"}
    assert sum(rows["source"].count("toys") for rows in splits.values()) == 80
    assert not ledger.dropped


@pytest.mark.parametrize("name", sorted(path.stem for path in problems.RECIPES.glob("*.toml")))
def test_a_shipped_recipe_can_be_read(name):
    """Each source has its licence, each column its template, and something is left without `other_licences`."""
    recipe = load_recipe(name)
    assert not recipe.sources or any(source.is_open and source.use != "test" for source in recipe.sources)
    assert all(source.columns or isinstance(source, Family) for source in recipe.sources)
    needed = [source for source in recipe.sources if not source.optional]
    assert all(source in recipe.usable_sources for source in needed)
    if name == "packaged":
        assert all(source.is_open and isinstance(source, Family | Wheel) for source in recipe.sources)


@pytest.mark.parametrize(("more", "message"), [
    ('use = "dev"', r"mine.toml is no data recipe \(sources\[0\].file.use is 'dev', and should be 'any', 'train' or"),
    ("weight = 0", r"sources\[0\].file.weight is 0, and should be greater than 0"),
    ("colour = 1", r"sources\[0\].file.colour is no key that is known here"),
    ('kind = "riddle"', r"\[\[sources\]\], entry 0 \('s0'\): kind is 'riddle': use one of open, number"),
    ('rubric = "alchemy"', r"entry 0 \('s0'\): unknown domain 'alchemy'"),
])
def test_a_source_that_cannot_be_used_is_named_by_file_table_and_key(recipe_of, more, message):
    with pytest.raises(ValueError, match=message):
        recipe_of(sums(3), s0={"more": more})


@pytest.mark.parametrize(("old", "new", "message"), [
    ('licence = "MIT"\n', "", r"sources\[0\].file.licence is missing"),
    ('from = "file"', 'from = "ftp"', r"sources\[0\] is .*kind_of|sources\[0\].*'from'"),
    ('question = "{q}"\n', "", r"entry 0 \('s0'\): columns has no question"),
    ('name = "s1"', 'name = "s0"', r"entry 1 \('s0'\): the name comes twice"),
    ('https://example.org', "later", r"sources\[0\].file.address is 'later'"),
])
def test_a_recipe_that_lacks_what_it_needs_is_named(recipe_of, tmp_path, old, new, message):
    recipe_of(sums(3), sums(3, 10))
    text = (tmp_path / "mine.toml").read_text()
    assert old in text
    (tmp_path / "mine.toml").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_recipe("mine")


@pytest.mark.parametrize(("lines", "message"), [
    ("prompt = 8", "lengths.prompt is 8, and should be greater than or equal to 16"),
    ("prompts = 512", r"lengths.prompts.\[key\] is 'prompts', and should be 'prompt' or 'completion'"),
    ("completion = \"long\"", "lengths.completion is 'long', and should be a valid integer"),
])
def test_lengths_that_cannot_be_are_named(recipe_of, lines, message):
    assert recipe_of(sums(3), tail="[lengths]\nprompt = 512\n").lengths == {"prompt": 512}
    with pytest.raises(ValueError, match=message):
        recipe_of(sums(3), tail=f"[lengths]\n{lines}\n")


def test_domains_share_by_the_sum_of_their_sources_or_by_the_recipe(recipe_of):
    sources = sums(100), sums(100, 1000), sums(100, 2000)
    train = {"train": 60, "validation": 10, "test": 10}
    law = {"s2": {"domain": "law"}}
    splits, ledger = curation.curate(recipe_of(*sources, **law), train, 0)
    assert Counter(splits["train"]["domain"]) == {"maths": 40, "law": 20} and not ledger.notes
    recipe = recipe_of(*sources, **law, tail="[balance.domains]\nlaw = 4\n")
    splits, ledger = curation.curate(recipe, train, 0)
    assert Counter(splits["train"]["domain"]) == {"maths": 20, "law": 40}
    assert {name: splits["train"]["source"].count(name) for name in ("s0", "s1")} == {"s0": 10, "s1": 10}
    assert any(re.match(r"train, balanced by domain: law 40 of \d+, maths 20 of \d+", note) for note in ledger.notes)
    recipe = recipe_of(*sources, s2={"domain": "auto"}, tail="[balance.domains]\nlaw = 4\ngeneral = 2\n")
    splits, _ = curation.curate(recipe, train, 0)
    assert Counter(splits["train"]["domain"]) == {"maths": 30, "general": 30}, "a domain that is found has its share"
    with pytest.raises(ValueError, match=r"mine.toml: .*: \[balance\] domains names 'art', and the sources have law, "):
        recipe_of(*sources, **law, tail="[balance.domains]\nart = 4\n")


def test_a_task_that_nobody_names_is_inferred_and_tasks_may_share_instead_of_domains(recipe_of):
    options = [{**row, "q": f"{row['q']}\n(A) {row['a']}\n(B) 1", "a": "A", "r": ""} for row in sums(100, 1000)]
    sources = sums(100), options, sums(100, 2000)
    more = {"s2": {"more": 'task = "counting"'}}
    train = {"train": 60, "validation": 10, "test": 10}
    splits, _ = curation.curate(recipe_of(*sources, **more), train, 0)
    assert {(row["source"], row["task"]) for row in splits["train"]} == {
        ("s0", "word problem"), ("s1", "exam"), ("s2", "counting")}
    recipe = recipe_of(*sources, **more, tail='[balance.tasks]\nexam = 4\n"word problem" = 1\nart = 9\n')
    splits, ledger = curation.curate(recipe, train, 0)
    assert Counter(splits["train"]["task"]) == {"exam": 40, "word problem": 10, "counting": 10}
    assert any(re.match(r"train, balanced by task: art 0 of 0, counting 10 of \d+, exam 40 of", note)
               for note in ledger.notes)
    with pytest.raises(ValueError, match=r"\[balance\] has weights of domains and of tasks, .*: take one away"):
        recipe_of(*sources, tail="[balance]\ndomains = {maths = 1}\ntasks = {exam = 1}\n")


@pytest.mark.parametrize(("share", "long", "short"), [
    (None, 30, 30), (0.2, 10, 40), (0, 0, 45), (0.6, 30, 30), (1, 30, 30)])
def test_long_rows_are_at_most_their_share_of_the_worked_ones(recipe_of, share, long, short):
    """Short and unworked rows take the places of those that leave, and the ledger has each of these."""
    steps = " and so on" * 20
    many = [{**row, "r": row["r"] + steps} for row in sums(100)], sums(100, 1000), sums(80, 2000, r="")
    tail = "" if share is None else f"[balance]\nlong = {share}\nwords = 40\n"
    splits, ledger = curation.curate(recipe_of(*many, tail=tail), {"train": 90, "validation": 5, "test": 5}, 0)
    lengths = [len(text.split()) for text in splits["train"]["reasoning"]]
    found = sum(n >= 40 for n in lengths), sum(0 < n < 40 for n in lengths)
    assert found == (long, short) and len(lengths) == 90
    left_out = [row for row in ledger.dropped if row.step == "balance by length"]
    assert all(row.id.startswith("s0-") and row.example.startswith("61 words: What is") for row in left_out)
    assert bool(left_out) is (long < 30) or share == 0.6
    again, _ = curation.curate(recipe_of(*many, tail=tail), {"train": 90, "validation": 5, "test": 5}, 0)
    assert again["train"].to_list() == splits["train"].to_list()


def test_shares_follow_weights_and_what_there_is():
    assert share_out({"a": 5, "b": 5}, {"a": 1, "b": 1}, 100) == {"a": 5, "b": 5}
    assert sum(share_out({"a": 900, "b": 70, "c": 4}, {"a": 1, "b": 1, "c": 5}, 101).values()) == 101
    assert share_out({}, {}, 10) == {}


def test_a_recipe_of_families_alone_is_made_as_before():
    recipe = load_recipe("tiny_mix")
    splits, ledger = curation.curate(recipe, {"train": 20, "test": 5}, 0)
    want = problems.make_splits(recipe, {"train": 20, "test": 5}, 0)
    assert all(splits[name].to_list() == want[name].to_list() for name in want) and not ledger.steps


def test_a_rubric_of_ones_own_holds_the_worked_steps():
    rubric = (Criterion("Steps", "As in: {reasoning}", 1.0), Criterion("Clear", "Is clear.", 0.3))
    filled = problems.fill_rubric(rubric, "1+1=2", "number", "2")
    assert [criterion.description for criterion in filled] == ["As in: 1+1=2", "Is clear."]


@pytest.mark.parametrize(("kind", "answer", "told"), [
    ("open", "Rest and {reasoning}.", "Is right. Compare with this reference, which may be worded otherwise and leave "
                                      "things out: Rest and {reasoning}."),
    ("open", "a" * 1500, "Is right. Compare with this reference, which may be worded otherwise and leave things out: "
                         + "a" * 1000),
    ("open", " ", "Is right."), ("open", "", "Is right."), ("number", "2", "Is right."),
    ("choice", "(A)", "Is right.")])
def test_the_judge_sees_the_reference_of_an_open_question_alone(kind, answer, told):
    rubric = (Criterion("Right", "Is right.{reference}", 1.0),)
    assert problems.fill_rubric(rubric, "steps", kind, answer)[0].description == told
