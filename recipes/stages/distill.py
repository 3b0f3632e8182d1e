"""On-policy distillation (GKD, arXiv 2306.13649): the student samples, a larger teacher scores every token.

Tunix's `PeftTrainer` minimises a divergence between the two models' next tokens. No gradient goes through the sampling.
Each model has its own mesh. Only the log-probabilities of the teacher's most likely tokens cross between them, with the
mass of all others, and neither holds the logits of a whole batch. Unlike in GKD, our tags are learned as in SFT.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from datasets import Dataset
from flax import nnx
from jax.sharding import Mesh
from tunix.sft import peft_trainer
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from reasonkit.data.rows import grpo_batches, sft_pairs, shuffle_rows
from reasonkit.models.checkpoints import restore_lora
from reasonkit.models.distributed import agree_on_end, broadcast_from_main, fetch, on_main_process
from reasonkit.models.load import LoadedModel
from reasonkit.models.logprobs import head_logits, in_chunks
from reasonkit.models.lora import add_lora
from reasonkit.models.mesh import check_divides, split_rows
from reasonkit.run import Run
from reasonkit.session.files import write_atomic
from reasonkit.session.time_budget import TimeBudget
from reasonkit.settings import DistillSettings
from reasonkit.text.tags import STOP_MARKERS, TAGS
from reasonkit.train import loop, tunix_compat
from reasonkit.train.rollout import Rollout, sampling
from reasonkit.train.sft import sft

LOGITS = 2**26  # a chip holds at most so many at once, 0.25 GiB in float32
NOTHING = -80.0  # the log-probability of no token at all
_FORMAT = re.compile(rf"\A(\s*{TAGS.reasoning_start})(?:.*?{TAGS.reasoning_end}(\s*{TAGS.answer_start})"
                     rf"(?:.*?{TAGS.answer_end}({'|'.join(STOP_MARKERS)}))?)?", re.DOTALL)
_BYTE = re.compile("<0x([0-9A-F]{2})>")  # a token of one byte, as SentencePiece writes it


def read_completions(model: nnx.Module, tokens_BL: jax.Array, length: int, vocabulary: int, positions: int,
                     read: Callable, *more_BT) -> jax.Array | tuple[jax.Array, ...]:
    """`read(logprobs_BTV, *more_BT)` at the last `length` tokens, over the first `vocabulary` ids: arrays (B, T, ...).

    It is called with at most `positions` tokens of each row at a time, in float32, and again for the gradients.
    `more_BT` are arrays (B, length, ...). A token's log-probabilities are read at the position before it. Padding is 0.
    """
    mask_BL = tokens_BL != 0
    hidden_BLD, _ = model(tokens_BL, build_positions_from_mask(mask_BL), None, make_causal_attn_mask(mask_BL),
                          hidden=True)
    embedding_VD, cap = model.embedder.input_embedding[...], getattr(model, "final_logits_softcap", None)

    @jax.checkpoint
    def chunk(hidden_BTD: jax.Array, *more_BT):
        logits_BTV = head_logits(hidden_BTD, embedding_VD, cap)[..., :vocabulary]
        return read(jax.nn.log_softmax(logits_BTV.astype(jnp.float32)), *more_BT)

    return in_chunks(math.ceil(length / positions), chunk, hidden_BLD[:, -length - 1:-1], *more_BT)


def cells(logprobs_BTV: jax.Array, ids_BTK: jax.Array) -> jax.Array:
    """The log-probabilities of the tokens `ids_BTK` and, last, of all others together: (B, T, K + 1).

    A divergence between the cells of two distributions is at most that between the distributions. What it lacks is the
    part inside the rest. For a KL that is at most r s^2 / 8 nats. r is the mass that the KL's first argument gives the
    rest, and s is the range of ln(teacher / student) over the rest's tokens (Hoeffding's lemma). For the Jensen-Shannon
    divergence it is at most ln 2 (beta r_teacher + (1 - beta) r_student).
    """
    chosen_BTK = jnp.take_along_axis(logprobs_BTV, ids_BTK, -1)
    others_BTV = jnp.put_along_axis(logprobs_BTV, ids_BTK, 10 * NOTHING, -1, inplace=False)
    rest_BT1 = jax.nn.logsumexp(others_BTV, axis=-1, keepdims=True)
    return jnp.concatenate([chosen_BTK, jnp.maximum(rest_BT1, NOTHING)], -1)


def top_cells(logprobs_BTV: jax.Array, top_k: int) -> tuple[jax.Array, jax.Array]:
    """The ids of the `top_k` most likely tokens, (B, T, K), and their `cells`."""
    ids_BTK = jax.lax.top_k(logprobs_BTV, min(top_k, logprobs_BTV.shape[-1]))[1]
    return ids_BTK, cells(logprobs_BTV, ids_BTK)


def divergence(student_BTC: jax.Array, teacher_BTC: jax.Array, beta: float) -> jax.Array:
    """In nats per token, (B, T), from log-probabilities over the same cells. Source: GKD's section 2 and its `beta`.

    With m = beta teacher + (1 - beta) student: beta KL(teacher || m) + (1 - beta) KL(student || m). At beta 0
    and 1, where that is 0, it is the KL of `DistillSettings`: the limit of that value over beta, or over 1 - beta.
    """

    def kl(of_BTC: jax.Array, to_BTC: jax.Array) -> jax.Array:
        return (jnp.exp(of_BTC) * (of_BTC - to_BTC)).sum(-1)

    if beta in (0, 1):
        return kl(student_BTC, teacher_BTC) if beta else kl(teacher_BTC, student_BTC)
    mixed_BTC = jnp.logaddexp(teacher_BTC + math.log(beta), student_BTC + math.log1p(-beta))
    return beta * kl(teacher_BTC, mixed_BTC) + (1 - beta) * kl(student_BTC, mixed_BTC)


def mean_per_row(values_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """The mean over each row's tokens (mask 1), then over the rows, as in GKD's algorithm 1."""
    return ((values_BT * mask_BT).sum(-1) / jnp.maximum(mask_BT.sum(-1), 1)).mean()


def format_targets(tokens_T: np.ndarray, tokenizer) -> np.ndarray:
    """The tokens that our format wants in a completion, (T,), 0 where it leaves the choice to the text.

    First comes the reasoning's tag. The others are those tokens of the completion that open a block where it should be
    opened, or end it after its answer. One that a tag shares with the text, such as ">**", is among them.
    """
    pieces = [tokenizer.piece(int(token)) if token < tokenizer.vocab_size else "" for token in tokens_T]
    texts = [_BYTE.sub(lambda byte: chr(int(byte[1], 16)), piece).replace("\u2581", " ") for piece in pieces]
    sizes_T = np.array([*map(len, texts)])
    ends_T, found = sizes_T.cumsum(), _FORMAT.match("".join(texts))
    spans = [found.span(group) for group in (1, 2, 3)] if found else []
    right_T = np.any([(ends_T > start) & (ends_T - sizes_T < end) for start, end in spans], axis=0) & (sizes_T > 0)
    targets_T = np.where(right_T, tokens_T, 0)
    targets_T[0] = targets_T[0] or tokenizer.encode(TAGS.reasoning_start)[0]
    return targets_T


def positions_at_once(mesh: Mesh, rows: int, vocabulary: int) -> int:
    """How many tokens of each row to read at a time, if a chip of the mesh has room for `LOGITS` logits."""
    return max(1, LOGITS * mesh.shape["fsdp"] // (rows * vocabulary))


def student_loss(settings: DistillSettings, mesh: Mesh, vocabulary: int) -> Callable:
    """The student's loss, a function of its model, `tokens_BL`, the `format_targets` and the teacher's `top_cells`.

    Where the format wants a token, the loss is the negative log-likelihood of that. A teacher that never learned our
    tags hardly opens them, and the student would unlearn them from it.
    """
    positions = positions_at_once(mesh, settings.batch_size, vocabulary)
    length = settings.max_new_tokens

    def loss(model: nnx.Module, tokens_BL: jax.Array, targets_BT: jax.Array, ids_BTK: jax.Array,
             teacher_BTC: jax.Array) -> jax.Array:
        def read(logprobs_BTV, targets_BT, ids_BTK, teacher_BTC):
            wanted_BT = jnp.take_along_axis(logprobs_BTV, targets_BT[..., None], -1)[..., 0]
            taught_BT = divergence(cells(logprobs_BTV, ids_BTK), teacher_BTC, settings.beta)
            return jnp.where(targets_BT == 0, taught_BT, -wanted_BT)

        values_BT = read_completions(model, tokens_BL, length, vocabulary, positions, read, targets_BT, ids_BTK,
                                     teacher_BTC)
        return mean_per_row(values_BT, (tokens_BL[:, -length:] != 0).astype(jnp.float32))

    return loss


def teacher_pass(settings: DistillSettings, mesh: Mesh, vocabulary: int) -> Callable:
    """The teacher's part, on its mesh: a function of its model and `tokens_BL` that returns the `top_cells`."""
    positions = positions_at_once(mesh, settings.batch_size, vocabulary)

    def score(model: nnx.Module, tokens_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
        return read_completions(model, tokens_BL, settings.max_new_tokens, vocabulary, positions,
                                lambda logprobs_BTV: top_cells(logprobs_BTV, settings.top_k))

    return score


def _vocabulary(policy, teacher, texts: list[str]) -> int:
    """The number of embedding rows that both have. Raises ValueError if their tokenizers differ."""
    ours, theirs = policy.tokenizer, teacher.tokenizer
    if ours.vocab_size != theirs.vocab_size or [*map(ours.encode, texts)] != [*map(theirs.encode, texts)]:
        raise ValueError(f"{teacher.name} splits text into other tokens than {policy.name}, so their "
                         "distributions cannot be compared: take a teacher of the same family")
    return min(policy.config.num_embed, teacher.config.num_embed)  # some files have unused rows at the end


def _batches(rows: Dataset, tokenizer, settings: DistillSettings, seed: int) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches: `prompts` for the student, or the `tokens_BL` of worked solutions. Those that are too long are
    left out. Raises TooFewRows if less than one batch is left."""
    size, width = settings.batch_size, settings.max_prompt_length
    length = width + settings.max_new_tokens

    def worked_batches() -> Iterator[dict[str, np.ndarray]]:
        pairs = [(prompt, completion) for prompt, completion in sft_pairs(rows, tokenizer, length)
                 if len(prompt) <= width and len(completion) <= settings.max_new_tokens]
        for numbers in shuffle_rows(pairs, size, seed):
            tokens_BL = np.zeros((size, length), np.int32)
            for row, (prompt, completion) in zip(tokens_BL, (pairs[number] for number in numbers), strict=True):
                row[width - len(prompt):width + len(completion)] = prompt + completion
            yield {"tokens_BL": tokens_BL}

    sampled, solved = grpo_batches(rows, tokenizer, size, width, seed), worked_batches()
    for step in itertools.count():
        yield next(sampled if np.random.default_rng([seed, step]).random() < settings.on_policy else solved)


def distill(
    policy, teacher, mesh: Mesh, teacher_mesh: Mesh, rows: Dataset, settings: DistillSettings,
    budget: TimeBudget, log, checkpoints: Path, seed: int, start_step: int,
    on_step: Callable[[], None] = lambda: None,
) -> loop.StageResult:
    """Move the adapter of `policy` towards `teacher`, on its own completions of the questions in `rows`.

    Both are a `LoadedModel`. Starts from the step under which the last stage left the adapter (or 0), and resumes from
    later steps in `checkpoints`. Rows "distill_step" of the log have the divergence as loss, in nats per token, the
    mean length of the completions, whether they are the student's own (`on_policy`), and the mean mass that the teacher
    gives the tokens that do not cross (`rest`). Raises ValueError if the batch does not divide over a mesh, or the
    two models split text into different tokens.
    """
    check_divides(settings.batch_size, mesh, "distillation batch_size")
    check_divides(settings.batch_size, teacher_mesh, "distillation batch_size, for the teacher,")
    vocabulary = _vocabulary(policy, teacher, [TAGS.prompt(question) for question in rows["question"][:16]])
    last = settings.steps if budget.grows else settings.last_step
    loop.begin(policy.model, checkpoints, "distill", start_step, last)
    trainer = peft_trainer.PeftTrainer(
        policy.model, tunix_compat.adamw(settings),
        peft_trainer.TrainingConfig(**tunix_compat.trainer_options(settings, checkpoints, start_step + last)))
    done, length, width = trainer.train_steps - start_step, settings.max_new_tokens, settings.max_prompt_length
    config = sampling(policy.tokenizer, max_prompt_length=width, max_new_tokens=length, temperature=1.0, seed=seed)
    rollout = Rollout(policy.model, policy.tokenizer, mesh, config)  # reads the weights that are trained
    numbers = itertools.count(done)  # of the steps before this one
    seen: dict[int, dict] = {}  # by step, for the log

    trainer.with_loss_fn(student_loss(settings, mesh, vocabulary)).with_gen_model_input_fn(lambda example: example)
    graph, state = nnx.split(teacher.model)
    read = teacher_pass(settings, teacher_mesh, vocabulary)

    @jax.jit
    def score(state: nnx.State, tokens_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
        return read(nnx.merge(graph, state), tokens_BL)

    def sample(prompts: list[str], number: int) -> np.ndarray:
        rollout.calls = number  # a resumed stage draws the same
        with mesh:
            output = rollout.generate(prompts, config)
        tokens_BL = np.zeros((settings.batch_size, width + length), np.int32)
        tokens_BL[:, :width] = output.left_padded_prompt_tokens
        for row, completion in zip(tokens_BL, output.tokens, strict=True):
            row[width:][:len(completion)] = completion
        return tokens_BL

    def prepare(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        number, own = next(numbers), "prompts" in batch
        tokens_BL = sample(list(batch["prompts"]), number) if own else batch["tokens_BL"]
        with teacher_mesh:
            ids_BTK, teacher_BTC = map(fetch, score(state, split_rows(tokens_BL, teacher_mesh)))
        mask_BT = tokens_BL[:, width:] != 0
        seen[number + 1] = {"length": float(mask_BT.sum(-1).mean()), "on_policy": own,
                            "rest": float(np.exp(teacher_BTC[..., -1])[mask_BT].mean())}
        targets_BT = np.stack([format_targets(tokens_T, policy.tokenizer) for tokens_T in tokens_BL[:, width:]])
        arrays = {"tokens_BL": tokens_BL, "targets_BT": targets_BT, "ids_BTK": ids_BTK, "teacher_BTC": teacher_BTC}
        return {name: split_rows(array, mesh) for name, array in arrays.items()}

    return loop.train_stage(trainer, mesh, _batches(rows, policy.tokenizer, settings, seed), "distill", settings,
                            budget, log, checkpoints, start_step, lambda ctx, step: seen.pop(step), on_step,
                            prepare=prepare, most=last)


def train_toy_teacher(base: LoadedModel, mesh: Mesh, rows: Dataset, run: Run) -> LoadedModel:
    """A teacher for a tiny policy, because no larger model has its tokens: the base model with another adapter, trained
    by SFT only on rows whose worked solution shows its steps. It gets at most a quarter of the stage's time.

    Its checkpoints are in the stage's folder `teacher`. Training resumes from them, and a finished one is read back.
    """
    profile, folder = run.profile, run.stage("distill/teacher")
    teacher = replace(base, name=f"{base.name}, trained on worked steps",
                      model=add_lora(base.model, mesh, profile.lora_rank, profile.lora_alpha, run.seed))
    taught = folder / "taught"  # the clock may have ended it before its last step
    if broadcast_from_main(taught.exists()):
        restore_lora(teacher.model, folder)
    else:
        quarter = TimeBudget(run.budget.stage_minutes("distill") / 240, 0, agree=agree_on_end, grows=run.budget.grows)
        sft(teacher, mesh, rows, replace(profile.sft, skip_terse=True), quarter, run.log("distill/teacher"), folder,
            run.seed)
        on_main_process(write_atomic)(taught, "")
    return teacher
