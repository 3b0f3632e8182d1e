# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3b · On-policy distillation
#
# GRPO learns one number per completion. A teacher can say more: at each token, which one it would have written. Here the
# policy answers questions, a better model reads each answer, and the policy moves towards the teacher's next-token
# distribution at every place that it reached itself. That is on-policy distillation (GKD, arXiv 2306.13649). Unlike in
# SFT, the policy is corrected where its own mistakes have led it.
#
# **What to expect:** the divergence falls fast at first. The policy can become nearly as good as its teacher and not
# better. It takes over the teacher's habits too, such as the length of its answers.

# %% [markdown] tags=["clone"]
# - **Input:** the adapter of the stage before, and the training questions.
# - **Output:** the adapter in `artifacts/distill/adapter`.
# - **What to change:** the teacher, steps and learning rate in `SETTINGS`, as `distill_teacher`, `distill_steps` and
#   `distill_learning_rate`. The rest is in the profile or the recipe.

# %% tags=["parameters"]
PROFILE = "cpu"  # where it runs: cpu, kaggle, colab, gpu
RECIPE = "on_policy_distillation"  # what is trained: a file in recipes/
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
from recipes.stages.distill import distill, train_toy_teacher

# %%
policy = teacher = generate = None  # free the chips of a run that was stopped in this kernel
run = open_run(PROFILE, RECIPE, SEED, settings=SETTINGS)
profile, inputs = run.profile, run.inputs("distill")
train, validation = (read_rows(run.stage("data") / f"{name}.parquet") for name in ("train", "validation"))
print(f"{len(train)} training problems; {run.budget.minutes_left:.1f} minutes left")

# %% [markdown]
# ## The chips
#
# The policy has one half of the chips and the teacher the other. The teacher only reads: one forward pass per step. On a
# single chip they take turns.

# %%
plan = placement.plan(replace(profile, judge=profile.teacher), jax.devices(), judge=True)
for role, reason in plan.reasons.items():
    print(f"{role}: {reason}".replace("judge", "teacher"))
chips(plan)

# %%
policy = load(profile.policy, plan.policy, profile.dtype, replicated="policy" not in plan.gathered,
              remat=profile.remat)
policy = replace(policy, model=lora.add_lora(policy.model, plan.policy, profile.lora_rank, profile.lora_alpha, SEED))
start = checkpoints.restore_lora(policy.model, inputs["adapter"]) if "adapter" in inputs else 0
print(f"{policy.name} with the adapter of step {start}" if start else f"{policy.name} with a new adapter, which is zero")

# %% [markdown]
# ## The teacher
#
# Student and teacher must read text as the same tokens, or their distributions cannot be compared. Gemma 2 has a Gemma 2
# as its teacher, and Gemma 3 a Gemma 3.
#
# **In the demo there is no larger model with the tiny policy's tokens.** So its teacher is made here: the same base
# model with an adapter of its own, which learns from those worked solutions only that show their steps. The policy's own
# SFT has seen all of them, most of which skip the steps. What is shown is that distillation carries over what a better
# model knows. That a *larger* one knows more is not shown by it.

# %%
teacher = load(profile.teacher, plan.judge, profile.dtype, replicated="judge" not in plan.gathered)
if profile.toy and not profile.distill.teacher:
    teacher = train_toy_teacher(teacher, plan.judge, train, profile, run.stage("distill") / "teacher", SEED)
print(f"teacher: {teacher.name}")

# %% [markdown]
# ## Before training
#
# Policy and teacher answer the same validation questions greedily. The gap between them is what distillation can close.

# %%
limits = dict(max_prompt_length=profile.distill.max_prompt_length, max_new_tokens=profile.distill.max_new_tokens,
              batch_size=profile.eval_batch)
generate = rollout.generator(policy.model, policy.tokenizer, plan.policy, **limits)
teach = rollout.generator(teacher.model, teacher.tokenizer, plan.judge, **limits)
sample = validation.select(range(min(2 * profile.eval_batch, len(validation))))
answers = {"teacher": evaluate(teach, sample, profile.eval_batch),
           "before distillation": evaluate(generate, sample, profile.eval_batch)}
report.results_table(answers)

# %% [markdown]
# ## The objective
#
# The student $\pi_\theta$ answers question $x$ with $y$, and no gradient goes through the sampling. At each token the
# loss is the divergence of the teacher $p$ and the student, averaged over the tokens and then over the completions:
#
# $$L(\theta) = \frac{1}{|B|}\sum_{B} \frac{1}{|y|} \sum_t D_\beta\big(p(\cdot \mid x, y_{<t})\,\|\,\pi_\theta(\cdot \mid x,
# y_{<t})\big), \qquad D_1 = \mathrm{KL}(\pi_\theta \,\|\, p), \quad D_0 = \mathrm{KL}(p \,\|\, \pi_\theta).$$
#
# The reverse KL, $D_1$, makes the student keep to what the teacher finds likely. The forward KL, $D_0$, makes it cover
# all that the teacher might write. Between them is the generalised Jensen-Shannon divergence of GKD. Of the teacher's
# distribution its `top_k` most likely tokens are compared one by one, and all others together. That never
# makes the divergence larger, and what it leaves out is bounded (`cells` in `recipes/stages/distill.py`).

# %%
reasons = {"teacher": "a larger model with the same tokens. Empty: see above",
           "steps": "as many as the session has time for. The loss is flat when there is no more to learn",
           "batch_size": "completions per step, as many as fit the chips",
           "on_policy": "GKD's lambda: share of steps on the student's own completions, else on worked solutions",
           "beta": "1 is the reverse KL, 0 the forward KL, and GKD has 0.1, 0.5 and 0.9 between them",
           "top_k": "tokens that cross. The log has the mass of the rest, as `rest`",
           "learning_rate": "as in SFT, because every token has a target",
           "clip": "largest gradient norm, so that one odd batch moves little"}
report.table(["setting", "value", "why"], [[name, getattr(profile.distill, name), why] for name, why in reasons.items()], "")

# %% [markdown]
# ## Training
#
# If the session's clock runs out, the stage stops early and saves what it has. If you run this notebook again, a
# finished stage is read back instead of trained again.

# %%
log = run.log("distill")
board = Dashboard(log, run.budget, "On-policy distillation", profile.distill.steps)
board.show()
if run.begin("distill", policy.folder, inputs, teacher=teacher.name):
    result = distill(policy, teacher, plan.policy, plan.judge, train, profile.distill, run.budget, log,
                     run.checkpoints, SEED, start, board.update)
    last = log.last("distill_step") or {}
    run.hand_over("distill", policy.model, result, inputs, teacher=teacher.name, rest=last.get("rest"))
else:
    checkpoints.restore_lora(policy.model, run.stage("distill") / "adapter")

# %%
board.figure(run.stage("distill") / "curves.png")

# %% [markdown]
# ## After training
#
# The same questions again. The share of the gap that was closed is
# (after − before) / (teacher − before). It means little where the gap is small.

# %%
answers["after distillation"] = evaluate(generate, sample, profile.eval_batch)
report.results_table(answers)

# %%
taught, before, after = answers.values()
for measure in ("accuracy", "step_accuracy"):
    low, high, now = (getattr(result, measure).mean for result in (before, taught, after))
    closed = f"{(now - low) / (high - low):.0%} of the gap" if high > low else "the teacher was not better"
    print(f"{measure}: {low:.1%} before, {now:.1%} after, teacher {high:.1%}; closed: {closed}")
report.comparison_table({name: compare_paired(before, after, measure) for name, measure in (
    ("format", "format_ok"), ("accuracy", "correct"), ("step accuracy", "steps"))})

# %%
report.side_by_side(answers, most=3)

# %% [markdown]
# ## Next
#
# The recipe's next stage continues with this adapter. If this one was stopped, the next cell says how to resume it.

# %%
left = run.manifest("distill")
del policy, teacher, generate, teach  # free the chips
print(f"adapter of step {left['extra']['checkpoint_step']} in {run.stage('distill') / 'adapter'}; "
      f"{run.budget.minutes_left:.1f} minutes left")
run.close()
