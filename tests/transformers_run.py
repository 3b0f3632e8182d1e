"""What transformers makes of an exported folder, in a process of its own: PYTHONPATH says which version.

Reads {"folder", "chats", "texts", "replies"} as JSON on standard input and writes what it found there as JSON.
"""

from __future__ import annotations

import json
import sys

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def main() -> None:
    job = json.load(sys.stdin)
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["folder"])
    config = transformers.AutoConfig.from_pretrained(job["folder"])
    chats = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in job["chats"]]
    tokens = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
              for chat in job["chats"]]
    print(json.dumps({
        "version": transformers.__version__, "chats": chats, "chat_tokens": tokens,
        "tokens": [tokenizer(text)["input_ids"] for text in job["texts"]],
        "decoded": [tokenizer.decode(reply, skip_special_tokens=True) for reply in job["replies"]],
        "positions": config.max_position_embeddings,
        "new_tokens": transformers.GenerationConfig.from_pretrained(job["folder"]).max_new_tokens,
        "multimodal": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["gemma3"]}))


if __name__ == "__main__":
    main()
