"""SimPO (arXiv 2405.14734): the adapter learns to prefer one completion to another, with Tunix's `DPOTrainer`.

`read_or_sample_pairs` gives pairs of a chosen and a rejected completion, and `simpo` trains on them. The implicit
reward is beta times the mean log-probability per token, and gamma is in its units. There is no reference model. Inputs
are ids, because Tunix's string inputs put <bos> before each completion and no stop token after it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from datasets import Dataset
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tunix.sft.dpo.dpo_trainer import DPOTrainer, DPOTrainingConfig, TrainExample, TrainingInput

from reasonkit.data.rows import TooFewRows, shuffle_rows
from reasonkit.data.screening import is_worked
from reasonkit.models.logprobs import token_logprobs
from reasonkit.models.mesh import check_divides
from reasonkit.run import Run
from reasonkit.session.time_budget import TimeBudget
from reasonkit.settings import SimpoSettings
from reasonkit.text.tags import TAGS, neutralise
from reasonkit.train import loop, tunix_compat
from recipes.stages.traces import checkable, examine, own_completions, pairs, read_or_make, sampled_file

COLUMNS = ("question", "chosen", "rejected")


def sample_pairs(policy, mesh: Mesh, rows: Dataset, settings: SimpoSettings, batch_size: int, budget: TimeBudget,
                 seed: int) -> list[dict[str, str]] | None:
    """Pairs of the policy's own completions, at most one for each of `settings.questions` of the rows.

    The chosen one has the right answer and the right format, and shows its work (`traces.examine`). If the policy wrote
    none, it is the row's worked solution, if that passes the same tests. `by` is then "data", else "policy".
    `batch_size` completions are sampled at once, for at most half of the stage's time. If that ends before there are
    pairs for one step, returns None, because another session may have more. Questions that no program can check are
    left out. If there is no pair, prints what the completions were rejected for.
    """
    asked = checkable(rows, settings.questions, seed)
    minutes = budget.part("simpo", 1 / 2)
    samples = own_completions(policy, mesh, asked, settings, batch_size, minutes, seed)
    ended = len(samples) < len(asked) * settings.num_generations  # by the clock
    solved = {sample["id"] for sample in samples if not sample["cause"]}
    for row in (row for row in asked if row["id"] not in solved and is_worked(row)):
        text = TAGS.render(reasoning=row["reasoning"], answer=row["answer"])
        worked = {**examine(row, text), "by": "data"}
        if not worked["cause"]:
            samples.append(worked)
    found = pairs(samples)
    if ended and len(found) < settings.batch_size:
        print(f"the {len(found)} pairs so far are fewer than one batch of {settings.batch_size}, so they are not kept")
        return None
    if not found:
        causes = dict(Counter(sample["cause"] for sample in samples if sample["cause"]))
        print(f"no question has a completion to choose and one to reject. Of {len(samples)} completions, those "
              f"rejected are: {causes}. In another folder, take more questions or, if none can be chosen, more steps "
              "of SFT",
              file=sys.stderr)
    return found


def read_or_sample_pairs(run: Run, policy, mesh: Mesh, rows: Dataset) -> tuple[list[dict[str, str]], dict[str, Path]]:
    """The pairs of notebook 1b, or else those of `sample_pairs`, and their file as the stage's input "pairs". Sampled
    ones are kept for a resumed stage, and a finished stage samples none."""
    settings, grpo, taught = run.profile.simpo, run.profile.grpo, run.stage("teacher") / "pairs.jsonl"
    own = sampled_file(run.stage("simpo"), "pairs", run.inputs("simpo"), settings, settings.questions, run.seed)
    source = taught if taught.exists() else own
    at_once = grpo.prompts_per_call * grpo.num_generations  # as many as GRPO samples, so they fit
    found = read_or_make(source, lambda: None if run.is_done("simpo") else sample_pairs(
        policy, mesh, rows, settings, at_once, run.budget, run.seed))
    return found, {"pairs": source} if source.exists() else {}


def pair_batches(
    pairs: Sequence[Mapping[str, str]], tokenizer, batch_size: int, max_prompt_length: int, max_new_tokens: int,
    seed: int,
) -> Iterator[TrainingInput]:
    """Endless batches of pairs: prompts left-padded, completions right-padded and ended by their stop token.

    A rejected completion that was cut off has no stop token: SimPO would make stopping less likely. Other pairs that
    are too long are left out. Raises ValueError if a pair lacks one of `COLUMNS`, and TooFewRows if no batch is left.
    """
    encoded = []
    for row in pairs:
        if missing := [name for name in COLUMNS if name not in row]:
            raise ValueError(f"a pair has no {', '.join(missing)}, only {', '.join(row)}: it is {', '.join(COLUMNS)}")
        prompt = [tokenizer.bos_id(), *tokenizer.encode(TAGS.prompt(row["question"]))]
        chosen, rejected = ([*tokenizer.encode(neutralise(row[name])), tokenizer.end_of_turn]
                            for name in COLUMNS[1:])
        if TAGS.parse(row["rejected"]).cut_off:
            rejected = rejected[:-1][:max_new_tokens]
        if len(prompt) <= max_prompt_length and max(len(chosen), len(rejected)) <= max_new_tokens:
            encoded.append((prompt, chosen, rejected))
    if len(encoded) < batch_size:
        raise TooFewRows(
            f"of {len(pairs)} pairs, {len(encoded)} have at most {max_prompt_length} tokens in the prompt and "
            f"{max_new_tokens} in each completion with its stop token, and a batch takes {batch_size}: ask more "
            "questions, allow longer completions, or lower the batch size")

    def pad_rows(rows: tuple[list[int], ...], length: int, left: bool) -> tuple[np.ndarray, np.ndarray]:
        ids_BL = np.full((batch_size, length), tokenizer.pad_id(), np.int32)
        mask_BL = np.zeros((batch_size, length), bool)
        for number, row in enumerate(rows):
            here = slice(length - len(row), None) if left else slice(len(row))
            ids_BL[number, here], mask_BL[number, here] = row, True
        return ids_BL, mask_BL

    for numbers in shuffle_rows(encoded, batch_size, seed):
        prompts, chosen, rejected = zip(*(encoded[number] for number in numbers), strict=True)
        yield TrainingInput(*pad_rows(prompts, max_prompt_length, left=True),
                            *pad_rows(chosen, max_new_tokens, left=False),
                            *pad_rows(rejected, max_new_tokens, left=False))


def pair_loss(chosen_B, rejected_B, beta: float, gamma: float, label_smoothing: float) -> jax.Array:
    """The loss of each pair, from the mean log-probabilities per token of its two completions.

    -log sigmoid(z) with z = beta (chosen - rejected) - gamma, equation 6 of the paper. With a share
    `label_smoothing` of -log sigmoid(-z), as in its authors' code.
    """
    z_B = beta * (chosen_B - rejected_B) - gamma
    return -(1 - label_smoothing) * jax.nn.log_sigmoid(z_B) - label_smoothing * jax.nn.log_sigmoid(-z_B)


def loss_fn(settings: SimpoSettings) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """The loss of a batch as Tunix calls it, (model, train_example), with the six metrics that it logs."""
    beta, gamma, smoothing = settings.beta, settings.gamma, settings.label_smoothing

    def loss(model, train_example: TrainExample) -> tuple[jax.Array, dict[str, jax.Array]]:
        logps_RL, _ = token_logprobs(model, train_example.input_ids, train_example.positions,
                                     train_example.attention_mask, train_example.logits_to_keep)
        mask_RL = train_example.completion_mask.astype(jnp.float32)
        mean_R = (logps_RL * mask_RL).sum(-1) / mask_RL.sum(-1)  # never 0: no completion is empty
        chosen_B, rejected_B = jnp.split(mean_R, 2)  # Tunix stacks the chosen over the rejected
        metrics = {
            "rewards/chosen": beta * chosen_B, "rewards/rejected": beta * rejected_B,
            "rewards/margin": beta * (chosen_B - rejected_B), "rewards/accuracy": chosen_B > rejected_B,
            "log_probs/chosen": chosen_B, "log_probs/rejected": rejected_B}
        loss_B = pair_loss(chosen_B, rejected_B, beta, gamma, smoothing) - settings.sft_weight * chosen_B
        return loss_B.mean(), {name: value_B.mean() for name, value_B in metrics.items()}

    return loss


def simpo(
    policy, mesh: Mesh, pairs: Sequence[Mapping[str, str]], settings: SimpoSettings, budget: TimeBudget, log,
    checkpoints: Path, seed: int, start_step: int, on_step: Callable[[], None] = lambda: None,
) -> loop.StageResult:
    """Train the adapter of `policy` on the pairs, from the step under which the last stage left it (or 0).

    It resumes from later steps in `checkpoints`. Rows "simpo_step" of the log have the mean margin, beta x (chosen -
    rejected), and the share of pairs where it is above zero. Raises ValueError if the rows do not divide over the
    mesh, and as `pair_batches` does. Too few pairs end the stage as `loop.end_failed` says.
    """
    check_divides(2 * settings.batch_size, mesh, "SimPO 2 x batch_size")
    loop.begin(policy.model, checkpoints, "simpo", start_step, settings.steps)
    trainer = DPOTrainer(
        policy.model, None, tunix_compat.adamw(settings),
        DPOTrainingConfig(**tunix_compat.trainer_options(settings, checkpoints, start_step + settings.steps)))
    trainer.with_loss_fn(loss_fn(settings), has_aux=True)
    every, by_rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("fsdp",)))
    # Tunix stacks chosen and rejected on the devices that hold them, and would take an array of one process for that
    # process's share of the batch.
    trainer.with_gen_model_input_fn(
        lambda example: {"train_example": jax.lax.with_sharding_constraint(example, by_rows)})

    def extra(ctx, step: int) -> dict:
        return {name: float(ctx.metrics_logger.get_metric_history("", f"rewards/{name}", "train")[-1])
                for name in ("margin", "accuracy")}

    batches = pair_batches(pairs, policy.tokenizer, settings.batch_size, settings.max_prompt_length,
                           settings.max_new_tokens, seed)
    return loop.train_stage(trainer, mesh, batches, "simpo", settings, budget, log, checkpoints, start_step, extra,
                            on_step, prepare=lambda batch: jax.device_put(batch, every))
