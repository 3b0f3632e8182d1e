"""The card from manifests as the notebooks write them."""

from __future__ import annotations

import re

import pytest

from reasonkit.text.tags import TAGS
from tools.card import NOTICE, write_card

DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def test_the_card_says_what_the_manifests_say(export):
    card = (export / "README.md").read_text()
    assert card.startswith('---\nlicense: gemma\nbase_model: "google/gemma-2-2b-it"\n')
    for words in ("one LoRA adapter (rank 64, alpha 64.0)", f"````\n{TAGS.template}\n````",
                  "| stock | 12.5 % \\[10.0, 15.0\\] | 75.0 % \\[70.0, 80.0\\] | "
                  "90.0 % \\[80.0, 95.0\\] | 25.0 % \\[20.0, 30.0\\] |",
                  "| after SFT | 50.0 % \\[40.0, 60.0\\] |", "600 test problems", "Tiny mix, Apache-2.0. 3000 train",
                  "| stage | minutes | steps | ended by | settings |",
                  "| sft | 12.5 | 120 of 120 | its last step | learning\\_rate 2e-05 |",
                  "| data | 12.5 | – | – | – |", "jax ", NOTICE.strip()):
        assert words in card
    assert (export / "NOTICE").read_text() == NOTICE
    assert "Nothing else" not in card, "GRPO has a judge read open questions"


def test_the_data_card_goes_along(tmp_path, manifests):
    (tmp_path / "README.md").write_text("# Data\n")
    write_card(tmp_path / "out", manifests, "base", tmp_path / "README.md")
    assert (tmp_path / "out" / "DATA.md").read_text() == "# Data\n"


def test_a_run_that_the_clock_cut_short_says_so_before_any_figure(tmp_path, manifests, export):
    assert "cut short" not in (export / "README.md").read_text()
    manifests[1]["metrics"]["steps"], manifests[1]["extra"]["stopped"] = 83, "time"
    card = write_card(tmp_path / "short", manifests, "base").read_text()
    said = "**Stage sft was cut short: 83 of 120 steps, ended by the clock. What follows is of that shorter run.**"
    assert card.split("---\n")[2].splitlines()[2] == said, "right below the title"
    assert "| sft | 12.5 | 83 of 120 | the clock | learning\\_rate 2e-05 |" in card


def test_no_name_turns_the_card_round(tmp_path, manifests):
    manifests[0]["extra"]["title"] = "\u202eevil\u2066"
    card = write_card(tmp_path, manifests, "base").read_text()
    assert "\\[U+202E\\]evil\\[U+2066\\]" in card and not set(card) & set(DIRECTIONS)


@pytest.mark.parametrize("lengths", [[300], [300, "1100)\nimport os"], None, 7])
def test_lengths_that_are_no_two_numbers_are_refused(tmp_path, manifests, lengths):
    manifests[0]["extra"]["asked"]["lengths"] = lengths
    with pytest.raises(ValueError, match="no card: the manifest of 'data' has no two lengths"):
        write_card(tmp_path / "out", manifests, "base")
    assert not (tmp_path / "out").exists()


def test_names_from_files_are_no_markup(tmp_path, manifests):
    manifests[0]["extra"]["title"] = "a | b\n# <script>[x](y)"
    card = write_card(tmp_path, manifests, "x: y\n---\n# z").read_text()
    assert "a \\| b \\# \\<script\\>\\[x\\](y), Apache-2.0." in card and "<script>" not in card
    assert card.splitlines()[2] == 'base_model: "x: y\\n---\\n# z"' and "\n# z" not in card


@pytest.mark.parametrize("without", ["data", "evaluation", "licence", "problems", "asked"])
def test_a_card_without_its_facts_is_not_written(tmp_path, manifests, without):
    for manifest in manifests:
        manifest["extra"].pop(without, None)
    kept = [manifest for manifest in manifests if manifest["stage"] != without]
    missing = {"licence": "no card: the manifest of 'data' has no licence",
               "asked": "no card: the manifest of 'data' has no two lengths, of prompt and completion",
               "problems": "no card: the manifest of 'evaluation' has no problems"}.get(
        without, f"the card needs '{without}' of the manifests ")
    with pytest.raises(ValueError, match=f"{missing}.*[:,] run the notebooks from 01 again"):
        write_card(tmp_path / "out", kept, "base")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("figure", "value"), [
    ("stock", None), ("stock.form", None), ("stock.form", [1.0]), ("stock.form", [0.5, "0.4", 0.6])])
def test_a_card_without_a_figure_is_not_written(tmp_path, manifests, figure, value):
    place, (*way, last) = manifests[-1]["metrics"], figure.split(".")
    for name in way:
        place = place[name]
    place[last] = value
    with pytest.raises(ValueError, match="no card: the manifest of 'evaluation' lacks a figure .*: run the notebooks"):
        write_card(tmp_path / "out", manifests, "base")
    assert not (tmp_path / "out").exists()


def test_a_step_accuracy_that_was_not_measured_is_a_dash(tmp_path, manifests):
    for score in manifests[-1]["metrics"].values():
        del score["steps"]
    card = write_card(tmp_path / "out", manifests, "base").read_text()
    rows = [line for line in card.splitlines() if line.startswith(("| stock", "| after SFT"))]
    assert [row.split(" | ")[-1] for row in rows] == ["– |"] * 2


@pytest.mark.parametrize("stage", ["sft", "evaluation"])
@pytest.mark.parametrize("name", ["train", "test", "another name"])
def test_a_card_states_no_hash_of_another_file(tmp_path, manifests, stage, name):
    """The stages knew another file by that path than notebook 1 wrote."""
    other = next(manifest for manifest in manifests if manifest["stage"] == stage)
    other["inputs"] = {name: dict(manifests[0]["inputs"]["train"])}
    write_card(tmp_path / "same", manifests, "base")
    other["inputs"][name]["sha256"] = "0" * 64
    with pytest.raises(ValueError, match=f"train.jsonl has changed between the stages: '{stage}' knew another than "
                                         "those before it, and a card would state the hash of another file: run the"):
        write_card(tmp_path / "out", manifests, "base")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("file", "told", "count"), [
    ("config.json", 'pipeline("text-generation", "."', 2), ("Modelfile", "ollama create reasoner -f Modelfile", 1),
    ("adapter_config.json", 'from_pretrained("a \\"b\\"\\n```"', 1), ("gemma/_METADATA", 'load(".", mesh)', 1)])
def test_the_card_has_the_code_for_what_the_folder_holds(tmp_path, manifests, file, told, count):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("")
    card = write_card(tmp_path, manifests, 'a "b"\n```').read_text()
    asked = card.split("## Ask it")[1].split("## Scores")[0]
    assert told in asked and asked.count("\n```\n") == count
    assert limits(asked) == {
        "config.json": {"max_new_tokens": 1100, "max_tokens": 1100}, "adapter_config.json": {"max_new_tokens": 1100},
        "gemma/_METADATA": {"max_prompt_length": 300, "max_new_tokens": 1100}, "Modelfile": {}}[file]
    manifests[0]["extra"]["asked"]["lengths"] = [80, 64]
    shorter = limits(write_card(tmp_path, manifests, "base").read_text())
    assert shorter == ({"max_prompt_length": 80, "max_new_tokens": 64} if file == "gemma/_METADATA" else
                       dict.fromkeys(limits(asked), 1024)), "as generation_config.json has it"


def limits(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"(max_\w+)=(\d+)", text)}
