"""`python -m tools.hf FOLDER OUT`: Hugging Face's files become a folder that `load` reads."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from tiny_gemma import equal, from_hf, gemma2_config, gemma2_hf, small_config, train_tokenizer

from reasonkit.models.load import load, tokenizer
from reasonkit.models.mesh import make_mesh
from tools.flax import init_random
from tools.hf.__main__ import main
from tools.hf.weights import save_hf


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices(), 8, 1)


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_a_converted_folder_is_the_same_model(family, mesh, tmp_path, capsys):
    config = gemma2_config() if family == "gemma2" else small_config(1, global_scale_factor=8.0)
    if family == "gemma2":
        folder = gemma2_hf(tmp_path / "hf")
        shutil.copy(train_tokenizer(tmp_path / "pieces", 107), folder)
    else:
        folder = save_hf(init_random(config, mesh), train_tokenizer(tmp_path / "pieces"), tmp_path / "hf",
                         extra={"max_position_embeddings": 4096})
    with pytest.raises(ValueError, match=f"`python -m tools.hf {folder} OUT`"):
        load(folder, mesh)
    main([str(folder), str(tmp_path / "out")])
    assert "is ready to load" in capsys.readouterr().out
    loaded = load(tmp_path / "out", mesh, jnp.float32)
    assert loaded.config == config and loaded.tokenizer.family == family
    assert equal(nnx.state(loaded.model), nnx.state(from_hf(folder, mesh, jnp.float32)[1]))
    assert tokenizer(tmp_path / "out").family == family
    noted = json.loads((tmp_path / "out" / "model.json").read_text())
    assert noted["max_position_embeddings"] == (None if family == "gemma2" else 4096)


def test_what_is_wrong_is_said_and_nothing_is_written_over(tmp_path, mesh, capsys):
    folder = save_hf(init_random(small_config(), mesh), train_tokenizer(tmp_path / "pieces"), tmp_path / "hf")
    settings = json.loads((folder / "config.json").read_text())
    del settings["head_dim"]
    (folder / "config.json").write_text(json.dumps(settings))
    for out, words in ((tmp_path / "pieces", "is not empty: give a new folder"),
                       (tmp_path / "out", "lacks 'head_dim'")):
        with pytest.raises(SystemExit):
            main([str(folder), str(out)])
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
