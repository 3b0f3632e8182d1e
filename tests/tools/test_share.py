"""What is written for others to read, GGUF included, with a converter that only notes what it is asked for.

What transformers, PEFT and llama.cpp make of a real run is in test_stranger.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from tiny_gemma import bump, small_config, train_tokenizer

import tools.share
from reasonkit.config import PROFILES
from reasonkit.models.load import LoadedModel, Tokenizer
from reasonkit.models.lora import add_lora, fingerprint
from reasonkit.models.mesh import make_mesh
from reasonkit.session.setup import find_recipe
from reasonkit.text.tags import TAGS
from reasonkit.train.rollout import generator
from tools.card import write_card
from tools.export import export_flax
from tools.flax import init_random
from tools.share import CONVERTER, find_converter, main, modelfile, share, to_gguf

READ_BACK = {"NOTICE", "README.md", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
CONVERTS = """import sys
folder, _, out, *kind = sys.argv[1:]
open(out, "w").write(" ".join(kind))
"""
FAILS = """import sys
folder, _, out, *kind = sys.argv[1:]
open(out, "w").write("half")
sys.exit("ModuleNotFoundError: No module named 'torch'")
"""


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices()[:1], 1, 1)


@pytest.fixture(scope="module")
def policy(mesh, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    base = init_random(small_config(1, sliding_window_size=512), mesh)
    model = add_lora(base, mesh, 4, 8.0)
    bump(model)
    return LoadedModel(model, Tokenizer(train_tokenizer(folder), "gemma3"), base.config, "small", folder)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder as a clone of llama.cpp; none is on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "llama.cpp").mkdir()
    (tmp_path / "llama.cpp" / CONVERTER).write_text(CONVERTS)
    return tmp_path / "llama.cpp"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_one_flag_adds_the_whole_model(policy, manifests, tmp_path, clone, capsys):
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "README.md").write_text("# Data\n")
    share(policy, manifests, tmp_path / "out")
    assert names(tmp_path / "out") == {"peft"}
    adapter = {"DATA.md", "adapter_config.json", "adapter_model.safetensors"}
    assert names(tmp_path / "out/peft") == READ_BACK | adapter
    assert "With PEFT" in (tmp_path / "out/peft/README.md").read_text()
    share(policy, manifests, tmp_path / "out", merged=True, llama_cpp=clone)
    hf = tmp_path / "out/hf"
    whole = READ_BACK | {"DATA.md", "config.json", "model.safetensors", "tokenizer.model"}
    assert names(hf) == whole | {"model.gguf", "Modelfile"}
    assert (hf / "model.gguf").read_text() == "--outtype f32"
    card = (hf / "README.md").read_text()
    assert "With transformers" in card and "With vLLM" in card and "With Ollama" in card
    share(policy, manifests, tmp_path / "out", merged=True)  # of another adapter, and without the converter
    assert names(hf) == whole and "With Ollama" not in (hf / "README.md").read_text()
    assert "no GGUF: llama.cpp's convert_hf_to_gguf.py is not on the PATH" in capsys.readouterr().out


def test_the_converter_is_found_on_the_path_and_in_a_clone(clone, tmp_path):
    assert find_converter() is None and find_converter(clone) == clone / CONVERTER
    (tmp_path / "bin").mkdir()
    on_path = tmp_path / "bin" / CONVERTER
    on_path.write_text(CONVERTS)
    on_path.chmod(0o755)
    assert find_converter() == on_path
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no {CONVERTER}: give the folder of a clone"):
        find_converter(tmp_path)


def test_a_converter_that_fails_says_why_and_leaves_no_half_file(clone, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16"}))
    (clone / CONVERTER).write_text(FAILS)
    with pytest.raises(RuntimeError, match="needs the extra `parity`:\nModuleNotFoundError: No module named 'torch'"):
        to_gguf(tmp_path, clone / CONVERTER)
    assert not list(tmp_path.glob("*gguf*")) and not (tmp_path / "Modelfile").exists()


def test_ollama_asks_as_we_do():
    template, parameters = re.fullmatch(r'FROM \./model\.gguf\nTEMPLATE """(.*)"""\n(.*)', modelfile(), re.S).groups()
    system = "{{ if .System }}{{ .System }}\n\n{{ end }}"
    assert template.replace(system, "").replace("{{ .Prompt }}", "How many?") == TAGS.prompt("How many?")
    assert template.index(system) < template.index("{{ .Prompt }}")
    assert set(parameters.splitlines()) == {
        "PARAMETER stop <end_of_turn>", "PARAMETER temperature 0", "PARAMETER top_k 1", "PARAMETER num_predict 1024",
        "PARAMETER num_ctx 2048"}


@pytest.mark.slow
def test_the_cards_code_asks_the_flax_model(policy, mesh, manifests, tmp_path):
    """In a process of its own, in the folder: it prints the policy's own completion."""
    folder = export_flax(policy, tmp_path / "flax", 3, jnp.float32)
    code = re.search(r"```python\n(.*?)```", write_card(folder, manifests, "small").read_text(), re.S)[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-2000:]
    ask = generator(policy.model, policy.tokenizer, mesh, max_prompt_length=300, max_new_tokens=1100, batch_size=1)
    assert done.stdout == ask([TAGS.prompt("What is 12 + 7?")])[0] + "\n"


def test_the_command_says_what_is_missing(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "run.json" in capsys.readouterr().err


def test_the_flax_model_is_checked_before_it_is_uploaded(policy, manifests, tmp_path, monkeypatch, capsys):
    """As a command. What the check does is in test_export_check, and what the upload does in test_publish."""
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "README.md").write_text("# Data\n")
    run = SimpleNamespace(folder=tmp_path, profile=PROFILES["smoke"], recipe=find_recipe("g_rar"),
                          stage=lambda name: tmp_path / name, manifest=lambda stage: {"extra": {"checkpoint_step": 7}})
    monkeypatch.setattr(tools.share, "load_trained", lambda folder: (run, policy, None, manifests))
    called = []
    monkeypatch.setattr(tools.share, "verify_export", lambda folder, adapter, samples, **job: called.append(
        (folder, adapter, job["max_new_tokens"])) or "equal")
    monkeypatch.setattr(tools.share, "publish_kaggle", lambda folder, handle: called.append((folder, handle)) or "done")
    flax = tmp_path / "export/flax"
    main(["--flax"])
    assert called == [(flax, fingerprint(policy.model), 64)] and "NOTICE" in names(flax)
    main(["--kaggle", "you/model/flax/tiny"])
    assert called[1:] == [called[0], (flax, "you/model/flax/tiny")] and names(tmp_path / "export") == {"flax"}
    assert capsys.readouterr().out.count("equal") == 2
