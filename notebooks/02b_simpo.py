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
# SFT imitates worked solutions, no matter how well the model would have done by itself. Now the model learns from its
# own completions instead. We take two completions to the same question. One is right and shows its work, and the other
# was rejected. SimPO (arXiv 2405.14734) makes the first more likely than the second. It needs no reward model, no
# judge and no second copy of the policy.
#
# **The known danger:** preference training can damage the format. In one public run, DPO took the format rate from
# 89.5 to 76.8 %. The loss allows that: a chosen completion may lose probability, as long as the rejected one loses
# more. Two things guard against that here: the chosen completions all keep the format, and a small SFT term holds
# their likelihood up. The tables at the end show whether that was enough.

# %% [markdown] tags=["clone"]
# - **Input:** the adapter of the previous stage, and the training questions.
# - **Output:** the adapter in `artifacts/simpo/adapter`, and the pairs in `artifacts/simpo/pairs-….jsonl`.
# - **What to change:** steps and learning rate are `simpo_steps` and `simpo_learning_rate` in `SETTINGS`. The rest is
#   in the profile or the recipe. If the format rate falls, lower the learning rate or raise `sft_weight`.
# - If notebook 1b has written pairs, they are used instead of the policy's own. With a judge, notebook 1b can also
#   make pairs from questions that have no right answer.

# %% tags=["parameters"]
PROFILE = "cpu"  # where it runs: cpu, kaggle, colab, gpu
RECIPE = "pinocchio"  # what is trained: a file in recipes/
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
from collections import Counter

import jax
from reasonkit.data.rows import read_rows
from reasonkit.eval.evaluate import evaluate
from reasonkit.models import checkpoints, placement
from reasonkit.run import open_run
from reasonkit.show import report
from reasonkit.show.dashboard import Dashboard
from reasonkit.show.figures import chips
from reasonkit.show.settings_table import settings_table
from reasonkit.train import rollout
from recipes.stages.simpo import read_or_sample_pairs, simpo

# %%
policy = generate = None  # free the chips of a run that was stopped in this kernel
run = open_run(PROFILE, RECIPE, SEED, settings=SETTINGS)
profile, inputs = run.profile, run.inputs("simpo")
train, validation = (read_rows(run.stage("data") / f"{name}.parquet") for name in ("train", "validation"))
print(f"{len(train)} training problems; {run.budget.minutes_left:.1f} minutes left")

# %% [markdown]
# ## The chips
#
# There is only one model and no judge, so the policy gets all the chips. Each pair takes up two rows of a batch.

# %%
plan = placement.plan(profile, jax.devices(), judge=False)
for role, reason in plan.reasons.items():
    print(f"{role}: {reason}")
chips(plan)

# %%
policy, start = placement.load_policy(profile, plan, SEED, inputs.get("adapter"))

# %% [markdown]
# ## Before training
#
# First the policy answers validation questions greedily. We ask more of them than before and after SFT, because we
# want to notice if the format rate drops by a few points.

# %%
limits = dict(max_prompt_length=profile.simpo.max_prompt_length, max_new_tokens=profile.simpo.max_new_tokens)
generate = rollout.generator(policy.model, policy.tokenizer, plan.policy, batch_size=profile.eval_batch, **limits)
sample = validation.select(range(min(2 * profile.eval_batch, len(validation))))
evaluate(generate, sample.select(range(1)), 1)  # compiles, so that the next lines measure an evaluation's time
with run.budget.measure("probe", times=len(validation) / len(sample)):  # the clock keeps time for those to come
    answers = {"before SimPO": evaluate(generate, sample, profile.eval_batch)}
print(answers["before SimPO"])

# %% [markdown]
# ## The pairs
#
# The policy answers some of the training questions (`questions` in the profile) several times, at temperature 1. A
# completion can be chosen if it keeps the format, has the right answer and shows its work. One that fails is its
# rejected partner, if possible one with a wrong answer. Both come from the policy itself, so the better one is within
# its reach. If no completion to a question can be chosen, the worked solution from the data takes its place. If all of
# them can be chosen, the question gives no pair.

# %%
pairs, file = read_or_sample_pairs(run, policy, plan.policy, train)
inputs |= file
causes, writers = (dict(Counter(pair[column] for pair in pairs)) for column in ("cause", "by"))
print(f"{len(pairs)} pairs, rejected for: {causes}; chosen by: {writers}")

# %%
from reasonkit.show.figures import block

shown = [[row["question"], block(row["chosen"]), block(row["rejected"]), row["cause"], row["by"]]
         for row in pairs[:4]]
report.table(["question", "chosen", "rejected", "rejected for", "chosen by"], shown, "")

# %% [markdown]
# ## The objective
#
# Take a question $x$ with a chosen completion $y_w$ and a rejected one $y_l$. The implicit reward of each is $\beta$
# times its mean log-probability per token. $\gamma$ is the margin we aim for. It sits inside the sigmoid and is not
# multiplied by $\beta$:
#
# $$L(\theta) = \frac{1}{|B|}\sum_{B} \Big[ -\log \sigma\Big(\frac{\beta}{|y_w|} \log \pi_\theta(y_w \mid x)
# - \frac{\beta}{|y_l|} \log \pi_\theta(y_l \mid x) - \gamma\Big)
# - \frac{\lambda}{|y_w|} \log \pi_\theta(y_w \mid x) \Big]$$
#
# The first term is equation 6 of the paper. Averaging per token removes DPO's tendency towards longer completions. With
# `label_smoothing` $\alpha$, it is $-(1 - \alpha) \log \sigma(z) - \alpha \log \sigma(-z)$ of the same $z$. The last term
# is the SFT loss with weight $\lambda$, which is 0 in the paper.

# %%
settings_table("simpo", profile.simpo)

# %% [markdown]
# ## Training
#
# The live view shows the margin, which is $\beta$ times the difference of the mean log-probabilities, and the share of
# pairs where it is above zero.

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
# We ask the same questions again. Look at the format first: its interval should not lie below the one from before
# training.

# %%
answers["after SimPO"] = evaluate(generate, sample, profile.eval_batch)
report.results_table(answers)

# %% [markdown]
# Because the questions are the same, we can compare question by question. These are the paired differences.

# %%
report.comparison_table(report.changes(*answers.values()))

# %%
report.side_by_side(answers, most=3)

# %% [markdown]
# ## Next
#
# If the stage made the model worse, the next stage gets the adapter from before it. *Worse* means that the interval of
# the change lies below zero for accuracy or for format, and above zero for neither. If this stage was stopped early,
# the next cell tells you how to resume it.

# %%
run.keep_better("simpo", policy.model, *answers.values())
left = run.manifest("simpo")
del policy, generate  # free the chips
print(f"adapter of step {left['extra']['checkpoint_step']} in {run.stage('simpo') / 'adapter'}; "
      f"{run.budget.minutes_left:.1f} minutes left")
run.close()
