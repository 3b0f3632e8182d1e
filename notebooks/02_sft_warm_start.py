# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2 · SFT warm start
#
# Reinforcement learning can reward only what the model already does sometimes, and a base model never writes our tags.
# A short supervised run on worked solutions comes first. It trains one LoRA adapter on the frozen base model, and every
# later stage trains the same adapter.
#
# **What to expect:** the loss falls and levels off within the first third of the steps. In the demo, the share of
# completions in the right format then goes from 0 to 100 %.

# %% [markdown] tags=["clone"]
# - **Input:** the data of notebook 1.
# - **Output:** the adapter in `artifacts/sft/adapter`, and checkpoints that the judges can already load.
# - **What to change:** the steps, the learning rate and the adapter's rank are in the profile (`reasonkit/config.py`).

# %% tags=["parameters"]
PROFILE = "cpu"  # where it runs: cpu, kaggle, colab, gpu
RECIPE = "g_rar"  # what is trained: a file in recipes/
SEED = 0

# %%
# {{setup}}

# %%
from dataclasses import replace

import jax
from reasonkit.data.rows import read_rows
from reasonkit.models import checkpoints, lora, placement
from reasonkit.models.load import load
from reasonkit.run import open_run
from reasonkit.show.dashboard import Dashboard
from reasonkit.text.tags import TAGS
from reasonkit.show.figures import chips
from reasonkit.train import rollout
from reasonkit.train.sft import sft

# %%
policy = generate = None  # free the chips of a run that was stopped in this kernel
run = open_run(PROFILE, RECIPE, SEED)
profile, manifest = run.profile, run.manifest("data")
train, validation = (read_rows(run.stage("data") / f"{name}.parquet") for name in ("train", "validation"))
print(f"{len(train)} training problems; {run.budget.minutes_left:.1f} minutes left")

# %% [markdown]
# ## The chips
#
# A base model of 1 or 2 B parameters fits on each chip whole. Every chip holds a copy and works on its share of the
# batch, so no chip waits for weights from another. SFT has no judge, and the policy gets all the chips.

# %%
plan = placement.plan(profile, jax.devices(), judge=False)
for role, reason in plan.reasons.items():
    print(f"{role}: {reason}")
chips(plan)

# %% [markdown] tags=["clone"]
# On a TPU, the next cell compiles every program of the whole run before it loads any weights. It tells whether each one
# fits in a chip's memory and how many minutes the stages will take. That costs some minutes and can save hours.

# %% tags=["clone"]
from tools.preflight import forecast

if jax.default_backend() == "tpu":
    print(forecast.at_hand(profile, run.recipe, jax.devices(), run.folder / "preflight"))

# %% [markdown]
# ## The model and its adapter
#
# The base model is loaded once and never changes. The adapter starts at zero, so at this point the policy is the base
# model.

# %%
policy = load(profile.policy, plan.policy, profile.dtype, replicated="policy" not in plan.gathered,
              remat=profile.remat)
policy = replace(policy, model=lora.add_lora(policy.model, plan.policy, profile.lora_rank, profile.lora_alpha, SEED))
print(f"{policy.name}: adapter of rank {profile.lora_rank}, alpha {profile.lora_alpha:g}, on all linear layers")

# %% [markdown]
# ## Before training
#
# The base model answers, but it does not show its work.

# %%
settings = profile.grpo
generate = rollout.generator(policy.model, policy.tokenizer, plan.policy, max_prompt_length=settings.max_prompt_length,
                             max_new_tokens=settings.max_new_tokens, batch_size=16)
questions = validation["question"][:16]
before = generate([TAGS.prompt(question) for question in questions])
for question, completion in list(zip(questions, before))[:3]:
    print(f"{question}\n  {completion!r}")

# %% [markdown]
# ## Training
#
# The loss is the mean negative log-likelihood of the completions' tokens, over the prompts $x$ and completions $y$ of a
# batch $B$. The stop token belongs to the completion.
#
# $$L(\theta) = -\frac{1}{\sum_{B} |y|}\,\sum_{(x, y) \in B}\;\sum_t \log \pi_\theta(y_t \mid x, y_{<t})$$
#
# The prompt has no loss. The stop token has one, because a policy that never learns to stop runs into the token
# limit. Here is one training row:

# %%
row = next(row for row in train if row["reasoning"])
print(f"without loss:\n{TAGS.prompt(row['question'])}\n")
print(f"with loss:\n{TAGS.render(reasoning=row['reasoning'], answer=row['answer'])}<end_of_turn>")

# %% [markdown]
# If the session's clock runs out, the stage stops early and saves what it has. If you run this notebook again, a
# finished stage is read back instead of trained again. A stage whose settings or data have changed since is refused,
# and the message says what differs.

# %%
for name in ("steps", "batch_size", "max_length", "pack", "learning_rate", "warmup", "clip"):
    print(f"{name:>14}: {getattr(profile.sft, name)}")

# %%
log = run.log("sft")
board = Dashboard(log, run.budget, "SFT warm start", profile.sft.steps)
board.show()
inputs = {"train": run.stage("data") / "train.parquet"}
if run.begin("sft", policy.folder, inputs):
    result = sft(policy, plan.policy, train, profile.sft, run.budget, log, run.checkpoints, SEED, board.update)
    run.hand_over("sft", policy.model, result, inputs)
else:
    checkpoints.restore_lora(policy.model, run.stage("sft") / "adapter")

# %%
board.figure(run.stage("sft") / "curves.png")

# %% [markdown]
# ## After training
#
# The same questions again, and the share of completions in exactly the right format. These are 16 questions of the
# validation split, so the share is only a first look. The evaluation measures it on the test split.

# %%
after = generate([TAGS.prompt(question) for question in questions])
for question, *completions in list(zip(questions, before, after))[:3]:
    print(f"{question}\n  before: {completions[0]!r}\n  after:  {completions[1]!r}")
print(f"format: {sum(TAGS.parse(completion).ok for completion in after)} of {len(after)}")

# %% [markdown]
# ## Next
#
# GRPO continues with this adapter. If the stage was stopped, the next cell says how to resume it.

# %%
warm = run.manifest("sft")
del policy, generate  # free the chips: the next stage places the base model differently
print(f"adapter of step {warm['extra']['checkpoint_step']} in {run.stage('sft') / 'adapter'}; "
      f"{run.budget.minutes_left:.1f} minutes left")
run.close()
