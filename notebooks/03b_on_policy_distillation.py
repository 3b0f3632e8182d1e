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
# GRPO learns from one number per completion. A teacher can say much more: at every token, what it would have written
# instead. Here the policy answers questions, and a better model, the *teacher*, reads each completion. At every token
# the policy moves towards the teacher's next-token distribution. This is on-policy distillation (GKD, arXiv
# 2306.13649). Unlike SFT, it corrects the policy in the very situations into which the policy's own mistakes lead.
#
# **What to expect:** the divergence falls fast at first. The policy can become about as good as its teacher, and
# hardly better. It also picks up the teacher's habits, such as the length of its answers.

# %% [markdown] tags=["clone"]
# - **Input:** the adapter of the previous stage, and the training questions.
# - **Output:** the adapter in `artifacts/distill/adapter`.
# - **What to change:** teacher, steps and learning rate are `distill_teacher`, `distill_steps` and
#   `distill_learning_rate` in `SETTINGS`. The rest is in the profile or the recipe.

# %% tags=["parameters"]
PROFILE = "cpu"  # where it runs: cpu, kaggle, colab, gpu
RECIPE = "on_policy_distillation"  # what is trained: a file in recipes/
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
from reasonkit.data.rows import read_rows
from reasonkit.eval.evaluate import evaluate
from reasonkit.models import checkpoints, placement
from reasonkit.models.load import load
from reasonkit.run import open_run
from reasonkit.show import report
from reasonkit.show.dashboard import Dashboard
from reasonkit.show.figures import chips
from reasonkit.show.settings_table import settings_table
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
# The policy gets one half of the chips and the teacher the other. In training the teacher only reads, which takes one
# forward pass per step. On a single chip they take turns.

# %%
plan = placement.plan_distillation(profile, jax.devices())
for role, reason in plan.reasons.items():
    print(f"{role}: {reason}".replace("judge", "teacher"))
chips(plan)

# %%
policy, start = placement.load_policy(profile, plan, SEED, inputs.get("adapter"))

# %% [markdown]
# ## The teacher
#
# The *student*, which is our policy, and its teacher must split text into the same tokens. Otherwise we can't compare
# their distributions. So a Gemma 2 needs a Gemma 2 as its teacher, and a Gemma 3 needs a Gemma 3.
#
# **In the demo there is no larger model with the tiny policy's tokens.** So we make a teacher here: the same base model
# with its own adapter, trained only on the worked solutions that show their steps. The policy's SFT has seen all the
# solutions, and most of them skip the steps. The demo therefore shows that distillation carries over what a better
# model knows. It doesn't show that a *larger* model knows more.

# %%
teacher = load(profile.teacher, plan.judge, profile.dtype, replicated="judge" not in plan.gathered)
if profile.toy and not profile.distill.teacher:
    teacher = train_toy_teacher(teacher, plan.judge, train, run)
print(f"teacher: {teacher.name}")

# %% [markdown]
# ## Before training
#
# Policy and teacher answer the same validation questions greedily. The gap between them is what distillation can hope
# to close.

# %%
limits = dict(max_prompt_length=profile.distill.max_prompt_length, max_new_tokens=profile.distill.max_new_tokens)
generate = rollout.generator(policy.model, policy.tokenizer, plan.policy, **limits, batch_size=profile.eval_batch)
teach = rollout.generator(teacher.model, teacher.tokenizer, plan.judge, **limits, batch_size=profile.judge_batch)
sample = validation.select(range(min(2 * profile.eval_batch, len(validation))))
answers = {"teacher": evaluate(teach, sample, profile.eval_batch)}
evaluate(generate, sample.select(range(1)), 1)  # compiles, so that the next lines measure an evaluation's time
with run.budget.measure("probe", times=len(validation) / len(sample)):  # the clock keeps time for those to come
    answers["before distillation"] = evaluate(generate, sample, profile.eval_batch)
report.results_table(answers)

# %% [markdown]
# ## The objective
#
# The student $\pi_\theta$ answers a question $x$ with a completion $y$, and no gradient flows through the sampling. At
# each token the loss is the divergence between the teacher $p$ and the student. We average it over the tokens and then
# over the completions:
#
# $$L(\theta) = \frac{1}{|B|}\sum_{B} \frac{1}{|y|} \sum_t D_\beta\big(p(\cdot \mid x, y_{<t})\,\|\,\pi_\theta(\cdot \mid x,
# y_{<t})\big), \qquad D_1 = \mathrm{KL}(\pi_\theta \,\|\, p), \quad D_0 = \mathrm{KL}(p \,\|\, \pi_\theta).$$
#
# The reverse KL, $D_1$, makes the student stick to what the teacher finds likely. The forward KL, $D_0$, makes it cover
# everything the teacher might write. In between lies GKD's generalised Jensen-Shannon divergence. We compare the
# teacher's `top_k` most likely tokens one by one, and lump all the others together. That never makes the divergence
# larger, and what it leaves out is bounded (`cells` in `recipes/stages/distill.py`).
#
# A stock teacher writes good solutions but knows nothing of our format, and the policy would unlearn it. So some tokens
# have the negative log-likelihood as their loss, as in SFT: the opening tags, where they belong, and the stop token
# after the answer.

# %%
settings_table("distill", profile.distill)

# %% [markdown]
# ## Training
#
# The live view shows the divergence, as the loss, and the length of the completions. The loss should fall and then go
# flat.

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
# We ask the same questions again. The share of the gap that distillation has closed is (after − before) / (teacher −
# before). Where the gap is small, this figure means little.

# %%
answers["after distillation"] = evaluate(generate, sample, profile.eval_batch)
report.results_table(answers)

# %%
taught, before, after = answers.values()
for measure in [name for name in report.measures_of(answers).values() if name in ("accuracy", "step_accuracy")]:
    low, high, now = (getattr(result, measure).mean for result in (before, taught, after))
    closed = f"{(now - low) / (high - low):.0%} of the gap" if high > low else "the teacher was not better"
    print(f"{measure}: {low:.1%} before, {now:.1%} after, teacher {high:.1%}; closed: {closed}")
report.comparison_table(report.changes(before, after))

# %%
report.side_by_side(answers, most=3)

# %% [markdown]
# ## Next
#
# If the stage made the model worse, the next stage gets the adapter from before it. *Worse* means that the interval of
# the change lies below zero for accuracy or for format, and above zero for neither. If this stage was stopped early,
# the next cell tells you how to resume it.

# %%
run.keep_better("distill", policy.model, before, after)
left = run.manifest("distill")
del policy, teacher, generate, teach  # free the chips
print(f"adapter of step {left['extra']['checkpoint_step']} in {run.stage('distill') / 'adapter'}; "
      f"{run.budget.minutes_left:.1f} minutes left")
run.close()
