# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2b · SimPO
#
# SFT imitates worked solutions, also where the model itself knows better or worse. Now it compares its own completions:
# of two to the same question, one is right with its work shown, and the other was rejected. SimPO (arXiv 2405.14734)
# makes the first more likely than the second. It needs no reward model, no judge and no second copy of the policy.
#
# **The known danger:** preference training can cost the format. In a public run DPO took it from 89.5 to 76.8 %. A
# chosen completion may lose probability as long as the rejected one loses more. Two things stand against that here: the
# chosen completions keep the format, and a small SFT term holds their likelihood up. The tables at the end show whether
# it was enough.

# %% [markdown] tags=["clone"]
# - **Input:** the adapter of the stage before, and the training questions.
# - **Output:** the adapter in `artifacts/simpo/adapter`, and the pairs in `artifacts/simpo/pairs.jsonl`.
# - **What to change:** steps and learning rate in `SETTINGS`, as `simpo_steps`, the rest in the profile or the recipe.
#   If the format falls, lower the learning rate or raise `sft_weight`.
# - Pairs of notebook 1b are taken first. A judge there makes pairs of questions without a right answer, too.

# %% tags=["parameters"]
PROFILE = "cpu"  # where it runs: cpu, kaggle, colab, gpu
RECIPE = "pinocchio"  # what is trained: a file in recipes/
SEED = 0
SETTINGS = {  # 0 and "" leave the profile's value. The same in all notebooks of a run
    "policy": "", "judge": "",  # models, such as "gemma3-1b-it"
    "sft_steps": 0, "sft_learning_rate": 0,
    "grpo_steps": 0, "grpo_learning_rate": 0,
    "minutes": 0,  # of the session
}

# %%
# {{setup}}

# %%
from collections import Counter
from dataclasses import replace

import jax
from reasonkit.data.rows import read_rows
from reasonkit.eval.evaluate import compare_paired, evaluate
from reasonkit.models import checkpoints, lora, placement
from reasonkit.models.load import load
from reasonkit.run import open_run
from reasonkit.show import report
from reasonkit.show.dashboard import Dashboard
from reasonkit.show.figures import chips
from reasonkit.train import rollout
from recipes.stages.simpo import own_pairs, simpo

# %%
policy = generate = None  # free the chips of a run that was stopped in this kernel
run = open_run(PROFILE, RECIPE, SEED, settings=SETTINGS)
profile, inputs = run.profile, run.inputs("simpo")
train, validation = (read_rows(run.stage("data") / f"{name}.parquet") for name in ("train", "validation"))
print(f"{len(train)} training problems; {run.budget.minutes_left:.1f} minutes left")

# %% [markdown]
# ## The chips
#
# There is one model and no judge, so the policy has all the chips. A pair is two rows of a batch.

# %%
plan = placement.plan(profile, jax.devices(), judge=False)
for role, reason in plan.reasons.items():
    print(f"{role}: {reason}")
chips(plan)

# %%
policy = load(profile.policy, plan.policy, profile.dtype, replicated="policy" not in plan.gathered,
              remat=profile.remat)
policy = replace(policy, model=lora.add_lora(policy.model, plan.policy, profile.lora_rank, profile.lora_alpha, SEED))
start = checkpoints.restore_lora(policy.model, inputs["adapter"]) if "adapter" in inputs else 0
print(f"{policy.name} with the adapter of step {start}" if start else f"{policy.name} with a new adapter, which is zero")

# %% [markdown]
# ## Before training
#
# The policy answers validation questions greedily. They are more than in the other notebooks, because a loss of a few
# points of format must show.

# %%
limits = dict(max_prompt_length=profile.simpo.max_prompt_length, max_new_tokens=profile.simpo.max_new_tokens)
generate = rollout.generator(policy.model, policy.tokenizer, plan.policy, batch_size=profile.eval_batch, **limits)
sample = validation.select(range(min(2 * profile.eval_batch, len(validation))))
answers = {"before SimPO": evaluate(generate, sample, profile.eval_batch)}
print(answers["before SimPO"])

# %% [markdown]
# ## The pairs
#
# The policy answers training questions several times, at temperature 1. A completion is chosen if it keeps the format,
# has the right answer and shows its work. One that fails is its rejected partner, a wrong answer before any other fault.
# Both are the policy's own, so the difference between them is one that it can make. If none of its completions can be
# chosen, the worked solution of the data takes that place. A question that is always or never solved in the same way
# gives no pair.

# %%
taught = run.stage("teacher") / "pairs.jsonl"
inputs["pairs"] = taught if taught.exists() else run.stage("simpo") / "pairs.jsonl"
pairs = own_pairs(inputs["pairs"], policy, plan.policy, train, profile.simpo, profile.eval_batch, run.budget, SEED)
print(f"{len(pairs)} pairs, rejected for: {dict(Counter(pairs['cause']))}; chosen by: {dict(Counter(pairs['by']))}")

# %%
from markupsafe import Markup
from reasonkit.show.figures import colour_tags

shown = [[row["question"], *(Markup("<pre>{}</pre>").format(colour_tags(row[name])) for name in ("chosen", "rejected")),
          row["cause"], row["by"]] for row in pairs.select(range(min(4, len(pairs))))]
report.table(["question", "chosen", "rejected", "rejected for", "chosen by"], shown, "")

# %% [markdown]
# ## The objective
#
# For a question $x$ with chosen $y_w$ and rejected $y_l$, the implicit reward is $\beta$ times the mean log-probability
# per token. $\gamma$ is the margin aimed at, inside the sigmoid and not multiplied by $\beta$:
#
# $$L(\theta) = \frac{1}{|B|}\sum_{B} \Big[ -\log \sigma\Big(\frac{\beta}{|y_w|} \log \pi_\theta(y_w \mid x)
# - \frac{\beta}{|y_l|} \log \pi_\theta(y_l \mid x) - \gamma\Big)
# - \frac{\lambda}{|y_w|} \log \pi_\theta(y_w \mid x) \Big]$$
#
# The first term is the paper's, its equation 6. The mean per token takes away DPO's habit of longer completions. The
# last term is that of SFT, with weight $\lambda$. It is 0 in the paper.

# %%
reasons = {"steps": "a few hundred pairs. Preferences are learned fast, and overdone fast",
           "batch_size": "pairs per step, as many as fit the chips",
           "num_generations": "completions per question. More find more pairs, and take longer",
           "learning_rate": "far below SFT's: the paper warns of incoherent text at higher ones",
           "beta": "scale of the reward. The paper has 2 to 2.5",
           "gamma": "the margin. The paper has about half of beta",
           "label_smoothing": "share of pairs taken to be the wrong way round. A program labelled these, so none",
           "sft_weight": "lambda: holds up the likelihood, and with it the format, of what is chosen (Llama 3: 0.2)",
           "clip": "largest gradient norm, so that one odd batch moves little"}
report.table(["setting", "value", "why"], [[name, getattr(profile.simpo, name), why] for name, why in reasons.items()], "")

# %% [markdown]
# ## Training
#
# The live view shows the margin, $\beta$ times the difference of the mean log-probabilities, and the share of pairs in
# which it is above zero. If the session's clock runs out, the stage stops early and saves what it has. If you run this
# notebook again, a finished stage is read back instead of trained again.

# %%
log = run.log("simpo")
board = Dashboard(log, run.budget, "SimPO", profile.simpo.steps)
board.show()
if run.begin("simpo", policy.folder, inputs):
    result = simpo(policy, plan.policy, pairs, profile.simpo, run.budget, log, run.checkpoints, SEED, start, board.update)
    run.hand_over("simpo", policy.model, result, inputs, pairs=len(pairs))
else:
    checkpoints.restore_lora(policy.model, run.stage("simpo") / "adapter")

# %%
board.figure(run.stage("simpo") / "curves.png")

# %% [markdown]
# ## After training
#
# The same questions again. Look at the format first: its interval should not lie below the one before.

# %%
answers["after SimPO"] = evaluate(generate, sample, profile.eval_batch)
report.results_table(answers)

# %% [markdown]
# The questions are the same, so the differences are paired.

# %%
report.comparison_table({name: compare_paired(*answers.values(), measure) for name, measure in (
    ("format", "format_ok"), ("accuracy", "correct"), ("step accuracy", "steps"))})

# %%
report.side_by_side(answers, most=3)

# %% [markdown]
# ## Next
#
# The recipe's next stage continues with this adapter. If this one was stopped, the next cell says how to resume it.

# %%
left = run.manifest("simpo")
del policy, generate  # free the chips
print(f"adapter of step {left['extra']['checkpoint_step']} in {run.stage('simpo') / 'adapter'}; "
      f"{run.budget.minutes_left:.1f} minutes left")
run.close()
