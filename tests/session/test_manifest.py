"""Manifests: a stage hands over what belongs to the run, and says how far it came."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from test_run_log import room

from reasonkit.session.files import DiskFullError
from reasonkit.session.manifest import (
    ManifestError,
    caveats,
    file_sha256,
    has_failed,
    progress,
    prompt_hash,
    read_manifest,
    write_manifest,
)

PROMPT = prompt_hash("{question}")
LORA = {"rank": 64, "alpha": 64.0, "modules": ("q_einsum", "kv_einsum")}


@pytest.fixture
def write(tmp_path):
    """write(**changes): a manifest in tmp_path/sft, with one input file."""
    data = tmp_path / "train.jsonl"
    data.write_text("{}\n")

    def write(stage="sft", **changes):
        fields = {
            "inputs": {"train": data},
            "metrics": {"loss": np.float32(0.5), "steps": 282},
            "prompt_sha256": PROMPT,
            "lora": LORA,
            "minutes": 22.5,
        }
        return write_manifest(tmp_path / "sft", stage, **(fields | changes))

    return write


# -- hashes


def test_hashes_are_sha256():
    assert prompt_hash("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert prompt_hash("{question}\n") != prompt_hash("{question} \n")


def test_a_file_hash_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_folder_hash_depends_on_names_and_contents_alone(tmp_path, monkeypatch):
    def folder(name, files):
        for path, text in files:
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(text)
        return file_sha256(tmp_path / name)

    files = [("a.txt", "1"), ("b/c.txt", "2")]
    original = folder("one", files)
    assert folder("two", files) == original
    assert folder("renamed", [("a.txt", "1"), ("b/d.txt", "2")]) != original
    assert folder("changed", [("a.txt", "1"), ("b/c.txt", "3")]) != original
    assert folder("moved", [("a.txt", "1"), ("c.txt", "2")]) != original
    listed = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda *args: reversed(list(listed(*args))))
    assert file_sha256(tmp_path / "one") == original


def test_a_missing_input_is_named(tmp_path):
    with pytest.raises(ManifestError, match="absent does not exist"):
        file_sha256(tmp_path / "absent")


# -- manifests


def test_a_manifest_comes_back_with_what_went_in(write, tmp_path):
    path = write(extra={"accuracy": float("nan")})
    assert path == tmp_path / "sft" / "manifest.json"
    manifest = read_manifest(tmp_path / "sft", stage="sft", prompt_sha256=PROMPT, lora=LORA)
    assert manifest["stage"] == "sft" and manifest["minutes"] == 22.5
    assert manifest["metrics"] == {"loss": 0.5, "steps": 282}
    assert manifest["lora"] == {"rank": 64, "alpha": 64.0, "modules": ["q_einsum", "kv_einsum"]}
    data = tmp_path / "train.jsonl"
    assert manifest["inputs"] == {"train": {"path": "train.jsonl", "sha256": file_sha256(data)}}
    assert manifest["extra"] == {"accuracy": "nan"}
    time.strptime(manifest["written"], "%Y-%m-%dT%H:%M:%SZ")


def test_an_input_that_has_changed_since_is_named_also_where_the_run_was_moved(write, tmp_path):
    outside = tmp_path.parent / f"{tmp_path.name}.txt"
    outside.write_text("1")
    write(inputs={"train": tmp_path / "train.jsonl", "outside": outside})
    outside.write_text("2")
    assert read_manifest(tmp_path / "sft", stage="sft")["inputs"]["outside"]["path"] == str(outside)
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    read_manifest(moved / "sft", stage="sft")
    (moved / "train.jsonl").write_text("{}\n{}\n")
    with pytest.raises(ManifestError, match=f"{moved}/train.jsonl has changed since stage 'sft' was finished with it: "
                       r"put the old one back, or run notebook 02 \(02_sft_warm_start\) first with this one, and then"):
        read_manifest(moved / "sft", stage="sft")
    (moved / "train.jsonl").unlink()
    assert read_manifest(moved / "sft", stage="sft")["stage"] == "sft", "what is not there is not looked at"


def test_versions_are_those_installed(write, monkeypatch):
    import importlib.metadata as metadata

    def version(package):
        if package in ("qwix", "reasonkit"):
            raise metadata.PackageNotFoundError(package)
        return f"{package} 1.0"

    monkeypatch.setattr(metadata, "version", version)
    versions = json.loads(write().read_text())["versions"]
    assert versions == {name: f"{name} 1.0" for name in ("jax", "flax", "google-tunix")}


def test_a_new_manifest_replaces_the_old_one(write, tmp_path):
    write(minutes=1)
    write(minutes=2)
    assert read_manifest(tmp_path / "sft", stage="sft")["minutes"] == 2
    assert [item.name for item in (tmp_path / "sft").iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    "changes, error, said",
    [
        ({"stage": ""}, ManifestError, "stage is '', and must be a text"),
        ({"prompt_sha256": "{question}"}, ManifestError, r"prompt_sha256 is '\{question\}', and String should match"),
        ({"prompt_sha256": PROMPT + "\n"}, ManifestError, "prompt_sha256 is .*, and String should match"),
        ({"minutes": -1}, ManifestError, "minutes is -1, and should be greater"),
        ({"minutes": float("nan")}, ManifestError, "minutes is nan, and should be a finite"),
        ({"inputs": {"train": Path("absent.jsonl")}}, ManifestError, "absent.jsonl does not exist"),
        ({"metrics": {"loss": object()}}, TypeError, r"metrics\['loss'\] is a object"),
    ],
)
def test_a_manifest_that_would_mislead_is_not_written(changes, error, said, write, tmp_path):
    with pytest.raises(error, match=said):
        write(**changes)
    assert not (tmp_path / "sft").exists()


@pytest.mark.parametrize(
    "stage, said",
    [
        ("sft", r"run notebook 02 \(02_sft_warm_start\) first: .*manifest\.json"),
        ("other", "run stage 'other' first"),
    ],
)
def test_a_missing_manifest_says_what_to_run(stage, said, tmp_path):
    with pytest.raises(ManifestError, match=said):
        read_manifest(tmp_path / "absent", stage=stage)


@pytest.mark.parametrize("text", [
    "", '{"stage": "sft"', "[]", "null", '{"stage": "sft"}',
    '{"stage": "sft", "prompt_sha256": "", "lora": null, "inputs": {"train": "x"}}'])
def test_a_broken_manifest_says_what_to_do(text, tmp_path):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ManifestError, match=r"run notebook 02 .*manifest\.json is no manifest"):
        read_manifest(tmp_path, stage="sft")


def test_a_manifest_of_another_stage_is_refused(write, tmp_path):
    write(stage="grpo")
    with pytest.raises(ManifestError, match="written by stage 'grpo', not by 'sft'"):
        read_manifest(tmp_path / "sft", stage="sft")


def test_another_prompt_is_refused_even_by_one_space(write, tmp_path):
    write()
    other = prompt_hash("{question} ")
    with pytest.raises(ManifestError, match=f"another prompt .*{PROMPT[:12]}.*{other[:12]}"):
        read_manifest(tmp_path / "sft", stage="sft", prompt_sha256=other)


@pytest.mark.parametrize("trained", [LORA | {"rank": 32}, LORA | {"modules": ["q_einsum"]}, None])
def test_another_adapter_is_refused(trained, write, tmp_path):
    write(lora=trained)
    with pytest.raises(ManifestError, match="has the adapter .* this run wants .*64"):
        read_manifest(tmp_path / "sft", stage="sft", lora=LORA)
    assert read_manifest(tmp_path / "sft", stage="sft")["stage"] == "sft"  # not asked, not checked


@pytest.mark.parametrize("size", [0, 1, 100])
def test_a_manifest_that_does_not_fit_names_itself_and_keeps_the_old_one(size, write, tmp_path):
    path = write(minutes=1)
    with room(size), pytest.raises(DiskFullError, match=rf"{path} can't be written \(File too large\). It needs 0.00\d "
                                   r"MB, [\d.]+ MB are free. Make room on the disk of .*sft, or put the run on another "
                                   "one, and run the cell again: what was saved before is kept"):
        write(minutes=2)
    assert read_manifest(tmp_path / "sft", stage="sft")["minutes"] == 1
    assert [item.name for item in path.parent.iterdir()] == ["manifest.json"]


# -- how a stage ended


def manifest(stage="grpo", made=17, planned=64, **extra):
    return {"stage": stage, "metrics": {"steps": made}, "extra": {"settings": {"steps": planned}, **extra}}


@pytest.mark.parametrize(("stopped", "told"), [
    ("time", ("17 of 64", "the clock")), ("SIGTERM", ("17 of 64", "SIGTERM")), (None, ("17 of 64", "")),
])
def test_progress_is_what_was_made_of_what_was_asked_for(stopped, told):
    assert progress(manifest(stopped=stopped)) == told


def test_a_stage_that_made_all_steps_is_not_cut_short():
    whole = [manifest("sft", 120, 120, stopped="data"), manifest("grpo", 64, 64, stopped="closed")]
    assert caveats(whole) == caveats([manifest("sft", 99, 120, stopped="data")]) == []
    assert caveats([*whole, manifest(stopped="time")]) == [
        "Stage grpo was cut short: 17 of 64 steps, ended by the clock. What follows is of that shorter run."]
    assert caveats([manifest("sft", 0, 2)]) == [
        "Stage sft was cut short: 0 of 2 steps. What follows is of that shorter run."]


def test_a_failure_and_an_unfit_judge_are_told_whatever_the_steps():
    later = manifest(made=80, stopped="a failure: NoSignalError: no signal from rubric")
    later["metrics"]["unfit_judge"] = "9 of 9 pairs have no verdict"
    assert has_failed(later) and not has_failed(manifest(stopped="time"))
    assert not has_failed({"stage": "data", "metrics": {}})
    assert caveats([later]) == [
        "Stage grpo ended after 80 steps by a failure: NoSignalError: no signal from rubric. What follows is of its "
        "last good step.",
        "The judge failed its exam (9 of 9 pairs have no verdict). So stage grpo was trained without it."]


@pytest.mark.parametrize("other", [
    {"stage": "data", "metrics": {"train": 3000}, "extra": {}},
    {"stage": "evaluation", "metrics": {"stock": {"steps": [0, 0, 1]}}},
    {"stage": "sft", "metrics": {"steps": 3}, "extra": {}},
])
def test_a_stage_without_steps_has_no_progress(other):
    assert progress(other) == ("", "") and caveats([other]) == []
