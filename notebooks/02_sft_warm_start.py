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
# Reinforcement learning can only reward what the model already does some of the time. Before any training of ours, an
# instruction-tuned Gemma keeps the format in about half of its completions (entrants measured 46 and 51 %). The demo's
# tiny model keeps it in none. So we start with a supervised run on worked solutions. It trains one LoRA adapter (a few
# small matrices beside each frozen weight), and every later stage goes on training that same adapter.
#
# **What to expect:** the loss falls and levels off within the first third of the steps. One entrant who trained a real
# Gemma reports a format rate of 89.5 % after SFT.

# %% [markdown] tags=["clone"]
# In the demo the format rate goes from 0 to 100 %, but content accuracy *falls* from 66 to 54 %. The reason is that we
# made most of the demo's traces skip their steps, and the model learns that too. The demo asks whether GRPO can undo
# this habit.
#
# - **Input:** the data of notebook 1.
# - **Output:** the adapter in `artifacts/sft/adapter`, and checkpoints that the competition's judges can already load.
# - **What to change:** steps and learning rate in the first cell, everything else in the profile
#   (`reasonkit/config.py`). More steps help if the model doesn't keep the format yet. Whether they improve the
#   reasoning depends on the traces. In the demo they do if all traces show their steps, and hardly otherwise.

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
from reasonkit.data.rows import read_rows
from reasonkit.data.screening import is_worked
from reasonkit.eval.evaluate import evaluate
from reasonkit.models import checkpoints, placement
from reasonkit.run import open_run
from reasonkit.show import report
from reasonkit.show.completions import loss_mask
from reasonkit.show.dashboard import Dashboard
from reasonkit.show.figures import chips
from reasonkit.show.settings_table import settings_table
from reasonkit.train import rollout
from reasonkit.train.sft import sft, validation_loss

# %%
policy = generate = None  # free the chips of a run that was stopped in this kernel
run = open_run(PROFILE, RECIPE, SEED, settings=SETTINGS)
profile, inputs = run.profile, run.inputs("sft")
train, validation = (read_rows(run.stage("data") / f"{name}.parquet") for name in ("train", "validation"))
print(f"{len(train)} training problems; {run.budget.minutes_left:.1f} minutes left")

# %% [markdown]
# ## The chips
#
# A base model of 1 or 2 B parameters fits on a single chip. So every chip holds a full copy and works on its own share
# of the batch. In PyTorch this is `DistributedDataParallel`. On Kaggle the next cell prints `fsdp=8, tp=1`: the batch is
# split into eight shares, and no weight matrix is split. SFT has no judge, so the policy has all the chips.

# %%
plan = placement.plan(profile, jax.devices(), judge=False)
for role, reason in plan.reasons.items():
    print(f"{role}: {reason}")
chips(plan)

# %% [markdown] tags=["clone"]
# On a TPU, the next cell compiles every program of the whole run before it loads any weights. It tells you whether each
# one fits in a chip's memory and how many minutes the stages will take. This costs a few minutes and can save hours.

# %% tags=["clone"]
from tools.preflight import forecast

if jax.default_backend() == "tpu":
    print(forecast.at_hand(profile, run.recipe, jax.devices(), run.folder / "preflight"))

# %% [markdown]
# ## The model and its adapter
#
# We load the base model once and never change it. The adapter starts at zero, so at this point the policy behaves
# exactly like the base model.

# %%
policy, _ = placement.load_policy(profile, plan, SEED)

# %% [markdown]
# ## Before training
#
# For a baseline, the untrained model answers 16 validation questions greedily, and we measure its loss on worked
# solutions. After training we repeat both.

# %%
limits = dict(max_prompt_length=profile.grpo.max_prompt_length, max_new_tokens=profile.grpo.max_new_tokens)
generate = rollout.generator(policy.model, policy.tokenizer, plan.policy, batch_size=profile.eval_batch, **limits)
sample = validation.select(range(min(16, len(validation))))
evaluate(generate, sample.select(range(1)), 1)  # compiles, so that the next lines time a batch
batches = len(validation) / max(len(sample), profile.eval_batch)
with run.budget.measure("probe", times=batches):  # the clock keeps time for the evaluations to come
    answers = {"before SFT": evaluate(generate, sample, 16)}
losses = {"before SFT": validation_loss(policy, plan.policy, validation, profile.sft)}

# %% [markdown]
# ## The objective
#
# The loss is the mean negative log-likelihood of the completion tokens, taken over the prompts $x$ and completions $y$
# of a batch $B$:
#
# $$L(\theta) = -\frac{1}{\sum_{B} |y|}\,\sum_{(x, y) \in B}\;\sum_t \log \pi_\theta(y_t \mid x, y_{<t})$$
#
# Prompt tokens carry no loss, because the policy never has to write them. The stop token is part of the completion and
# has a loss, because a policy that never learns to stop runs into the token limit. Below is one training row, token by
# token, and then the reason for each setting:

# %%
loss_mask(train, policy.tokenizer, profile.sft.max_length)

# %%
settings_table("sft", profile.sft)

# %% [markdown]
# ## Training
#
# The trainer is Tunix's `PeftTrainer` with the loss above. `sft(...)` sets it up (`reasonkit/train/sft.py`).
#
# If the session's clock runs out, the stage stops early and saves what it has. When you run this notebook again, a
# finished stage is read back instead of trained again. If the stage's settings or data have changed since then, the
# notebook refuses to go on and says what differs.

# %%
log = run.log("sft")
board = Dashboard(log, run.budget, "SFT warm start", profile.sft.steps)
board.show()
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
# We ask the same questions again. Sixteen is a small sample, as the intervals show: even 16 out of 16 in the right
# format is compatible with a true rate of 83 %. The evaluation at the end measures all of this properly, on the test
# split. The validation loss uses at most 64 worked rows. It says little about kinds of question that are not among
# them. Below the table, a few questions show the completions before and after.

# %%
answers["after SFT"] = evaluate(generate, sample, 16)
losses["after SFT"] = validation_loss(policy, plan.policy, validation, profile.sft)
print(f"validation loss, nats per token, {sum(map(is_worked, validation))} worked rows (64 at most):",
      ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()))
report.results_table(answers)

# %%
report.side_by_side(answers, most=3)

# %% [markdown]
# ## Next
#
# The recipe's next stage continues from this adapter. If this stage was stopped early, the next cell tells you how to
# resume it.

# %%
warm = run.manifest("sft")
del policy, generate  # free the chips: the next stage places the base model differently
print(f"adapter of step {warm['extra']['checkpoint_step']} in {run.stage('sft') / 'adapter'}; "
      f"{run.budget.minutes_left:.1f} minutes left")
run.close()
