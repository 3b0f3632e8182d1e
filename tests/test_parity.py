"""The same weights, the same logits as Hugging Face's transformers: files in, the cache, adapters and files out.

Needs the extra `parity` (PyTorch and PEFT), and the older transformers that `make parity` installs. Weights are random
and sizes small, and every feature of the architecture is on: a window shorter than the sequence, soft caps that bite,
query-key norms, local and global ropes, the global one scaled, grouped queries, tied embeddings. Float32; the
largest difference of any logit is at most TOLERANCE.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported: nothing here is on a hub

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx
from sentencepiece import sentencepiece_model_pb2 as pb
from tiny_gemma import ROWS, small_config, train_tokenizer
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from reasonkit.models.cache import install_sharded_cache
from reasonkit.models.load import LoadedModel, Tokenizer, load
from reasonkit.models.lora import add_lora
from reasonkit.models.mesh import make_mesh
from reasonkit.text.tags import TAGS
from reasonkit.train.rollout import generator
from tools.export import export_hf, export_peft
from tools.flax import init_random
from tools.hf.__main__ import convert

TOLERANCE = 2e-4
EAGER = "eager"  # transformers' default, SDPA, leaves Gemma 2's soft cap of the attention out
WINDOW, LENGTH = 8, 24
PROMPTS = ["<start_of_turn>user\nadd 1 and 2<end_of_turn>\n<start_of_turn>model\n", "7 plus 4", "3",
           "user 1 2 3 4 5 6 7 8 9 0, model add 4 and 5"]
NEW_TOKENS = 16
OLDER = Path(sys.prefix) / "transformers4"  # see the Makefile

COMMON = dict(vocab_size=ROWS, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
              head_dim=16, query_pre_attn_scalar=16, sliding_window=WINDOW, max_position_embeddings=256,
              num_hidden_layers=7, pad_token_id=0, eos_token_id=1, bos_token_id=2)


def gemma3(**changes) -> transformers.Gemma3TextConfig:
    """Seven layers: the sixth attends to all tokens; its rope is scaled as in the 4B and 12B."""
    rope = {"sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0}}
    return transformers.Gemma3TextConfig(**{**COMMON, "rope_parameters": rope, **changes})


def multimodal() -> transformers.Gemma3Config:
    """The layout of the 4B and 12B: the text model is a part, beside a vision tower that is left out here."""
    vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28,
                  patch_size=14)
    return transformers.Gemma3Config(text_config=gemma3().to_dict(), vision_config=vision, mm_tokens_per_image=4,
                                     image_token_index=ROWS - 1, boi_token_index=ROWS - 2, eoi_token_index=ROWS - 3)


KINDS = {
    "gemma2": lambda: transformers.Gemma2Config(**COMMON | dict(num_hidden_layers=4, attn_logit_softcapping=2.0,
                                                                final_logit_softcapping=3.0)),
    "gemma3 of 270M and 1B": lambda: gemma3(num_key_value_heads=1, rope_parameters=None),
    "gemma3 of 4B and 12B": multimodal,
    "gemma3 with a key for each query": lambda: gemma3(num_key_value_heads=4),
}


@dataclasses.dataclass
class Pair:
    """One model on both sides; `folder` is what transformers wrote."""

    theirs: transformers.PreTrainedModel
    folder: Path
    ours: object
    mesh: object


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory) -> Pair:
    folder, config = tmp_path_factory.mktemp("theirs"), KINDS[request.param]()
    kind = (transformers.Gemma3ForConditionalGeneration if isinstance(config, transformers.Gemma3Config)
            else transformers.AutoModelForCausalLM)
    build = kind._from_config if kind is not transformers.AutoModelForCausalLM else kind.from_config
    model = build(config, attn_implementation=EAGER).float().eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.ndim == 1 else weight.shape[-1] ** -0.5))
    model.save_pretrained(folder, max_shard_size="60KB")  # several files
    assert len(list(folder.glob("*.safetensors"))) > 1
    train_tokenizer(folder, 107 if request.param == "gemma2" else 106)
    mesh, flax = make_mesh(jax.devices(), 8, 1), tmp_path_factory.mktemp("ours")
    return Pair(model, folder, load(convert(folder, flax), mesh, jnp.float32), mesh)


@nnx.jit
def forward(model: nnx.Module, tokens_BT: jax.Array) -> jax.Array:
    mask_BT = tokens_BT != 0
    return model(tokens_BT, build_positions_from_mask(mask_BT), None, make_causal_attn_mask(mask_BT))[0]


def their_logits(model: torch.nn.Module, tokens_BT: np.ndarray) -> np.ndarray:
    mask_BT = tokens_BT != 0
    positions_BT = np.maximum(mask_BT.cumsum(1) - 1, 0)
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens_BT), attention_mask=torch.tensor(mask_BT, dtype=torch.long),
                     position_ids=torch.tensor(positions_BT)).logits.numpy()


def batch(padding: str) -> np.ndarray:
    """Eight rows of up to three windows, half of them padded."""
    tokens_BT = np.random.default_rng(0).integers(4, ROWS - 3, (8, LENGTH))
    for row, pads in enumerate((3, 7, 11, 15) if padding else ()):
        tokens_BT[row, :pads] = 0
        tokens_BT[row] = np.roll(tokens_BT[row], -pads if padding == "right" else 0)
    return tokens_BT


@pytest.mark.parametrize("padding", ["", "left", "right"])
def test_what_transformers_writes_gives_its_logits_here(pair, padding):
    tokens_BT = batch(padding)
    ours, theirs, real = forward(pair.ours.model, tokens_BT), their_logits(pair.theirs, tokens_BT), tokens_BT != 0
    assert np.abs(theirs[real]).max() > 1
    np.testing.assert_allclose(np.asarray(ours)[real], theirs[real], rtol=0, atol=TOLERANCE)


def test_prefill_and_decoding_from_the_cache_give_their_logits(pair):
    """Left-padded prompts of several lengths, past the window, in Tunix's sampler with our cache."""
    install_sharded_cache()
    config, tokenizer, longest = pair.ours.config, pair.ours.tokenizer, 48
    sampler = Sampler(pair.ours.model, tokenizer,
                      CacheConfig(longest + NEW_TOKENS, config.num_layers, config.num_kv_heads, config.head_dim))
    prompts = PROMPTS * 2
    with pair.mesh:
        out = sampler(prompts, max_generation_steps=NEW_TOKENS, max_prompt_length=longest, return_logits=True,
                      eos_tokens=[ROWS + 1])
    for prompt, tokens, logits in zip(prompts[:4], out.tokens, out.logits, strict=False):
        ids = [tokenizer.bos_id(), *tokenizer.encode(prompt), *map(int, tokens)]
        assert len(tokens) == NEW_TOKENS and len(ids) > 2 * WINDOW
        theirs = their_logits(pair.theirs, np.array([ids]))[0, -NEW_TOKENS - 1: -1]
        np.testing.assert_allclose(np.asarray(logits), theirs, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def trained(pair):
    """The policy with an adapter that has moved."""
    model = add_lora(pair.ours.model, pair.mesh, 4, 8.0)
    keys = iter(jax.random.split(jax.random.key(1), 999))
    nnx.update(model, jax.tree.map(lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape),
                                   nnx.state(model, nnx.LoRAParam)))
    return dataclasses.replace(pair.ours, model=model)


def test_what_is_exported_gives_our_logits_and_our_text_there(pair, trained, tmp_path):
    folder, tokens_BT = export_hf(trained, tmp_path / "out", shard_bytes=60_000), batch("")
    assert len(list(folder.glob("*.safetensors"))) > 1
    there = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation=EAGER).eval()
    assert there.dtype == torch.float32
    ours = np.asarray(forward(trained.model, tokens_BT))
    assert np.abs(ours - np.asarray(forward(pair.ours.model, tokens_BT))).max() > 0.1  # the adapter does something
    np.testing.assert_allclose(their_logits(there, tokens_BT), ours, rtol=0, atol=TOLERANCE)

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    said = generator(trained.model, trained.tokenizer, pair.mesh, max_prompt_length=48, max_new_tokens=NEW_TOKENS,
                     batch_size=8)(PROMPTS)
    for prompt, reply in zip(PROMPTS, said, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        assert ids.input_ids[0].tolist() == [2, *trained.tokenizer.encode(prompt)]
        out = there.generate(**ids, max_new_tokens=NEW_TOKENS)[0, ids.input_ids.shape[1]:].tolist()
        assert trained.tokenizer.decode([token for token in out if token not in trained.tokenizer.stop_ids]) == reply


def test_peft_puts_our_adapter_on_what_their_one_liner_opens(pair, trained, tmp_path):
    """Of the 4B and 12B that is the class with the vision tower, on which no adapter belongs."""
    folder, tokens_BT = export_peft(trained, tmp_path / "peft"), batch("")
    base = transformers.AutoModelForCausalLM.from_pretrained(pair.folder, dtype="auto", attn_implementation=EAGER)
    assert type(base) is type(pair.theirs)
    there = peft.PeftModel.from_pretrained(base, folder).eval()
    assert not [name for name, _ in there.named_parameters() if "lora" in name and "vision" in name]
    np.testing.assert_allclose(their_logits(there, tokens_BT), np.asarray(forward(trained.model, tokens_BT)), rtol=0,
                               atol=TOLERANCE)


# The exported tokenizer, in the pinned transformers and in the one before

QUESTIONS = ["What is 1 + 2?", " two  spaces,\n{{ braces }} and \"quotes\" ", "数学 \U0001f600\t<reasoning>"]
REPLIES = [TAGS.render(reasoning="1 + 2 = 3", answer="3"), " two  spaces\n\n", "<unused7>"]


def user(text: str | list) -> list[dict]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A folder whose vocabulary is large: of a small one transformers does not ask which model it is of."""
    folder, mesh = tmp_path_factory.mktemp("large"), make_mesh(jax.devices(), 8, 1)
    file = train_tokenizer(folder / "pieces", symbols=(TAGS.reasoning_start, TAGS.reasoning_end, TAGS.answer_start,
                                                       TAGS.answer_end))
    pieces = pb.ModelProto.FromString(file.read_bytes())
    for number in range(100_000):
        pieces.pieces.add(piece=f"\u4e00{number:05}", score=-1e4 - number)
    file.write_bytes(pieces.SerializeToString())
    config = small_config(num_embed=len(pieces.pieces), embed_dim=8, hidden_dim=8, num_heads=8)
    tokenizer = Tokenizer(file, "gemma3")
    loaded = LoadedModel(init_random(config, mesh), tokenizer, config, "large", folder)
    return tokenizer, export_hf(loaded, folder / "hf")


@pytest.mark.parametrize(("version", "path"), [("5.12.1", None), ("4.57.6", OLDER)])
def test_transformers_makes_our_prompt_and_reads_our_replies(large, version, path):
    tokenizer, folder = large
    assert path is None or path.is_dir(), f"{path} is not there: make parity leaves it in the venv"
    asked = TAGS.prompt("1 + 2").removeprefix("<start_of_turn>user\n").partition("<end_of_turn>")[0]
    chats = {
        **{TAGS.prompt(question): user(question) for question in QUESTIONS},
        TAGS.prompt("1 + 2"): user(asked),  # who asks for the tags gets the request once
        TAGS.prompt("a b"): user([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]),
        TAGS.prompt("Be short.\n\n3"): [{"role": "system", "content": "Be short."}, *user("3")],
        TAGS.prompt("3") + REPLIES[0] + "<end_of_turn>\n" + TAGS.prompt("4"): [
            *user("3"), {"role": "assistant", "content": REPLIES[0]}, *user("4")],
    }
    ids = [tokenizer.encode(reply) for reply in REPLIES]
    around = [[tokenizer.bos_id(), 105, *reply, *tokenizer.stop_ids, tokenizer.pad_id()] for reply in ids]
    job = {"folder": str(folder), "chats": list(chats.values()), "texts": [*QUESTIONS, *REPLIES], "replies": around}
    done = subprocess.run([sys.executable, Path(__file__).with_name("transformers_run.py")], input=json.dumps(job),
                          text=True, capture_output=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(path or "")})
    found = json.loads(done.stdout)
    assert found["version"] == version and "regex" not in done.stderr, done.stderr
    bos = tokenizer.piece(tokenizer.bos_id())
    assert found["chats"] == [bos + prompt for prompt in chats]
    assert found["chat_tokens"] == [[tokenizer.bos_id(), *tokenizer.encode(prompt)] for prompt in chats]
    assert found["tokens"] == [[tokenizer.bos_id(), *tokenizer.encode(text)] for text in job["texts"]]
    assert found["decoded"] == [*REPLIES[:2], ""]  # no control token is left
    assert (found["positions"], found["new_tokens"]) == (32_768, 1024)
    assert found["multimodal"] == "Gemma3ForConditionalGeneration"
