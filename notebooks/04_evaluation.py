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
# Did it help? The same test questions, never trained on, are put to the stock model, to the model after SFT and to the
# model after GRPO, with the judges' own decoding (greedy). Every figure comes with its 95 % interval, and stages are
# compared question by question.
#
# **What comes in:** the adapters of notebooks 2 and 3. **What comes out:** `artifacts/report.html`, and the certainty that
# the judges will load what was evaluated here.

# %% tags=["parameters"]
PROFILE = "cpu"  # where it runs: cpu, kaggle, colab, gpu
RECIPE = "g_rar"  # what is trained: a file in recipes/
SEED = 0

# %%
# {{setup}}

# %%
from dataclasses import replace

import jax
from reasonkit.data import problems
from reasonkit.eval.evaluate import evaluate, compare_paired
from reasonkit.models import checkpoints, lora, placement
from reasonkit.models.load import load
from reasonkit.run import open_run
from reasonkit.session.manifest import cut_short
from reasonkit.train import rollout

# %%
policy = generate = None  # free the chips of a run that was stopped in this kernel
run = open_run(PROFILE, RECIPE, SEED)
profile, manifests = run.profile, [run.manifest(stage) for stage in ("data", "sft", "grpo")]
test = problems.read_rows(run.stage("data") / "test.jsonl")
print(*cut_short(manifests), f"{len(test)} test problems; {run.budget.minutes_left:.1f} minutes left", sep="\n")

# %%
plan = placement.plan(profile, jax.devices(), judge=False)
policy = load(profile.policy, plan.policy, profile.dtype, replicated="policy" not in plan.gathered)
policy = replace(policy, model=lora.add_lora(policy.model, plan.policy, profile.lora_rank, profile.lora_alpha, SEED))
limits = dict(max_prompt_length=profile.grpo.max_prompt_length, max_new_tokens=profile.grpo.max_new_tokens)
generate = rollout.generator(policy.model, policy.tokenizer, plan.policy, batch_size=profile.eval_batch, **limits)

# %% [markdown]
# ## Three stages, one set of questions
#
# A fresh adapter is zero, so the first row is the stock model. *Accuracy* wants the answer in its tag; the form around it
# is reported apart. The stock model was never shown the tags: *by content* counts its bare answers too, by the same rule
# for all three. *Steps* is the share of worked steps that are right, measured by a program.

# %%
from itertools import count

from reasonkit.show.dashboard import Dashboard

log, steps, results = run.log("evaluation"), count(1), {}
board = Dashboard(log, run.budget, "Evaluation", 3 * -(-len(test) // profile.eval_batch))
board.show()

# %%
def score(name):
    def on_batch(so_far):
        log.write("evaluation_step", step=next(steps), series=name, accuracy=so_far.accuracy.mean)
        board.update()

    results[name] = evaluate(generate, test, profile.eval_batch, on_batch)
    print(f"{name:>10}: {results[name]}")

# %%
score("stock")
for name, stage in (("after SFT", "sft"), ("after GRPO", "grpo")):
    checkpoints.restore_lora(policy.model, run.stage(stage) / "adapter")
    score(name)
board.figure(run.stage("evaluation") / "curves.png")

# %% [markdown]
# ## Is the difference real?
#
# On the same questions, so the comparison is paired. Interval and p-value are of one test: p is below 0.05 exactly when
# zero lies outside.

# %%
comparisons = {name: compare_paired(results["after SFT"], results["after GRPO"], field)
               for name, field in (("accuracy, GRPO against SFT", "correct"), ("steps, GRPO against SFT", "steps"))}
for name, difference in comparisons.items():
    print(f"{name}: {difference}")

# %%
for family, result in results["after GRPO"].by_family().items():
    print(f"{family:>10}: {result.accuracy}")

# %% [markdown]
# ## What still goes wrong

# %%
print(results["after GRPO"].failures)
for sample in [row for row in results["after GRPO"].samples if not row["correct"]][:3]:
    print(f"\n{sample['question']}\n  {sample['completion']!r}\n  right: {sample['gold']}")

# %% [markdown]
# ## The judges' way in
#
# The checkpoint folder is loaded once more in a fresh process, exactly as the competition's template does it: the highest
# step, the adapter alone, their sampler and cache, their decoding. It must be the adapter that was evaluated above.

# %%
from reasonkit.models.submission_check import verify_submission

pairs = [(row["question"], row["completion"]) for row in results["after GRPO"].samples[:8]]
print(verify_submission(run.checkpoints, lora.fingerprint(policy.model), pairs, model=str(policy.folder),
                        dtype=profile.dtype, rank=profile.lora_rank, alpha=profile.lora_alpha, **limits))

# %% [markdown]
# ## The report

# %%
from reasonkit.show.report import write_report
from reasonkit.session.run_log import RunLog

for name, result in results.items():
    result.to_json(run.stage("evaluation") / f"{name.replace(' ', '_').lower()}.json")
run.finish("evaluation", inputs={"test": run.stage("data") / "test.jsonl"}, minutes=run.budget.minutes_here,
           problems=results["stock"].n,
           metrics={name: {"accuracy": result.accuracy, "content": result.content_accuracy, "form": result.format_rate,
                           "steps": result.step_accuracy} for name, result in results.items()})
logs = run.log("sft"), run.log("grpo"), RunLog(run.stage("grpo") / "verdicts.jsonl")
manifests.append(run.manifest("evaluation"))
rows = [row for log in logs for row in log.read()]
path = write_report(run.folder / "report.html", results, comparisons, manifests, rows, [], sum(log.skipped for log in logs))
print(f"report: {path}; {run.budget.minutes_left:.1f} minutes left")

# %% [markdown]
# ## For others
#
# The adapter in PEFT's format, a few megabytes, and a model card written from the manifests. Nothing leaves this machine
# unless the secret `KAGGLE_MODEL_HANDLE` names a place (`you/gemma2-2b-reasons/flax/2b-it`): then the merged model is
# written in Flax too, loaded again and compared with what was evaluated here, and uploaded. `tools.hf.export`
# writes it for transformers, with the prompt as its chat template.

# %%
from tools import export, publish

out, base = run.folder / "export", export.base_name(policy)
print("adapter and card:", publish.write_card(export.export_peft(policy, out / "peft"), manifests, base).parent)
if handle := publish.handle_from_secrets():
    flax = export.export_flax(policy, out / "flax", manifests[-2]["extra"]["checkpoint_step"])
    print(verify_submission(flax, lora.fingerprint(policy.model), pairs, model=str(policy.folder), dtype=profile.dtype,
                            rank=profile.lora_rank, alpha=profile.lora_alpha, **limits))
    publish.write_card(flax, manifests, base)
    print(publish.publish(flax, handle))
run.close()
