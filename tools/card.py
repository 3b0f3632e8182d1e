"""The model card of an export: `write_card` makes it from the run's manifests, with code that asks the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reasonkit.eval.evaluate import Interval
from reasonkit.session.files import write_atomic
from reasonkit.session.manifest import caveats, progress
from reasonkit.text.tags import TAGS
from tools.data_card import markdown_line, markdown_table
from tools.export import NEW_TOKENS

# Gemma's terms ask for this sentence in what is passed on, and for a word that it was modified.
NOTICE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms\n"
# How to ask each kind of export, keyed by a file that it has. The words in capitals are replaced. A pipeline of
# transformers samples unless do_sample=False, whatever generation_config.json says.
_ASK = '[{"role": "user", "content": "What is 12 + 7?"}]'
_USES = {
    "config.json": f'''With transformers:

```python
from transformers import pipeline
ask = pipeline("text-generation", ".", model_kwargs={{"attn_implementation": "eager"}})
print(ask({_ASK}, do_sample=False, max_new_tokens=MOST_TOKENS)[0]["generated_text"][-1]["content"])
```

With vLLM, which was not tried:

```python
from vllm import LLM, SamplingParams
print(LLM(".").chat({_ASK}, SamplingParams(temperature=0, max_tokens=MOST_TOKENS))[0].outputs[0].text)
```
''',
    "Modelfile": '''With Ollama, which was not tried. llama.cpp was, with the same file:

```bash
ollama create reasoner -f Modelfile && ollama run reasoner "What is 12 + 7?"
```
''',
    "adapter_config.json": f'''With PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
base = AutoModelForCausalLM.from_pretrained(BASE, attn_implementation="eager")
model, tokenizer = PeftModel.from_pretrained(base, "."), AutoTokenizer.from_pretrained(".")
prompt = tokenizer.apply_chat_template({_ASK}, add_generation_prompt=True, return_dict=True, return_tensors="pt")
reply = model.generate(**prompt, generation_config=GenerationConfig.from_pretrained(".", max_new_tokens=MOST_TOKENS))
print(tokenizer.decode(reply[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))
```
''',
    "*/_METADATA": '''With reasonkit, in Flax:

```python
import jax
from reasonkit.models.load import load
from reasonkit.models.mesh import make_mesh
from reasonkit.text.tags import TAGS
from reasonkit.train.rollout import generator
mesh = make_mesh(jax.devices()[:1], 1, 1)
model = load(".", mesh)
limits = dict(max_prompt_length=PROMPT_TOKENS, max_new_tokens=REPLY_TOKENS)
ask = generator(model.model, model.tokenizer, mesh, batch_size=1, **limits)
print(*ask([TAGS.prompt("What is 12 + 7?")]))
```
''',
}
_MEASURES = {"accuracy": "Accuracy", "content": "Content accuracy", "form": "Format rate", "steps": "Step accuracy"}


def write_card(folder: Path, manifests: Sequence[Mapping[str, Any]], base: str, data_card: Path | None = None) -> Path:
    """Write README.md, the model card, and NOTICE into an export's folder. Returns the card.

    The card has code that asks the model, for each tool that the folder's files are for, with as many tokens as were
    measured. manifests: as `manifest.read_manifest` returns them, at least of the stages data and evaluation. base: the
    base model's name. data_card: notebook 1's, which is copied to DATA.md. Raises ValueError if a stage or a field that
    the card needs is missing, and if two stages have different hashes for a file.
    """
    stages = {manifest["stage"]: manifest for manifest in manifests}
    again = "run the notebooks from 01 again"
    for stage, facts in {"data": ("title", "licence"), "evaluation": ("problems",)}.items():
        if stage not in stages:
            raise ValueError(f"the card needs {stage!r} of the manifests of data and evaluation, and there are "
                             f"{', '.join(stages) or 'none'}: {again}")
        if missing := [name for name in facts if stages[stage]["extra"].get(name) is None]:
            raise ValueError(f"no card: the manifest of {stage!r} has no {missing[0]}: {again}")
    hashes: dict[str, str] = {}
    for stage, manifest in stages.items():
        for entry in manifest["inputs"].values():
            if hashes.setdefault(entry["path"], entry["sha256"]) != entry["sha256"]:
                raise ValueError(f"{entry['path']} has changed between the stages: {stage!r} knew another than those "
                                 f"before it, and a card would state the hash of another file: {again}")
    data, scores = stages["data"], stages["evaluation"]
    try:
        prompt_tokens, reply_tokens = map(int, data["extra"]["asked"]["lengths"])
    except (KeyError, TypeError, ValueError):
        raise ValueError("no card: the manifest of 'data' has no two lengths, of prompt and completion: "
                         f"{again}") from None
    counts = ", ".join(f"{value} {name}" for name, value in data["metrics"].items())
    about = f"{data['extra']['title']}, {data['extra']['licence']}. {counts} problems"
    tested, adapter = scores["extra"]["problems"], scores["lora"] or {}
    try:
        rows = [[name, *(str(Interval(*score[key])) if key in score or key != "steps" else "–" for key in _MEASURES)]
                for name, score in scores["metrics"].items()]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no card: the manifest of 'evaluation' lacks a figure ({error}): {again}") from None
    settings = [["stage", "minutes", "steps", "ended by", "settings"], *(
        [name, f"{manifest['minutes']:.1f}", *(told or "–" for told in progress(manifest)),
         _words({key: value for key, value in manifest["extra"].get("settings", {}).items() if key != "steps"})]
        for name, manifest in stages.items())]
    warning = "".join(f"**{markdown_line(sentence)}**\n\n" for sentence in caveats(manifests))
    versions = {package: version for manifest in manifests for package, version in manifest["versions"].items()}
    uses = "\n".join(use for file, use in _USES.items() if any(folder.glob(file)))
    for word, value in {"PROMPT_TOKENS": prompt_tokens, "REPLY_TOKENS": reply_tokens,
                        "MOST_TOKENS": max(reply_tokens, NEW_TOKENS), "BASE": json.dumps(base)}.items():
        uses = uses.replace(word, str(value))
    name = markdown_line(base)
    text = f"""---
license: gemma
base_model: {json.dumps(base)}
pipeline_tag: text-generation
tags: [reasoning, grpo, lora, tunix]
---
# {name} that shows its work

{warning}{name}, modified: one LoRA adapter ({markdown_line(_words(adapter))}) was trained with Tunix on all attention
and feed-forward matrices. It replies with its reasoning and then its answer, each in a tag of its own, to this prompt,
byte for byte:

````
{TAGS.template}
````

## Ask it

In this folder, or with the repository's name in place of `"."`. Decoding is greedy, as below.

{uses}
## Scores

{markdown_table([["", *_MEASURES.values()], *rows])}

{tested} test problems that no stage was trained on, greedy decoding. Means with 95 % intervals. Accuracy counts
answers in their tag, in whatever format. For content accuracy a completion without that tag counts by what it says
last, which measures the base model too. No judge is involved.

## Data

{markdown_line(about)}; SHA-256 of the files:

{markdown_table([["file", "SHA-256"], *([name, entry["sha256"]] for name, entry in data["inputs"].items())])}

## Training

{markdown_table(settings)}

Prompt SHA-256 {markdown_line(scores["prompt_sha256"])}. {markdown_line(_words(versions))}.

## Licence and limits

{NOTICE.strip()}. This is a small model, trained on the problems above: elsewhere its reasoning may be fluent and wrong.
"""
    write_atomic(folder / "NOTICE", NOTICE)
    write_atomic(folder / "README.md", text)
    if data_card:
        write_atomic(folder / "DATA.md", data_card.read_text(encoding="utf-8"))
    return folder / "README.md"


def _words(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items()) or "–"
