"""A file of one's own: columns and kinds are recognised, and what can't be used is named."""

import csv
import json
import re

import pytest

from reasonkit.data import loading
from reasonkit.data.curation import curate
from reasonkit.data.own_file import load_data
from reasonkit.data.problems import fill_rubric
from reasonkit.data.sources import SourceError
from reasonkit.judge.rubric import load_domain, rubric_from_json, rubric_to_json

SIZES = {"train": 100, "validation": 100, "test": 100}


def write_csv(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def test_fifty_rows_of_a_csv_are_split_by_kind(tmp_path):
    rows = [(f"A box holds {n} rows of 7 pens. How many pens are in {n} rows?", f"{n} * 7 = {7 * n}", str(7 * n))
            for n in range(2, 52)]
    recipe = load_data(write_csv(tmp_path / "mine.csv", ("Prompt", "rationale", "Target"), rows))
    assert recipe.title == "mine.csv (question from {Prompt}, answer from {Target}, reasoning from {rationale})"
    splits, ledger = curate(recipe, SIZES, 0)
    assert {name: len(some) > 0 for name, some in splits.items()} == dict.fromkeys(SIZES, True)
    assert sum(map(len, splits.values())) == 50, str(ledger)
    row = splits["train"][0]
    assert row["kind"] == "number" and row["reasoning"].endswith(f"= {row['answer']}") and row["source"] == "mine"
    assert row["licence"] == "your own"


def test_kinds_come_from_the_answers_and_open_rows_are_trained_on(tmp_path):
    kinds = {"yes": "yes_no", "12": "number", "Paris": "text", "": "open"}
    rows = [{"question": f"Question {n} about {word * 3}, said in the words of topic {n * n}?", "answer": answer}
            for n, (word, answer) in enumerate((word, answer) for word in ("sun", "moon", "tree", "iron", "salt")
                                               for answer in kinds for _ in range(6))]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits, _ = curate(load_data(str(path)), SIZES, 0)
    for name, some in splits.items():
        assert all(row["kind"] == kinds[row["answer"]] for row in some)
        assert ("open" in some["kind"]) is (name == "train")


def test_worked_answers_as_in_gsm8k_are_taken_apart(tmp_path):
    """They are longer than 60 characters, so every row used to be open."""
    rows = [(f"A box holds {n} rows of 7 pens and 3 loose ones. How many are {n} rows and these?",
             f"In {n} rows of 7 pens there are <<{n}*7={7 * n}>>{7 * n} pens in all.\nWith the loose ones that makes "
             f"{7 * n} + 3 = {7 * n + 3} pens.\n#### {7 * n + 3}\n") for n in range(200, 260)]
    recipe = load_data(write_csv(tmp_path / "mine.csv", ("Question", "Answer"), rows))
    assert recipe.title == ("mine.csv (question from {Question}, answer from {Answer}, and its work before #### as "
                            "reasoning)")
    splits, ledger = curate(recipe, SIZES, 0)
    assert all(splits.values()) and sum(map(len, splits.values())) == 60, str(ledger)
    row = splits["train"][0]
    assert row["kind"] == "number" and row["reasoning"].endswith(f"+ 3 = {row['answer']} pens.")
    assert "#" not in row["reasoning"] + row["answer"] and "<<" not in row["reasoning"]


@pytest.mark.parametrize(("header", "answer"), [
    (("question", "answer"), "#### Steps\nFirst add the two"),  # a heading of Markdown
    (("question", "answer"), 72), (("question", "reasoning", "answer"), "It is 70 + 2.\n#### 72")])
def test_other_answers_are_left_as_they_are(tmp_path, header, answer):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(dict.fromkeys(header, answer)) + "\n")
    assert load_data(str(path)).sources[0].reader == "plain"


def test_an_instruction_is_asked_with_its_input_as_in_alpaca(tmp_path):
    rows = [("Is this number even?" if n % 3 else f"Is the number {n} even?", str(n) if n % 3 else "",
             "no" if n % 2 else "yes") for n in range(60)]
    recipe = load_data(write_csv(tmp_path / "mine.csv", ("instruction", "Input", "output"), rows))
    assert recipe.title == "mine.csv (question from {instruction} {Input}, answer from {output})"
    asked = {row["question"] for some in curate(recipe, SIZES, 0)[0].values() for row in some}
    assert {"Is this number even?\n\n4", "Is the number 6 even?"} <= asked
    assert len(asked) == 60 and all(question == question.strip() for question in asked)


ASKED = [("How many pens are in total, if each of {} boxes holds 7 pens, and twice as many lie loose?", "maths"),
         ("Which drug is the treatment of choice for a patient of {} with acute gastritis?", "medicine"),
         ("May the tenant of flat {} sue the landlord for breach of contract?", "law"),
         ("What did the neighbours of number {} call their dog?", "general")]


@pytest.mark.parametrize("name", ["mine", "law"])
def test_each_question_has_the_rubric_of_its_domain_unless_the_file_is_named_after_one(tmp_path, name):
    path = write_csv(tmp_path / f"{name}.csv", ("question", "answer"),
                     [(text.format(n), f"it is {n}") for text, _ in ASKED for n in range(30, 50)])
    splits, _ = curate(load_data(path), SIZES, 0)
    for row in [row for rows in splits.values() for row in rows]:
        want = name if name == "law" else next(domain for text, domain in ASKED if row["question"][:9] == text[:9])
        assert row["domain"] == row["family"] == want
        assert row["rubric"] == rubric_to_json(fill_rubric(load_domain(want).rubric, "", row["kind"], row["answer"]))


def test_options_in_columns_of_their_own_are_shown(tmp_path):
    """They used to be left out without a word, and the question was one about letters that nobody sees."""
    path = write_csv(tmp_path / "mine.csv", ("question", "A", "B", "C", "answer", "page", "level"),
                     [(f"Which planet is number {n}?", f"Mars {n}", f"Venus {n}", f"Earth {n}", "B", n, n)
                      for n in range(40)])
    recipe = load_data(path)
    assert "options from (A) {A} (B) {B} (C) {C}" in recipe.title and recipe.title.endswith("; not used: page, level)")
    row = curate(recipe, SIZES, 0)[0]["train"][0]
    right = next(line for line in row["question"].splitlines() if "Venus" in line)
    assert row["kind"] == "choice" and row["answer"] == right.strip()


@pytest.mark.parametrize(("header", "options"), [
    (("question", "a", "b", "answer"), None),  # numbers to add, say
    (("question", "A", "B", "D", "answer"), "(A) {A} (B) {B}"), (("question", "A", "answer"), None)])
def test_only_columns_in_the_order_of_the_alphabet_are_options(tmp_path, header, options):
    path = write_csv(tmp_path / "mine.csv", header, [[f"{name} {n}" for name in header] for n in range(9)])
    assert load_data(path).sources[0].columns.get("options") == options


def test_a_rubric_in_a_cell_is_json_or_the_row_is_left_out(tmp_path):
    own = '[{"description": "Names the dish.", "title": "Dish", "weight": "essential"}]'  # in any order
    rows = [(f"How is dish number {n} made?", f"it takes {n} minutes", own if n % 4 else '[ {"title": "no end"')
            for n in range(2, 60)]
    path = write_csv(tmp_path / "mine.csv", ("question", "answer", "rubric"), rows)
    splits, ledger = curate(load_data(path), SIZES, 0)
    found = [rubric_from_json(row["rubric"]) for some in splits.values() for row in some]
    assert {tuple((criterion.title, criterion.weight) for criterion in rubric) for rubric in found} == {
        (("Reasoning leads to the answer", 1 / 3), ("Dish", 1.0))}
    assert "a rubric that is no JSON list of {title, description, weight}" in str(ledger)


@pytest.mark.parametrize(("name", "header", "rows", "message"), [
    ("mine.csv", ("text", "label"), [("a", "b")], "has the columns text, label, and none is a question"),
    ("mine.csv", ("question", "answer"), [], "has no row"),
    ("mine.txt", ("question", "answer"), [("a", "b")], "save it as one of them"),
])
def test_a_file_that_cannot_be_used_is_named(tmp_path, name, header, rows, message):
    path = write_csv(tmp_path / name, header, rows)
    with pytest.raises(SourceError, match=message):
        load_data(path)


def test_a_missing_file_and_an_unknown_recipe_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "ATTACHED", tmp_path / "input")
    with pytest.raises(SourceError, match="can't be opened .* as the Input pane copies it$"):
        load_data(str(tmp_path / "gone.csv"))
    there = [tmp_path / "input" / mount / "my [1].csv" for mount in ("old", "datasets/me/new/some/folder")]
    for path in there:
        path.parent.mkdir(parents=True)
        write_csv(path, ("question", "answer"), [("1 + 1?", 2)])
    named = re.escape(f". Attached by that name: {there[0]}, {there[1]}")
    with pytest.raises(SourceError, match=f"as the Input pane copies it{named}$"):
        load_data("/kaggle/input/new/my [1].csv")
    with pytest.raises(ValueError, match="unknown data recipe 'gone'"):
        load_data("gone")


def test_lines_of_json_may_lack_a_column_and_any_of_the_first_rows_shows_the_shape(tmp_path):
    """Alpaca's files leave out an empty input, and the first row may be the odd one."""
    rows = [{"instruction": f"Name the sum of {n} and {n + 1}.", "output": str(2 * n + 1)} if n % 2 == 0 else
            {"instruction": f"Add these, in topic {n * n}.", "input": f"{n} and {n + 1}",
             "output": f"{n} + {n + 1} = {2 * n + 1}\n#### {2 * n + 1}"} for n in range(60)]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits, ledger = curate(load_data(str(path)), SIZES, 0)
    made = [row for some in splits.values() for row in some]
    assert len(made) == 60 and {row["kind"] for row in made} == {"number"}, str(ledger)
    odd = next(row for row in made if "topic 9." in row["question"])
    assert odd["question"] == "Add these, in topic 9.\n\n3 and 4" and odd["reasoning"] == "3 + 4 = 7"
    assert odd["answer"] == "7" and next(row for row in made if "of 2 and" in row["question"])["answer"] == "5"
