"""Is an export for the unrestricted mode the policy that was evaluated? `verify_export` says so before the upload.

`python -m tools.export_check` is its second half, in a fresh process on the CPU: `compare`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from reasonkit.models.gemma import flax_checkpoint, from_flax
from reasonkit.models.load import LoadedModel, Tokenizer
from reasonkit.models.mesh import make_mesh
from reasonkit.models.submission_check import SubmissionError, load_as_judges, run_as_judges, verify_submission
from reasonkit.text.tags import TAGS
from tools.flax import forward, merge_lora

# In nats of a logit. A merged model may choose another token by rounding: in bfloat16, Gemma-3-270M's choice changed
# where the two logits were at most one step of 1/8 apart. Further apart than this is another model.
NEAR_TIE = 0.5


def verify_export(folder: Path, adapter: str, samples: Sequence[tuple[str, str]], *, model: str, dtype: str, rank: int,
                  alpha: float, **limits: int) -> str:
    """`submission_check.verify_submission`, and then the arrays of the merged model must be base and adapter merged,
    and both models must continue alike at each token of the samples' replies.

    Returns in words what is equal. Raises SubmissionError as `verify_submission` does.
    """
    folder = Path(folder).resolve()
    for name, there in (("merged model", flax_checkpoint(folder)),
                        ("tokenizer.model", (folder / "tokenizer.model").is_file())):
        if not there:
            raise SubmissionError(f"{folder} is an export without its {name}: export the policy again")
    job = dict(model=model, dtype=dtype, rank=rank, alpha=alpha)
    equal = verify_submission(folder, adapter, samples, **job, **limits)
    found = run_as_judges("tools.export_check", **job, ckpt_dir=str(folder), samples=list(samples))
    if found["arrays"]:
        raise SubmissionError(f"{', '.join(found['arrays'][:3])} of {len(found['arrays'])} parts of the export in "
                              f"{folder} are not the base with the adapter merged: export the policy again")
    for question, reply, ours, theirs in found["parts"]:
        raise SubmissionError(
            f"to {question!r}, after {reply!r}, the policy goes on with {ours!r} and the merged model with {theirs!r}: "
            "the adapter was lost in the rounding, export with a finer dtype")
    return f"{equal}; merged, the same arrays, and alike at {found['tokens']} tokens of replies"


def compare(policy: LoadedModel, folder: Path, mesh: Mesh, dtype: str, samples: Sequence[tuple[str, str]]) -> dict:
    """How the merged model of an export differs from the policy.

    arrays: those that are not base and adapter merged, up to the file's rounding. tokens: the number in the samples'
    replies. parts: where the two models continue the start of a reply differently, and the policy's logits of the two
    tokens are more than NEAR_TIE apart.
    """
    family, tokenizer = policy.tokenizer.family, Tokenizer(folder / "tokenizer.model", policy.tokenizer.family)
    there = from_flax(flax_checkpoint(folder), family, policy.config, mesh, dtype, replicated=True)
    ours = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(policy.model))}
    arrays = [] if tokenizer.path.read_bytes() == policy.tokenizer.path.read_bytes() else [tokenizer.path.name]
    for path, leaf in nnx.to_flat_state(nnx.state(there)):
        want, got = (np.asarray(value, np.float32)
                     for value in (merge_lora(ours, path, policy.model), leaf.get_value()))
        if not np.allclose(got, want, rtol=2**-7, atol=2**-9 * np.abs(want).max()):
            arrays.append("/".join(map(str, path)))

    rows = [([tokenizer.bos_id(), *tokenizer.encode(TAGS.prompt(question))], tokenizer.encode(reply))
            for question, reply in samples]
    longest = max((len(prompt) + len(reply) for prompt, reply in rows), default=0)
    parts = []
    for (question, _), (prompt, reply) in zip(samples, rows, strict=True):
        tokens_BT = np.zeros((1, longest), np.int32)
        tokens_BT[0, : len(prompt) + len(reply)] = prompt + reply
        said_TV, merged_TV = (np.asarray(forward(model, tokens_BT)[0, len(prompt) - 1: len(prompt) + len(reply)],
                                         np.float32) for model in (policy.model, there))
        for at, (one, other) in enumerate(zip(said_TV.argmax(-1), merged_TV.argmax(-1), strict=True)):
            if said_TV[at, one] - said_TV[at, other] > NEAR_TIE:
                parts.append([question, *map(tokenizer.decode, (reply[:at], [one], [other]))])
                break
    return {"arrays": arrays, "tokens": sum(len(reply) + 1 for _, reply in rows), "parts": parts}


def main() -> None:
    """Reads a job as JSON on standard input, and prints what `compare` finds."""
    job = json.load(sys.stdin)
    samples = job.pop("samples")
    policy, _ = load_as_judges(**job)
    print(json.dumps(compare(policy, Path(job["ckpt_dir"]), make_mesh(jax.devices()[:1], 1, 1), job["dtype"], samples)))


if __name__ == "__main__":
    main()
