#!/usr/bin/env bash
# A text-generation pipeline of transformers samples 256 tokens from a model whose generation_config.json says greedy.
#
# Guess:     the model's generation_config.json comes before the pipeline's own defaults. A comment in
#            transformers/pipelines/base.py gives that order: arguments, the model's values, the pipeline's values.
# Versions:  transformers 5.12.1, tokenizers 0.22.2, torch 2.13.0 on CPU.
# Behaviour: the pipeline's defaults (do_sample, temperature 0.7, 256 new tokens) replace the model's values.
#            `model.generate` reads them. So an exported model that is greedy and short under `generate` gives other text
#            at each call of the pipeline. Only arguments of the call or of `pipeline(...)` help.
# Output:    generate: 1 text in 6 calls, 8 new tokens
#            pipeline: 6 texts in 6 calls, do_sample True, max_new_tokens 256
#            pipeline with both as arguments: 1 text in 6 calls, the same as generate: True
# Fails when the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.12.1 torch==2.13.0
cd "$folder"
HF_HUB_OFFLINE=1 HF_HOME="$folder/hf" venv/bin/python -W ignore - <<'PYTHON'
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, logging, pipeline

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.manual_seed(0)
words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(50)}, unk_token="w0"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w1", pad_token="w0")
GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=512, n_embd=32, n_layer=2, n_head=2,
                           bos_token_id=1, eos_token_id=1)).save_pretrained("model")
tokenizer.save_pretrained("model")
wanted = {"do_sample": False, "max_new_tokens": 8}
Path("model/generation_config.json").write_text(json.dumps({**wanted, "eos_token_id": 1, "pad_token_id": 0}))

model = AutoModelForCausalLM.from_pretrained("model")
ids = tokenizer("w5 w6", return_tensors="pt").input_ids
greedy = {tuple(model.generate(ids)[0, 2:].tolist()) for _ in range(6)}
ask = pipeline("text-generation", model="model", tokenizer=tokenizer, return_full_text=False)
sampled = {ask("w5 w6")[0]["generated_text"] for _ in range(6)}
told = {ask("w5 w6", **wanted)[0]["generated_text"] for _ in range(6)}
config, same = ask.generation_config, told == {tokenizer.decode(list(tokens)) for tokens in greedy}
print(f"generate: {len(greedy)} text in 6 calls, {max(map(len, greedy))} new tokens")
print(f"pipeline: {len(sampled)} texts in 6 calls, do_sample {config.do_sample}, max_new_tokens {config.max_new_tokens}")
print(f"pipeline with both as arguments: {len(told)} text in 6 calls, the same as generate: {same}")
assert len(greedy) == 1 and len(next(iter(greedy))) <= 8
assert len(sampled) == 6 and config.do_sample and config.max_new_tokens == 256
assert same
PYTHON
