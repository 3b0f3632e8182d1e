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
# Reinforcement learning can only reward what the model already does sometimes. A stock model never writes our tags, so a
# short supervised run on worked solutions comes first: one LoRA adapter on the frozen base, which every later stage goes
# on training.
#
# **What comes in:** notebook 1's manifest. **What comes out:** the adapter, and checkpoints the judges can already load.
# **What to expect:** the loss falls to a plateau within the first third; afterwards nearly every reply has the form.

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
from reasonkit.models import checkpoints, lora, placement
from reasonkit.models.load import load
from reasonkit.run import open_run
from reasonkit.text.tags import TAGS
from reasonkit.train import rollout
from reasonkit.train.sft import sft
from tools.preflight import forecast

# %%
policy = generate = None  # free the chips of a run that was stopped in this kernel
run = open_run(PROFILE, RECIPE, SEED)
profile, manifest = run.profile, run.manifest("data")
train, validation = (problems.read_rows(run.stage("data") / f"{name}.jsonl") for name in ("train", "validation"))
print(f"{len(train)} problems to learn from; {run.budget.minutes_left:.1f} minutes left")

# %% [markdown]
# ## The chips
#
# A LoRA on a frozen base of 1 or 2 B parameters fits replicated: every chip holds the base, the batch is split, and no
# weight is gathered at any token. SFT has no judge, so the policy has all the chips.
#
# On a TPU the programs of the whole run are compiled here, as shapes, before any weight is loaded: whether each fits in a
# chip's memory, by how much, and how many minutes the stages will take. Some minutes now, against hours later.

# %%
plan = placement.plan(profile, jax.devices(), judge=False)
for role, reason in plan.reasons.items():
    print(f"{role}: {reason}")
print(forecast.at_hand(profile, run.recipe, jax.devices(), run.folder / "preflight"))

# %% [markdown]
# ## The model and its adapter
#
# The base is loaded once and never changes. The adapter starts at zero, so at this point the model is the stock model.

# %%
policy = load(profile.policy, plan.policy, profile.dtype, replicated="policy" not in plan.gathered,
                     remat=profile.remat)
policy = replace(policy, model=lora.add_lora(policy.model, plan.policy, profile.lora_rank, profile.lora_alpha, SEED))
print(f"{policy.name}: adapter of rank {profile.lora_rank}, alpha {profile.lora_alpha:g}, on all linear layers")

# %% [markdown]
# ## What the stock model says
#
# It answers, but does not show its work.

# %%
settings = profile.grpo
generate = rollout.generator(policy.model, policy.tokenizer, plan.policy, max_prompt_length=settings.max_prompt_length,
                             max_new_tokens=settings.max_new_tokens, batch_size=16)
asked = validation.select(range(min(16, len(validation))))
for question, reply in list(zip(asked["question"], generate([TAGS.prompt(q) for q in asked["question"]])))[:3]:
    print(f"{question}\n  {reply!r}")

# %% [markdown]
# ## Training
#
# The loss is on the reply and on its stop token, not on the question. Where nine hours are the limit, the clock ends the
# stage in time if the machine is slower than planned; on your own machine every step is run. A stage that was finished
# before is not trained again: its adapter is read back. If its settings or inputs have changed since, it is refused, and
# the message says what differs.

# %%
from reasonkit.show.dashboard import Dashboard

log = run.log("sft")
board = Dashboard(log, run.budget, "SFT warm start", profile.sft.steps)
board.show()
inputs = {"train": run.stage("data") / "train.jsonl"}
if run.begin("sft", policy.folder, inputs):
    result = sft(policy, plan.policy, train, profile.sft, run.budget, log, run.checkpoints, SEED, board.update)
    run.hand_over("sft", policy.model, result, inputs)
else:
    checkpoints.restore_lora(policy.model, run.stage("sft") / "adapter")

# %%
board.figure(run.stage("sft") / "curves.png")

# %% [markdown]
# ## What the model says now
#
# The same questions of the validation split, and the share of replies that have the form exactly.

# %%
replies = generate([TAGS.prompt(question) for question in asked["question"]])
form = sum(TAGS.parse(reply).ok for reply in replies) / len(replies)
for question, reply in list(zip(asked["question"], replies))[:3]:
    print(f"{question}\n  {reply!r}")
print(f"form: {form:.0%} of {len(replies)}")

# %% [markdown]
# ## Hand over
#
# Notebook 3 goes on with the adapter. Where the stage was stopped, the next cell says how to go on.

# %%
warm = run.manifest("sft")
del policy, generate  # the next stage lays the base out anew: free the chips
print(f"adapter of step {warm['extra']['checkpoint_step']} in {run.stage('sft') / 'adapter'}; "
      f"{run.budget.minutes_left:.1f} minutes left")
run.close()
