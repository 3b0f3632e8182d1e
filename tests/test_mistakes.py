"""Mistakes that users made: each has one message that names the thing, the value and the remedy, or simply works.

`HELD` says which test holds a mistake, so that none is tested twice. The mistakes below it had no test.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reasonkit.data.curation import curate
from reasonkit.data.own_file import load_data
from reasonkit.models import load
from reasonkit.session.setup import check_choices

TESTS = Path(__file__).parent
HELD = {
    "a slip in PROFILE or RECIPE": "test_recipes.py test_an_unknown_profile_or_recipe_leaves_no_folder",
    "SEED is text, negative or a fraction": "test_recipes.py test_a_seed_that_is_none_is_named_and_leaves_no_folder",
    "a slip in the name or value of a setting": "session/test_setup.py test_a_setting_that_is_none_is_named",
    "02 before 01, 03 before 02, 04 first": "session/test_manifest.py test_a_missing_manifest_says_what_to_run",
    "another seed or profile in the same folder": "test_recipes.py test_the_folder_of_another_run_is_refused",
    "other settings in the next notebook":
        "test_recipes.py test_the_notebooks_of_a_run_have_the_same_settings_but_for_the_clock",
    "the cell of parameters was skipped": "session/test_setup.py test_cells_that_were_left_out_are_named",
    "a notebook of the clone alone": "session/test_setup.py test_a_notebook_alone_says_what_to_do",
    "Colab starts in the parent of a clone named reasonkit":
        "session/test_setup.py test_the_clones_own_folder_is_not_taken_for_the_library",
    "Kaggle without an accelerator":
        "session/test_setup.py test_a_kaggle_session_without_a_tpu_stops_before_anything_is_installed",
    "Kaggle without internet": "session/test_setup.py test_a_kaggle_session_without_network_stops_in_the_setup",
    "a bare image without an index": "session/test_setup.py test_pips_failure_is_one_error",
    "a package was imported before it was replaced":
        "session/test_setup.py test_a_version_that_was_replaced_after_its_import_needs_a_restart_until_there_is_one",
    "no judge attached, no TPU, no internet": "test_precheck.py test_everything_that_is_missing_is_one_error",
    "no model attached": "models/test_load.py test_what_cannot_be_downloaded_says_what_to_do",
    "another model attached": "models/test_load.py test_what_is_attached_instead_is_listed",
    "only tokenizer.model in the folder":
        "models/test_load.py test_a_part_that_was_deleted_beside_the_marker_names_both",
    "half a Flax checkpoint": "models/test_load.py test_half_a_flax_checkpoint_is_named",
    "half a safetensors": "tools/hf/test_weights.py test_half_a_download_is_named",
    "a model that is too large for the chips": "test_precheck.py test_what_does_not_fit_the_chips_is_named",
    "a finished stage is run twice": "session/test_reuse.py test_a_finished_stage_is_said_to_be_read_back",
    "the stop button once": "test_faults.py test_a_signal_saves_at_a_boundary_and_comes_again",
    "going on after a stop": "session/test_reuse.py test_a_stage_that_was_stopped_says_how_to_go_on",
    "the kernel was killed": "test_faults.py test_a_killed_run_continues",
    "the session was spent on reading":
        "session/test_time_budget.py test_a_stage_with_nothing_left_says_so_when_it_begins",
    "the folder of a session that is over":
        "session/test_time_budget.py test_an_older_ledger_belongs_to_an_ended_session",
    "an adapter was deleted": "session/test_reuse.py test_an_adapter_that_is_gone_is_named_with_a_remedy",
    "half a manifest": "session/test_manifest.py test_a_broken_manifest_says_what_to_do",
    "the clock ended a stage": "session/test_reuse.py test_a_stage_that_the_clock_cut_short_says_how_to_go_on",
    "two kernels in one folder": "session/test_interrupts.py test_the_second_process_is_told_whose_the_folder_is",
    "RECIPE gym without its package": "test_gym.py test_without_the_extra_it_says_what_to_install",
    "a grader without its package": "recipes/graders/test_worker.py test_a_missing_package_is_named_at_the_first_check",
    "a family with fewer problems than asked": "data/test_problems.py test_curation_ends_where_the_questions_do",
    "rows without reasoning": "data/test_screening.py test_a_row_without_reasoning_serves_all_but_sft",
    "a question that is too long": "data/test_screening.py test_a_row_that_stops_a_stage_is_left_out",
    "no column for the question": "data/test_own_file.py test_a_file_that_cannot_be_used_is_named",
    "a slip in a rubric": "judge/test_rubric.py test_a_file_that_cannot_be_used_is_named",
    "a slip in a data recipe, or its split": "data/test_problems.py test_a_recipe_that_cannot_be_used_is_named",
    "a data recipe without a licence": "data/test_problems.py test_a_key_that_a_recipe_lacks_is_named",
    "a reward of another length": "rewards/test_mix.py test_a_part_must_give_one_value_a_completion",
    "a reward that is not a number": "rewards/test_rules.py test_a_value_that_the_learner_cannot_use_is_no_signal",
    "a reward with TRL's signature": "rewards/test_mix.py test_tunix_calls_it_and_passes_the_group_size",
    "results of other problems are compared": "eval/test_evaluate.py test_paired_refuses_other_problems",
}
QUESTIONS = "".join(f"What is {n} + 5?,{n + 5}\n" for n in range(60))


@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
def test_the_mistake_is_held_by_a_test_that_there_is(held):
    file, name = held.split()
    assert re.search(rf"^def {name}\(", (TESTS / file).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("settings", [None, [], "grpo_steps=9"])
def test_settings_that_are_no_dict(settings):
    with pytest.raises(ValueError, match=re.escape(f"SETTINGS={settings!r}: give a dict, such as {{\"grpo_steps\"")):
        check_choices("cpu", "g_rar", 0, settings)


def test_the_profile_of_the_demo_in_a_submission(monkeypatch, tmp_path):
    monkeypatch.setattr(load, "ASSETS", tmp_path)
    monkeypatch.setenv("REASONKIT_INPUTS", str(tmp_path / "input"))
    with pytest.raises(FileNotFoundError, match="come with a clone .* not with a submission: choose a profile with a"):
        load.locate("tiny-policy")


@pytest.mark.parametrize(("name", "data", "message"), [
    ("mine.csv", f"question,answer\n{QUESTIONS}Wo ist Köln?,da\n".encode("latin-1"), "mine.csv can't be read .* UTF-8"),
    ("mine.csv", f"question,answer\n{QUESTIONS}".encode("utf-16"), "mine.csv can't be read .*text as UTF-8"),
    ("mine.csv", f"question;answer\n{QUESTIONS.replace(',', ';')}".encode(), "columns question;answer.* a comma"),
    ("mine.csv", QUESTIONS.encode(), "columns What is 0 . 5., 5, and none is a question: rename one"),
    ("mine.parquet", f"question,answer\n{QUESTIONS}".encode(), "mine.parquet can't be read .* save it again"),
    ("mine.json", b'{"data": [', "mine.json can't be read .* save it again"),
    ("mine.csv", b"question,answer\nWhat is 2 + 2?,4\n", "has no row for .*, validation: give more different"),
    ("mine.csv", b"question\n" + b"Why?\nHow?\nWhen?\n", "has no row for .*: .* answer can be checked"),
    ("mine.csv", "question,answer\nHow old?,3\n{}".format("".join(
        f"Why {word}?,Because of {word}{' and so on' * 5}\n" for word in ("sun", "moon", "rain"))).encode(),
     "no row for .*: .* 3 of 4 rows are open. No program .* for training only. .* no answer of at most 60 characters"),
    ("mine.toml", b"title =", "unknown data recipe '.*mine' in .* choose one of chemistry"),
])
def test_a_file_that_another_program_wrote(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        curate(load_data(str(tmp_path / name)), {"train": 40, "validation": 5, "test": 5}, 0)


@pytest.mark.parametrize("name", ["mine.csv", "MINE.CSV"])
@pytest.mark.parametrize("header", ["question,answer", "\ufeffQuestion, Answer "])
def test_spellings_that_work(tmp_path, name, header):
    (tmp_path / name).write_text(f"{header}\n{QUESTIONS}", encoding="utf-8")
    splits, _ = curate(load_data(str(tmp_path / name)), {"train": 40, "validation": 3, "test": 3}, 0)
    assert len(splits["train"]) == 40
