# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4 · Evaluation
#
# Did training help? To find out, we ask the base model and the model after each stage the same test questions, none of
# which was used in training. We decode greedily, as the competition's judges do.
#
# An instruction-tuned Gemma keeps the format in about half of its completions before SFT.

# %% [markdown] tags=["clone"]
# **What to expect in the demo of `g_rar`:** accuracy rises from about 54 % after SFT to about 75 % after GRPO, and
# step accuracy from about 12 % to about 89 %. The demo's base model scores 0 %, because it writes no tags. Judged by
# content, it gets about 66 % right.
#
# - **Input:** the data of notebook 1 and the adapters of the stages.
# - **Output:** `artifacts/report.html`, and a check that the judges will load the adapter that was evaluated here.
# - **What to change:** the number of test problems is in the profile (`rows`, in `reasonkit/config.py`). To halve the
#   width of an interval you need four times as many problems.

# %% tags=["parameters"]
PROFILE = "cpu"  # where it runs: cpu, kaggle, colab, gpu
RECIPE = "g_rar"  # what is trained: a file in recipes/
SEED = 0
SETTINGS = {  # in these lines 0 and "" leave the profile's value. The same in all notebooks of a run
    "policy": "", "judge": "",  # models, such as "gemma3-1b-it"
    "sft_steps": 0, "sft_learning_rate": 0,
    "grpo_steps": 0, "grpo_learning_rate": 0,
    "minutes": 0,  # of the session
}

# %%
# {{setup}}

# %%
import jax
from dataclasses import replace
from reasonkit.config import STAGES
from reasonkit.data.rows import read_rows
from reasonkit.eval.evaluate import compare_paired, evaluate
from reasonkit.models import checkpoints, lora, placement
from reasonkit.models.submission_check import PROMPT_ROOM, ending_turns, load_in_place, verify_submission
from reasonkit.run import open_run
from reasonkit.session.manifest import caveats
from reasonkit.session.run_log import RunLog
from reasonkit.show import report
from reasonkit.show.completions import Ask, adapter_in
from reasonkit.show.figures import dots
from reasonkit.train import rollout

# %%
policy = lora_policy = generate = sample = ask = None  # free the chips of a run that was stopped in this kernel
run = open_run(PROFILE, RECIPE, SEED, settings=SETTINGS)
profile, trained = run.profile, run.recipe.training_stages
manifests = [run.manifest(stage) for stage in ("data", *trained)]
test = read_rows(run.stage("data") / "test.parquet")
print(*caveats(manifests), f"{len(test)} test problems; {run.budget.minutes_left:.1f} minutes left", sep="\n")

# %%
plan = placement.plan(profile, jax.devices(), judge=False)
policy, _ = placement.load_policy(replace(profile, remat=False), plan, SEED)  # nothing is trained here
limits = dict(max_prompt_length=profile.grpo.max_prompt_length, max_new_tokens=profile.grpo.max_new_tokens)
generate = rollout.generator(policy.model, policy.tokenizer, plan.policy, batch_size=profile.eval_batch, **limits)
# The judges' code loads the adapter onto this model, and places it on the devices that the file names. GRPO with a judge
# saves from half of the chips, so we save it once more from here. The judges read the names in the last line.
checkpoints.restore_lora(policy.model, run.stage(trained[-1]) / "adapter")
checkpoints.save_lora(policy.model, run.checkpoints, checkpoints.next_step(run.checkpoints))
lora_policy, tokenizer, model_config = policy.model, ending_turns(policy.tokenizer), policy.config

# %% [markdown]
# ## All stages, the same questions
#
# Without its adapter the policy is the base model, which we evaluate first. There are four measures:
#
# - **Accuracy:** the answer in the answer tag is right.
# - **Content accuracy:** what the completion says last is right, in a tag or without one. The base model was never
#   trained on the tags, so this is the measure to compare with it.
# - **Format rate:** the share of completions in which every tag appears once, in order, with nothing around them.
# - **Step accuracy:** the share of reasoning steps that equal the worked solution's step at the same place, as counted
#   by a program. It is shown only if most problems have a solution in steps, as in the demo.
#
# Each is a mean over the test problems. The 95 % interval says how far it could move with other problems of the same
# kind. It does not say how far it would move with another seed of training. The method is mid-p (Lancaster 1961), which
# also works near 0 and 100 %. Decoding is greedy, so running the cell again gives the same figures.
#
# A program can score every test problem. In the mix of `g_rar` they are from mathematics and
# science. For open questions, such as creative writing, the judge measures what training does, in the chapter on GRPO.

# %%
report.table(["setting", "value", "why"], [
    ["test problems", len(test), "with 1,000 an interval reaches three points to either side, with 200 seven"],
    ["decoding", "greedy", "as the competition's judges decode"],
    ["max_new_tokens", limits["max_new_tokens"], "as in training. A completion that is cut off has no answer"],
    ["eval_batch", profile.eval_batch, "completions at once. It changes the speed, and figures only by rounding"]], "")

# %%
results = {}
with adapter_in(policy.model, None):
    results["base model"] = evaluate(generate, test, profile.eval_batch)
for stage in trained:
    checkpoints.restore_lora(policy.model, run.stage(stage) / "adapter")
    results[f"after {STAGES[stage].title}"] = evaluate(generate, test, profile.eval_batch)
for name, result in results.items():
    print(f"{name}: {result}")
report.results_table(results, caveats(manifests))

# %%
measures = report.measures_of(results)
dots({name: {stage: getattr(result, measure) for stage, result in results.items()}
      for name, measure in measures.items()})

# %% [markdown]
# ## Is the difference larger than chance?
#
# All stages answered the same questions. So we take the change question by question, and its mean
# $d = \frac{1}{n}\sum_i (x_i^{after} - x_i^{before})$. p is below 0.05 exactly when the interval excludes zero. Then other
# questions would hardly reverse the change, but another seed of training still could. The base model is compared by
# content, because it was never trained on the tags.

# %%
from itertools import pairwise

base, *_, last = results.values()
titles = [STAGES[stage].title for stage in trained]
comparisons = {f"content accuracy, {titles[-1]} against base": compare_paired(base, last, "content")}
for one, two in pairwise(titles):
    before, after = results[f"after {one}"], results[f"after {two}"]
    comparisons[f"accuracy, {two} against {one}"] = compare_paired(before, after)
    if "step_accuracy" in measures.values():
        comparisons[f"step accuracy, {two} against {one}"] = compare_paired(before, after, "steps")
report.comparison_table(comparisons)

# %%
dots({"change, paired": comparisons}, points=True)

# %% [markdown]
# ## Where it helps
#
# An average can hide problems that got worse, so here are the right answers by content, per family in the demo and per
# domain on real data. In the demo of `g_rar` three families end below the base model: `sequence` (98 to 62 %), `largest`
# (94 to 80 %) and, within its interval, `above` (69 to 66 %). `coins` rises from 10 to 73 %.

# %%
report.family_table(results)

# %% [markdown] tags=["clone"]
# ## More than one greedy completion
#
# **pass@k** is the chance that at least one of $k$ sampled completions is right, $1 - \binom{n-c}{k} / \binom{n}{k}$ if
# $c$ of $n$ are right (arXiv 2107.03374). **maj@k** is the chance that their most frequent answer is right. If pass@k
# is far above pass@1, the model can do more than its first try shows. Each sample costs as much as a greedy completion,
# and `SAMPLES = 0` skips this part.
#
# **What is the judge's score worth?** The second table shows the share of right answers at each level of its score.
# With a judge that can tell right from wrong it rises from level to level. The demo's judge can't: it was trained to
# see whether the steps are complete.

# %% tags=["clone"]
from tools.uncertainty import at_k_table, calibration_table

SAMPLES, ASKED = 4 if profile.policy == "tiny-policy" else 0, 200  # completions per problem, and the test problems that are asked
some = test.select(range(min(ASKED, len(test))))
sample = rollout.generator(policy.model, policy.tokenizer, plan.policy, batch_size=profile.eval_batch, temperature=1.0,
                           **limits)
sampled = [evaluate(lambda prompts, seed=seed: sample(prompts, seed), some, len(some))  # one call: each batch has its key
           for seed in range(SAMPLES)]
judged = calibration_table(run.log("grpo").read("reward"))
at_k_table(sampled) + judged if sampled else judged

# %% [markdown]
# ## What the completions look like
#
# Here are the stages side by side. A fixed rule picks the problems, so none of them is hand-picked.

# %%
report.side_by_side(results)

# %% [markdown]
# ## What still goes wrong
#
# The table counts each kind of failure per stage, the most frequent first. After training, wrong answers should be most
# of what is left.

# %%
report.failure_table(results)

# %% [markdown]
# ## The report
#
# `report.html` collects the tables above in one file, together with the training curves, the judge's scores over time
# and the versions.

# %%
for name, result in results.items():
    result.to_json(run.stage("evaluation") / f"{name.replace(' ', '_').lower()}.json")
run.finish("evaluation", inputs={"test": run.stage("data") / "test.parquet"}, minutes=run.budget.minutes_here,
           problems=last.n,
           metrics={name: {"accuracy": result.accuracy, "content": result.content_accuracy, "form": result.format_rate,
                           **({"steps": result.step_accuracy} if "Step accuracy" in measures else {})}
                    for name, result in results.items()})
manifests.append(run.manifest("evaluation"))
logs = [*map(run.log, trained), RunLog(run.stage("grpo") / "verdicts.jsonl")]
rows = [row for log in logs for row in log.read()]
path = report.write_report(run.folder / "report.html", results, comparisons, manifests, rows,
                           sum(log.skipped for log in logs))
print(f"report: {path}; {run.budget.minutes_left:.1f} minutes left")

# %% [markdown]
# ## The judges' loader
#
# Finally, we load the checkpoint as the competition's template does. It takes the adapter of the highest step, and
# answers with its own sampler and decoding. We do this twice: first in this kernel, onto this model, because that is
# what the judges do. Then we do it in a fresh process on the CPU, where nothing is left from training. If the adapter
# differs from the one that we evaluated, this cell fails. If this notebook runs on a CPU, too, the cell also fails if
# a completion differs.

# %%
pairs = [(row["question"], row["completion"]) for row in last.samples[:8]]
loaded = {**limits, "max_prompt_length": max(PROMPT_ROOM, limits["max_prompt_length"])}  # the prompts that the judges send
print(load_in_place(policy, run.checkpoints, pairs[:2], **loaded))
print(verify_submission(run.checkpoints, lora.fingerprint(policy.model), pairs, model=str(policy.folder),
                        dtype=profile.dtype, rank=profile.lora_rank, alpha=profile.lora_alpha, **loaded))

# %% [markdown]
# ## Ask your model
#
# Now try it yourself. The base model and the trained one answer the same question side by side, and in a live session
# there is a box for your own questions. In any other Python session, in the folder that contains `artifacts/`,
# `import reasonkit; reasonkit.ask("How many?")` does the same. To compare an earlier checkpoint with the last one, put
# this code into a new cell, with the number of a folder in `artifacts/checkpoints/actor` in place of 150:
#
# ```python
# from reasonkit.show.completions import adapter_in
#
# with adapter_in(policy.model, (run.checkpoints, 150)):
#     earlier = evaluate(generate, test, profile.eval_batch)
# report.comparison_table({"accuracy, last step against step 150": compare_paired(earlier, last)})
# ```

# %%
ask = Ask(policy.model, generate, {"base model": None, "trained": run.stage(trained[-1]) / "adapter"})
ask.show(test["question"][0])

# %% [markdown] tags=["clone"]
# ## Sharing the model
#
# The next cell writes the adapter in PEFT's format, some 110 MB for Gemma-3-1B and 170 MB for Gemma-2-2B, along with a
# model card made from the manifests. With `MERGED = True` it also writes the whole model for transformers and vLLM, and
# as GGUF for Ollama if llama.cpp's converter is on the PATH. Each card includes the code to run the model.

# %% tags=["clone"]
from tools import share

MERGED = False
share.share(policy, manifests, run.folder / "export", MERGED)

# %% [markdown] tags=["clone"]
# Nothing is uploaded unless a secret says where:
#
# - `HF_MODEL` (`you/gemma-2-2b-reasons`): the folder from the last cell goes to the Hugging Face hub, using the token
#   `HF_TOKEN`.
# - `KAGGLE_MODEL_HANDLE` (`you/gemma2-2b-reasons/flax/2b-it`): the merged model goes to Kaggle in Flax format. Before
#   the upload it is loaded again and its completions are compared with those above.

# %% tags=["clone"]
from reasonkit.session.secrets import secret
from tools import publish

if name := secret("HF_MODEL"):
    print(publish.publish_hub(run.folder / "export" / ("hf" if MERGED else "peft"), name))
if handle := secret("KAGGLE_MODEL_HANDLE"):
    share.share_flax(run, policy, manifests, pairs, handle)

# %%
run.close()  # another notebook may have the run now
