# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2c · A reward model
#
# A judge follows a rubric, while a reward model learns from examples. The one we train here reads the policy's
# reasoning and predicts how likely it is to lead to the right answer with its work shown. The idea is the
# *ThoughtTeacher* of the Gemma2-Deep entry. The judge model stays frozen. We train only a linear head on what the
# judge model computes as it reads the reasoning, and that takes seconds. GRPO then uses it in place of a rubric judge,
# at the cost of one forward pass per completion.
#
# **What to expect:** a held-out AUC well above 0.5. Given two pieces of reasoning for the same question, the AUC is
# how often the better one scores higher, measured on questions the head was not trained on. GRPO would follow even a
# bad head, so one below `LEAST_AUC` is left out.

# %% [markdown] tags=["clone"]
# - **Input:** the adapter of the previous stage, which generates the examples, and the data of notebook 1.
# - **Output:** the head in `artifacts/reward_model/head.safetensors`. The adapter is not changed.
# - **What to change:** if the AUC's interval is wide, raise `QUESTIONS` below. If the AUC is low, take a larger judge
#   model.

# %% tags=["parameters"]
PROFILE = "cpu"  # where it runs: cpu, kaggle, colab, gpu
RECIPE = "deep_corgi"  # what is trained: a file in recipes/
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
from reasonkit.models import placement
from reasonkit.run import open_run
from reasonkit.show import report
from reasonkit.show.figures import chips
from recipes.rewards.thought_teacher import ThoughtTeacher, trace_features
from recipes.stages import reward_model
from recipes.stages.traces import checkable, read_or_make, sampled_file

# %%
policy = judge_model = features = None  # free the chips of a run that was stopped in this kernel
run = open_run(PROFILE, RECIPE, SEED, settings=SETTINGS)
profile, inputs = run.profile, run.inputs("reward_model")
train, validation = (read_rows(run.stage("data") / f"{name}.parquet") for name in ("train", "validation"))
print(f"{len(train)} training problems; {run.budget.minutes_left:.1f} minutes left")
kept = reward_model.read_back(run)  # the head that GRPO has begun with: then nothing is loaded or trained below

# %% [markdown]
# ## The chips
#
# As in GRPO, the policy gets one half of the chips and the frozen judge model the other.

# %%
plan = placement.plan(profile, jax.devices(), judge=True)
for role, reason in plan.reasons.items():
    print(f"{role}: {reason}")
chips(plan)

# %%
if not kept:
    policy, _ = placement.load_policy(profile, plan, SEED, inputs.get("adapter"))
    judge_model = placement.load_judge(profile, plan)
    print(f"features of {judge_model.name}")

# %% [markdown]
# ## The examples
#
# The policy answers `QUESTIONS` training questions several times at temperature 1, just as it will in GRPO. The
# checker then labels its reasoning: good if the answer is right and the work is shown, bad if the answer is wrong or
# the work is missing. We add the worked solutions from the data, and copies of them with one flaw each: a changed
# number, a missing step, or a step said twice. The held-out examples are made in the same way from the validation
# questions. If no time is left or the chips run out of memory, there are no examples. Then the head has a fault, and
# GRPO goes on without it.

# %%
QUESTIONS = reward_model.QUESTIONS  # training questions that the policy answers, and as many held-out ones at most
LEAST_AUC = 0.7  # on held-out questions: a head below it is left out of GRPO
HEAD = ""  # a file with a head that was trained elsewhere on the same judge model: it is measured here, and not trained

# %%
run.budget.shares.setdefault("reward_model", run.recipe.shares["reward_model"])  # a finished stage has none
traces, minutes = {}, run.budget.part("reward_model", 1 / 3)
for part, rows in () if kept else (("train", train), ("held out", validation)):
    asked = checkable(rows, QUESTIONS, SEED)
    file = sampled_file(run.stage("reward_model"), part, inputs, profile.grpo, QUESTIONS, SEED)
    traces[part] = read_or_make(file, lambda rows=asked: reward_model.examples(policy, plan.policy, rows, profile,
                                                                               minutes, SEED))

# %%
counts = {part: Counter((trace["by"], trace["good"]) for trace in found) for part, found in traces.items()}
origins = sorted({by for found in counts.values() for by, _ in found})
report.table(["from", "good, train", "bad, train", "good, held out", "bad, held out"], [
    [by, *(counts[part][by, good] for part in traces for good in (True, False))] for by in origins],
    "policy: its own completions. data: worked solutions. The other rows are copies with a flaw.") if origins else (
    "no examples")

# %% [markdown]
# ## The objective
#
# The judge model reads the question and then the reasoning $y$. We average its last hidden states over the tokens of
# $y$, and take the state of the last token. A mean hides a single slip, so we add how likely the model finds these
# tokens: the mean of their log-probabilities and the four lowest. Together these numbers are $h(y)$. The head is a
# logistic regression on them, with a small ridge penalty:
#
# $$P(\text{good} \mid y) = \sigma(w \cdot h(y) + b), \qquad L(w, b) = -\frac{1}{N}\sum_i \log P(\text{label}_i \mid y_i)
# + \frac{\lambda}{2}\|w\|^2 .$$
#
# Only $w$ and $b$ are trained. GRPO only ever compares completions of the same question, so the AUC does too. A head
# that merely recognises easy questions gains nothing.

# %%
report.table(["setting", "value", "why"], [
    ["QUESTIONS", QUESTIONS, "more examples raise the AUC slowly and narrow its interval"],
    ["num_generations", profile.grpo.num_generations, "completions per question, as in GRPO"],
    ["judge", profile.judge, "the model that reads the reasoning. It has no adapter that training could move"],
    ["judge_max_length", profile.judge_max_length, "tokens of question plus reasoning. Longer ones are left out"],
    ["LEAST_AUC", LEAST_AUC, "a coin flip would already get half of the pairs right"]], "")

# %% [markdown]
# ## Training and measuring
#
# In the table, "policy" is the AUC on the policy's own completions, which is what the head will see in GRPO. "worked"
# compares worked solutions with their flawed copies. "all" is both together, and must reach `LEAST_AUC`. The interval
# is over questions.

# %%
if not kept:
    features = trace_features(judge_model, plan.judge, profile.judge_max_length, profile.judge_batch)
    given = ThoughtTeacher.load(HEAD) if HEAD else None
    made = reward_model.fit(features, judge_model.name, traces["train"], traces["held out"], LEAST_AUC, given)
head, measured, scores = kept or made
print(head.fault or "The head can teach")
report.table(["held-out pairs", "AUC"], [[part, str(auc)] for part, auc in measured.items()], "")

# %% [markdown]
# ## What the head prefers
#
# These are the four pieces of held-out reasoning with the highest scores, and the four with the lowest. Do read them,
# because GRPO will make the policy write more like the first four.

# %%
held = traces.get("held out", [])
order = sorted((n for n, score in enumerate(scores) if score == score), key=lambda n: -scores[n])
report.table(["score", "good", "from", "question", "reasoning"], [
    [f"{scores[n]:.2f}", held[n]["good"], held[n]["by"], held[n]["question"], held[n]["reasoning"]]
    for n in (*order[:4], *order[-4:])], "") if order else "no scores"

# %% [markdown]
# ## Hand over
#
# GRPO uses this head only if it passes the same exam as any judge: it must score worked solutions above flawed ones.

# %%
path = run.stage("reward_model") / reward_model.HEAD
if not kept:
    head.save(path)
    run.finish("reward_model", inputs={**inputs, "head": path}, minutes=run.budget.minutes_here,
               metrics={part: vars(auc) for part, auc in measured.items()})
del policy, judge_model, features  # frees the chips
print(f"head in {path}; {run.budget.minutes_left:.1f} minutes left")
run.close()
