"""What the setup cell shows and refuses. The session has no model, network or accelerator unless a test gives one."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from IPython.core.interactiveshell import InteractiveShell

from reasonkit import precheck as module
from reasonkit.data import loading
from reasonkit.data.own_file import load_data
from reasonkit.models import mesh
from reasonkit.models.load import ASSETS, MODELS
from reasonkit.models.mesh import plan_mesh
from reasonkit.precheck import precheck, writer_of
from reasonkit.run import open_run
from reasonkit.session import secrets
from reasonkit.session.manifest import ASKED
from reasonkit.session.setup import CHOOSE, find_recipe


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """The rows of the tables that were shown, by their first cell."""
    for name in (*secrets.KAGGLE, *module.JUDGE_KEYS, "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    for name, folder in {"REASONKIT_INPUTS": "input", "REASONKIT_ARTIFACTS": "artifacts", "KAGGLE_CONFIG_DIR": "none",
                         "KAGGLEHUB_CACHE": "hub", "XDG_CACHE_HOME": "cache"}.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setattr(module.socket, "create_connection", offline)
    rows = {}

    def keep(page):
        for row in re.findall("<tr.*?</tr>", str(page), re.S):
            first, *rest = [re.sub("<.*?>", "", cell) for cell in re.findall("<td>(.*?)</td>", row, re.S)] or [""]
            rows[first] = rest

    monkeypatch.setattr(module, "display", keep)
    return rows


def offline(*_, **__):
    raise OSError("no network")


def on_any_chips(profile, devices, judge, **_):
    """The meshes without an estimate of memory."""
    return plan_mesh(devices, judge=judge)


def accelerators(monkeypatch, platform: str, count: int, kind: str = "TPU v5 lite") -> None:
    devices = [SimpleNamespace(platform=platform, device_kind=kind, id=number) for number in range(count)]
    monkeypatch.setattr(module.jax, "devices", lambda: devices)
    monkeypatch.setattr(mesh, "Mesh", lambda array, axes, axis_types: SimpleNamespace(  # takes only real devices
        shape=dict(zip(axes, array.shape, strict=True))))


def test_the_demo_is_ready_and_says_who_chose_what(shown, tmp_path):
    precheck("smoke", "g_rar", 3, {"sft_steps": 5, "grpo_steps": 0, "judge": ""}, "")
    assert shown["profile"] == ["smoke", "this cell"] and shown["seed"] == ["3", "this cell"]
    assert shown["sft_steps"] == ["5", "this cell"] and shown["grpo_steps"] == ["2", "profile"]
    assert shown["data"] == ["Tiny mix: five procedural families, five answer kinds: 5 sources", ""]
    assert shown["tiny-judge"] == [str(ASSETS / "judge"), ""] and "internet" not in shown
    assert not (tmp_path / "artifacts").exists(), "a run that is not begun leaves nothing"


def test_a_notebook_whose_stage_the_recipe_lacks_says_so_first(shown, tmp_path, capsys):
    shell, told = InteractiveShell(), "The recipe 'g_rar' has no SimPO, so this notebook does nothing and changes "
    shell.user_ns["precheck"] = precheck
    shell.run_cell("precheck('smoke', 'g_rar', 0, {}, None, 'simpo')")
    said = capsys.readouterr().out
    assert said.startswith(told) and "03_grpo_with_judge" in said and "Traceback" not in said and said.count("\n") == 1
    assert not shown and not (tmp_path / "artifacts").exists()
    precheck("smoke", "g_rar", 0, {}, None, "teacher")  # which may be asked for its pairs


def test_a_value_of_the_recipe_is_told_from_the_profiles(shown, monkeypatch):
    accelerators(monkeypatch, "cpu", 1)
    with pytest.raises(RuntimeError):
        precheck("kaggle", "idea_e", 0, {"grpo_steps": 0, "sft_steps": 0})
    assert (shown["grpo_steps"], shown["sft_steps"]) == (["600", "recipe"], ["1000", "profile"])


def test_everything_that_is_missing_is_one_error(shown, monkeypatch, tmp_path):
    accelerators(monkeypatch, "gpu", 1, "Tesla T4")
    wrong = tmp_path / "input/models/google/gemma-2/transformers/gemma-2-2b-it/2"
    wrong.mkdir(parents=True)
    (wrong / "config.json").touch()
    with pytest.raises(RuntimeError) as caught:
        precheck("kaggle", "g_rar", 0, {})
    said = str(caught.value)
    assert f"accelerator: profile 'kaggle' is for a TPU: {CHOOSE}" in said and shown["accelerator"][0] == "1 × Tesla T4"
    assert "attach google/gemma-2/flax/gemma2-2b-it/1 and google/gemma-3/flax/gemma3-12b-it/1 (Kaggle: Add" in said
    assert "or set the secret KAGGLE_API_TOKEN" in said and "or turn Internet on" in said
    assert "models/google/gemma-2/transformers/gemma-2-2b-it/2 (no tokenizer.model)" in shown["gemma2-2b-it"][0]


def test_a_model_that_can_be_downloaded_stops_nothing(shown, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "KGAT_0123456789")
    monkeypatch.setattr(module.socket, "create_connection", lambda *_, **__: SimpleNamespace(close=lambda: None))
    accelerators(monkeypatch, "cpu", 2)
    precheck("cpu-gemma3-270m", "gym", 0, {})
    assert shown["Kaggle&#39;s credentials"] == ["there", ""] and shown["internet"] == ["on", ""]
    assert "0123456789" not in str(shown)


def test_a_key_that_cannot_be_sent_is_named_and_not_shown(shown, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "KGAT 0123456789")
    accelerators(monkeypatch, "cpu", 2)
    with pytest.raises(RuntimeError, match="Kaggle's credentials: .* hold a space") as caught:
        precheck("cpu-gemma3-270m", "gym", 0, {})
    assert "0123456789" not in f"{shown} {caught.value}"


def test_a_model_may_be_a_folder_of_ones_own(shown, tmp_path):
    shutil.copytree(ASSETS / "policy", tmp_path / "mine")
    precheck("smoke", "g_rar", 0, {"policy": str(tmp_path / "mine")})
    assert shown[str(tmp_path / "mine")] == [str(tmp_path / "mine"), ""]


def test_a_damaged_model_is_named(shown, tmp_path):
    shutil.copytree(ASSETS / "policy", tmp_path / "input/tiny-policy")
    (tmp_path / "input/tiny-policy/tokenizer.model").write_bytes(b"no model")
    with pytest.raises(RuntimeError, match="tiny-policy: .* is no SentencePiece model"):
        precheck("smoke", "g_rar", 0, {})


@pytest.mark.parametrize(("settings", "count", "message"), [
    ({"policy": "gemma3-12b-it"}, 8, "memory: the policy needs .* take a smaller model or fewer rows"),
    ({}, 3, "memory: sft_batch_size = 16 rows cannot be split over fsdp=3 chips: make it 15 or 18"),
    ({"simpo_batch_size": 3}, 8, "memory: 2 x simpo_batch_size = 6 rows cannot be split"),
    ({"distill_batch_size": 3}, 8, "memory: distill_batch_size = 3 rows cannot be split over fsdp=4 chips"),
    ({"eval_batch": 100}, 8, "memory: eval_batch = 100 rows cannot be split over fsdp=8 chips: make it 96 or 104"),
    ({"judge_batch": 3}, 8, "memory: judge_batch = 3 rows cannot be split over fsdp=2 chips: make it 2 or 4"),
    ({"grpo_num_generations": 3, "grpo_micro_prompts": 2}, 8,
     "memory: grpo_micro_prompts x grpo_num_generations = 6 rows cannot be split over fsdp=4 chips: make it 4 or 8")])
def test_what_does_not_fit_the_chips_is_named(shown, monkeypatch, settings, count, message):
    recipe = {"simpo_batch_size": "pinocchio", "distill_batch_size": "on_policy_distillation"}
    accelerators(monkeypatch, "tpu", count)
    if count == 3:
        monkeypatch.setattr(module.placement, "plan", on_any_chips)
    with pytest.raises(RuntimeError, match=message):
        precheck("kaggle", recipe.get(next(iter(settings), ""), "g_rar"), 0, settings)


def test_grpo_without_a_judge_is_planned_as_grpo(shown, monkeypatch):
    """Here and in notebook 3. By SFT's formula it would fit."""
    accelerators(monkeypatch, "tpu", 1)
    with pytest.raises(RuntimeError, match="memory: the policy needs 15.4 GB of each of its 1 devices"):
        precheck("colab", "idea_e", 0, {"policy": "gemma2-2b-it"})
    notebook = Path(__file__).parents[1] / "notebooks/03_grpo_with_judge.py"
    assert "judge=local, grpo=True)" in notebook.read_text(encoding="utf-8")


@pytest.mark.parametrize("key", ["GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY"])
@pytest.mark.parametrize(("dollars", "names"), [(0, {"gemma2-2b-it", "gemma3-12b-it"}), (5, {"gemma2-2b-it", "judge"})])
def test_a_judge_behind_an_api_is_asked_for_by_its_dollars_alone(shown, monkeypatch, key, dollars, names):
    """A key that is there for a teacher used to replace the local judge. Where an API judges, no model is loaded for
    it, and the policy has the chips."""
    accelerators(monkeypatch, "tpu", 8)
    monkeypatch.setenv(key, "sk-0123456789")
    with pytest.raises(RuntimeError):
        precheck("kaggle", "g_rar", 0, {"api_dollars": dollars} if dollars else {})
    assert {"gemma2-2b-it", "gemma3-12b-it", "judge"} & shown.keys() == names
    assert ("the second half" in shown["memory"][0]) == ("judge" not in names) and "0123456789" not in str(shown)


@pytest.mark.parametrize(("recipe", "key", "stage", "cell", "message"), [
    ("g_rar", "", "data", True,
     "judge: set one of the secrets GEMINI_API_KEY, GOOGLE_API_KEY, OPENAI_API_KEY, or leave api_dollars"),
    ("pinocchio", "", "submission", True, "judge: set one of the secrets GEMINI_API_KEY, GOOGLE_API_KEY, OPENAI_API_K"),
    ("pinocchio", "GEMINI_API_KEY", "submission", True, r"^((?!judge: )(?s:.))*$"),
    ("g_rar", "GEMINI_API_KEY", "submission", False,
     "judge: take the notebooks of a clone or the submission of pinocchio, which have one, or leave api_dollars out")])
def test_a_judge_behind_an_api_needs_its_key_and_its_cell(shown, monkeypatch, recipe, key, stage, cell, message):
    """The local judge in its place would be another run than the one asked for. `make kaggle` has the code, and its
    notebook may have no cell that asks."""
    accelerators(monkeypatch, "tpu", 8)
    if key:
        monkeypatch.setenv(key, "sk-0123456789")
    with pytest.raises(RuntimeError, match=message):
        precheck("kaggle", recipe, 0, {"api_dollars": 5}, stage=stage, api_judge=cell)
    assert ("generativelanguage" in shown["judge"][0]) == bool(key and cell)


@pytest.mark.parametrize(("key", "package"), [("GEMINI_API_KEY", "google-genai"), ("OPENAI_API_KEY", "openai")])
def test_an_api_whose_package_is_missing_is_named_before_hours_of_sft(shown, monkeypatch, key, package):
    accelerators(monkeypatch, "tpu", 8)
    monkeypatch.setenv(key, "sk-0123456789")
    monkeypatch.setitem(sys.modules, package.replace("-", "."), None)
    monkeypatch.delattr("google.genai", raising=False)
    with pytest.raises(RuntimeError, match=f"judge: .* needs {package}: pip install {package} in a cell above this o"):
        precheck("kaggle", "g_rar", 0, {"api_dollars": 5})


@pytest.mark.parametrize(("secrets", "message"), [
    ({"GEMINI_API_KEY": "sk-0123456789", "GEMINI_MODEL": "gemini-x"},
     "judge: no price is known for model 'gemini-x' .* into PRICES of recipes/judges/.*, or leave api_dollars out"),
    ({"GEMINI_API_KEY": "sk 0123456789"}, "judge: GEMINI_API_KEY is empty, or holds a space"),
    ({"OPENAI_API_KEY": "sk-0123456789", "OPENAI_BASE_URL": "api.example.com"}, "judge: the base URL of the service")])
def test_an_api_that_cannot_be_asked_is_named_before_hours_of_sft(shown, monkeypatch, secrets, message):
    """An unknown price was an error of notebook 3. A teacher's is not asked for here: notebook 1b has PRICE."""
    accelerators(monkeypatch, "tpu", 8)
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=message) as caught:
        precheck("kaggle", "g_rar", 0, {"api_dollars": 5})
    assert "0123456789" not in f"{shown} {caught.value}"
    with pytest.raises(RuntimeError) as caught:
        precheck("kaggle", "gemmatron", 0, {}, stage="teacher", teacher="api")
    assert ("- teacher: " in str(caught.value)) == ("GEMINI_MODEL" not in secrets)


@pytest.mark.parametrize(("recipe", "names"), [
    ("deep_corgi", {"gemma2-2b-it", "gemma3-12b-it"}), ("on_policy_distillation", {"gemma2-2b-it", "gemma2-9b-it"})])
def test_a_stage_that_reads_another_model_needs_it_whatever_key_there_is(shown, monkeypatch, recipe, names):
    accelerators(monkeypatch, "tpu", 8)
    monkeypatch.setenv("GEMINI_API_KEY", "sk-0123456789")
    with pytest.raises(RuntimeError, match="attach google/gemma-2/flax/gemma2-2b-it/1 and google/gemma-[23]/flax"):
        precheck("kaggle", recipe, 0, {"api_dollars": 5})
    assert {*MODELS, "judge"} & shown.keys() == names and "the second half" in shown["memory"][0]


KEYS = "set one of the secrets GEMINI_API_KEY, GOOGLE_API_KEY, OPENAI_API_KEY, or"


@pytest.mark.parametrize(("recipe", "stage", "teacher", "rater", "message"), [
    ("gemmatron", "submission", "", "", "gemma2-2b-it/1 and google/gemma-3/flax/gemma3-12b-it/1 .Kaggle"),
    ("gemmatron", "submission", "api", "", rf"gemma2-2b-it/1 \((?s:.*)\n- teacher: {KEYS} give TEACHER the name of a"),
    ("gemmatron", "data", "", "", r"gemma2-2b-it/1 \("),  # notebook 1 of a clone comes after it
    ("gemmatron", "teacher", "gemma3-4b-it", "local", "gemma3-4b-it/1 and google/gemma-3/flax/gemma3-12b-it/1 .Kagg"),
    ("gemmatron", "teacher", "", "api", f"\n- the teacher's judge: {KEYS} set JUDGE = .local"),
    ("g_rar", "teacher", "policy", "", "\n- teacher: run notebook 2 first, or change TEACHER"),
    ("g_rar", "submission", "api", "", "\n- teacher: leave TEACHER empty, or change RECIPE")])
def test_a_teacher_is_checked_where_it_is_asked(shown, monkeypatch, recipe, stage, teacher, rater, message):
    """Its model used to be shown as missing without a remedy, and a missing key after the hub was read."""
    accelerators(monkeypatch, "tpu", 8)
    with pytest.raises(RuntimeError, match=message):
        precheck("kaggle", recipe, 0, {}, None, stage, teacher, rater)
    assert ("gemma3-12b-it" in shown) == (recipe == "g_rar" or "12b" in message or rater == "api")


def test_a_teacher_that_does_not_fit_the_chips_is_named(shown, monkeypatch):
    accelerators(monkeypatch, "tpu", 1)
    with pytest.raises(RuntimeError, match="memory: gemma3-12b-it, which writes in the policy's place: the policy ne"):
        precheck("colab", "gemmatron", 0, {}, stage="submission", teacher="gemma3-12b-it")


def test_who_writes_follows_from_the_choice_the_recipe_the_data_and_what_has_begun(tmp_path):
    run = open_run("smoke", "g_rar", 0, tmp_path)
    taught = replace(run, recipe=find_recipe("gemmatron"))
    toys, mix = (load_data(name) for name in ("gemmatron_toy", "tiny_mix"))
    asked = [(run, "", mix, ""), (run, "", toys, "api"), (run, "gemma3-4b-it", mix, "gemma3-4b-it"),
             (taught, "", toys, "tiny-policy"), (taught, "api", mix, "api"),
             (taught, str(tmp_path), toys, str(tmp_path))]
    assert [writer_of(*choice) for *choice, _ in asked] == [who for *_, who in asked]
    run.finish("teacher", inputs={}, metrics={"traces": 3}, minutes=1.0)
    assert writer_of(taught, "", toys) == "tiny-policy", "it may be asked for more"
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / ASKED).touch()
    for teacher in ("", "api", "gemma3-4b-it"):
        assert writer_of(taught, teacher, toys) == "", "other traces would be other rows"
    assert writer_of(taught, "policy", toys) == "policy" and writer_of(run, "api", mix) == "api"
    with pytest.raises(ValueError, match="TEACHER='gemma-3-12b-it' is neither .* nearest is 'gemma3-12b-it'"):
        writer_of(taught, "gemma-3-12b-it", toys)


def test_a_teacher_of_another_family_is_named_before_sft(shown, monkeypatch):
    """Its tokens are others. It used to be loaded after hours of SFT, and then refused."""
    accelerators(monkeypatch, "tpu", 8)
    with pytest.raises(RuntimeError, match="attach google/gemma-3/flax/gemma3-1b-it/1 and google/gemma-3/flax/gemma3-"):
        precheck("kaggle", "on_policy_distillation", 0, {"policy": "gemma3-1b-it"})
    assert "gemma3-12b-it" in shown and "gemma2-9b-it" not in shown
    with pytest.raises(ValueError, match="'gemma3-4b-it' splits text into other tokens than the policy 'gemma2-2b-it': "
                                         "set distill_teacher to one of gemma2-2b, gemma2-2b-it, gemma2-9b-it$"):
        precheck("kaggle", "on_policy_distillation", 0, {"distill_teacher": "gemma3-4b-it"})


def test_rows_that_are_made_need_no_hub(shown, monkeypatch, tmp_path):
    run = open_run("smoke", "g_rar", 0, tmp_path / "artifacts")
    rows = tmp_path / "artifacts/data/train.parquet"
    rows.parent.mkdir()
    rows.write_text("{}")
    run.finish("data", inputs={"train": rows}, metrics={}, minutes=0.1, asked=run.data_asked(load_data("tiny_mix")))
    run.close()
    asked = []
    monkeypatch.setattr(module, "used_sources", lambda *_: asked.append(1) or [])
    precheck("smoke", "g_rar", 0, {}, "")
    assert shown["data"] == ["made in an earlier session", ""] and not asked
    precheck("smoke", "g_rar", 0, {}, "", "teacher")  # which asks other questions
    precheck("smoke", "g_rar", 0, {}, "few_traces")
    assert len(asked) == 2
    precheck("smoke", "g_rar", 1, {}, "")
    assert len(asked) == 3, "those of a run that this one replaces are made again"
    with pytest.raises(ValueError, match="holds the run .*, and .* was asked for: .* run notebook 01"):
        precheck("smoke", "g_rar", 1, {}, stage="sft")
    rows.write_text("{}{}")
    precheck("smoke", "g_rar", 0, {}, "")
    assert len(asked) == 4, "changed rows are made again"
    with pytest.raises(RuntimeError, match="data: unknown data recipe 'tiny_mx'"):
        precheck("smoke", "g_rar", 0, {}, "tiny_mx")


def test_an_evaluation_needs_no_judge_and_runs_in_the_reserve(shown, monkeypatch, tmp_path):
    accelerators(monkeypatch, "cpu", 8)
    (tmp_path / "artifacts/grpo").mkdir(parents=True)
    (tmp_path / "artifacts/grpo/manifest.json").write_text("{}")
    precheck("smoke", "g_rar", 0, {})
    assert "tiny-judge" in shown, "its notebook reads the stage back, and loads the judge for that"
    shown.clear()
    precheck("smoke", "g_rar", 0, {}, stage="evaluation")
    assert "tiny-policy" in shown and "tiny-judge" not in shown and "there is no local judge" in shown["memory"][0]
    accelerators(monkeypatch, "gpu", 1)
    monkeypatch.setattr(module.placement, "plan", on_any_chips)
    monkeypatch.setattr(module.load, "locate", lambda name: tmp_path)
    monkeypatch.setattr(module.load, "tokenizer", lambda name: None)
    started = {"boot_id": module.TimeBudget()._record["boot_id"], "stages": {}, "took": {}}
    now = module.TimeBudget()._clock()
    (tmp_path / "artifacts/ledger.json").write_text(json.dumps({"started": now - 60 * 115, **started}))
    precheck("gpu-gemma3-270m", "g_exact", 0, {})
    assert shown["minutes"] == ["0 of 120 left for training, 10 kept for the evaluation", ""]


def test_a_session_that_has_grown_keeps_its_ledger(shown, tmp_path):
    ledger = tmp_path / "artifacts/ledger.json"
    ledger.parent.mkdir()
    clock = module.TimeBudget()
    ledger.write_text(json.dumps({"started": clock._clock() - 3600, "boot_id": clock._record["boot_id"], "hours": 5.0,
                                  "stages": {"sft": {"steps": 7, "seconds": 9.0}}, "took": {}}))
    before = ledger.read_text()
    precheck("smoke", "g_exact", 0, {})
    assert ledger.read_text() == before


def test_a_full_disk_and_a_session_without_time_are_named(shown, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1e6))
    monkeypatch.setattr(module.placement, "plan", on_any_chips)
    accelerators(monkeypatch, "gpu", 1)
    with pytest.raises(RuntimeError, match="(?s)disk: make room .*minutes: reserve_minutes=10 takes all of the .* 5"):
        precheck("gpu-gemma3-270m", "gym", 0, {"minutes": 5})


@pytest.mark.parametrize(("data", "message"), [
    ("tiny_mx", "data: unknown data recipe 'tiny_mx' .* The nearest is 'tiny_mix'"), ("gone.csv", "data: .*gone.csv")])
def test_data_that_cannot_be_read_is_named(shown, data, message):
    with pytest.raises(RuntimeError, match=message):
        precheck("smoke", "g_rar", 0, {}, data)


def test_data_that_the_hub_does_not_give_are_named_with_a_mix_that_does_without_it(shown, monkeypatch):
    monkeypatch.setattr(loading, "load_dataset", offline)
    with pytest.raises(RuntimeError, match='data: source .gsm8k. can.t be opened (?s:.)*set DATA = "packaged" in th'):
        precheck("smoke", "g_rar", 0, {}, "gsm8k", "submission")


def test_what_a_teacher_has_yet_to_write_is_not_asked_for(shown, tmp_path, monkeypatch):
    """In a submission all notebooks are one, so the teacher's come after this check. Later it finds the file gone."""
    monkeypatch.chdir(tmp_path)
    for recipe, data, stage in (("gemmatron", "", "submission"), ("gemmatron", "", "data"),
                                ("g_rar", "gemmatron_toy", "teacher")):
        shown.clear()
        precheck("smoke", recipe, 0, {}, data, stage, "tiny-policy" * (stage == "teacher"))
        assert shown["data"] == ["Gemmatron toys: solutions by the model: 1 sources", ""]
    (tmp_path / "artifacts" / "teacher").mkdir(parents=True)
    (tmp_path / "artifacts" / "teacher" / "manifest.json").touch()
    with pytest.raises(RuntimeError, match="data: source 'taught' can't be opened .*: run notebook 1b"):
        precheck("smoke", "gemmatron", 0, {}, "")
