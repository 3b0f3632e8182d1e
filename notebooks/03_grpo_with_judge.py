# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3 · GRPO: practice with a reward
#
# After SFT the model keeps the format. Now it gets to practise. For each question it generates a group of completions,
# a reward scores them, and the adapter moves towards the better ones (GRPO, arXiv 2402.03300). The recipe says what the
# reward is. That of `g_rar` has three parts: the **format** (a penalty for broken format, while correct format alone
# earns nothing), the **exact answer**, and a **rubric** by which a judge, a second model, scores the reasoning.
#
# **Be patient.** Rewards swing from step to step, because each step asks different questions. Look at averages over
# about twenty steps, and at several *probes*, the checks of accuracy on validation problems between the steps.
#
# **Stop and look** if completions keep getting longer while held-out accuracy stays flat. And always read some of them
# before you trust a high reward.

# %% [markdown] tags=["clone"]
# **Input:** the adapter of the recipe's previous stage, if there is one.
#
# **What to expect.** This is one run of the demo (1 M parameters, seed 0), with 96 completions per step:
#
# | | step 1 | 10 | 20 | 40 | 64 |
# |---|---|---|---|---|---|
# | reward | 1.05 | 1.77 | 1.69 | 2.05 | 2.16 |
# | its rubric part, from 0 to 1 | 0.38 | 0.89 | 0.89 | 0.93 | 0.97 |
# | exact answers | 53 % | 45 % | 44 % | 68 % | 73 % |
# | tokens per completion | 23 | 35 | 35 | 37 | 34 |
# | accuracy on validation problems (after SFT: 54 % on test problems) | | | 73 % | 72 % | 71 % at step 60 |
#
# The rubric's part reaches 0.9 in about ten steps, partly because it is 0 for reasoning without any work. Exact answers
# swing by ten to twenty points from step to step. Held-out accuracy has all its gain by step 20. A larger model with a
# lower learning rate moves more slowly.

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
from reasonkit.eval.evaluate import evaluate
from reasonkit.models import checkpoints, placement
from reasonkit.models.logprobs import local_judge
from reasonkit.run import open_run
from reasonkit.session.manifest import code_sha256, has_failed
from reasonkit.show import report
from reasonkit.show.completions import group_table, reward_example, sample_table
from reasonkit.show.figures import chips
from reasonkit.show.settings_table import settings_table
from reasonkit.train import rollout
from reasonkit.train.grpo import grpo

# %%
from reasonkit.judge.judge import JudgeItem
from reasonkit.rewards import monitors
from reasonkit.rewards.mix import RewardMix
from recipes.judges.cache import CachedJudge
from recipes.judges.exam import anchors, as_begun, examine, is_judged, without_unfit_judge
from recipes.judges.open_questions import compare_judged, hold_out_open, judge_completions, open_table, without_open

# %%
# frees the chips if an earlier run was stopped in this kernel
policy = judge_model = judge = parts = reward = generate = probe = None
run = open_run(PROFILE, RECIPE, SEED, settings=SETTINGS)
profile, recipe, inputs = run.profile, run.recipe, run.inputs("grpo")
train, validation = (read_rows(run.stage("data") / f"{name}.parquet") for name in ("train", "validation"))
train, open_rows = hold_out_open(train, 64 * recipe.uses_judge)
print(f"{len(train)} problems, {len(open_rows)} open ones held out; {run.budget.minutes_left:.1f} minutes left")

# %% [markdown]
# ## The chips
#
# The policy gets one half of the chips, and the judge the other. Each of the policy's chips holds a full copy. A 12B
# judge is too large for one chip, so each of its weight matrices is split over two (`tp=2`). Without a local judge the
# policy gets all the chips. On a single chip, policy and judge take turns.
#
# The *reference*, the policy as it was before this stage, needs no second copy of the base model. It is only the earlier
# adapter on the same frozen weights.

# %% [markdown] tags=["clone", "pinocchio"]
# You can also use a judge behind an API. To switch it on, write `"api_dollars": 5` into `SETTINGS`, and set the secret
# `GEMINI_API_KEY` or `GOOGLE_API_KEY`, or `OPENAI_API_KEY` for a service with an OpenAI-compatible API. It is read from
# the secrets of Kaggle or Colab, or from the environment. The competition may allow only Google's. Once the dollars are
# spent, GRPO ends with its last good step. By estimate five dollars last for less than a third of Kaggle's steps, at the
# price of our default Gemini.

# %% tags=["clone", "pinocchio"]
from recipes.judges import api_judge

if recipe.uses_judge and profile.api_dollars and not recipe.judge:
    # for a model without a known price, write its dollars per million tokens into PRICES of recipes/judges/api_client.py
    judge = api_judge.from_secrets(api_judge.ApiLimits(profile.api_dollars))

# %%
local = recipe.uses_judge and (judge is None or judge_model is not None)  # on our chips, not behind an API
plan = placement.plan(profile, jax.devices(), judge=local, grpo=True)
for role, reason in plan.reasons.items():
    print(f"{role}: {reason}")
chips(plan)

# %% [markdown] tags=["clone"]
# On a TPU, the next cell repeats the forecast of notebook 2. This time it uses the measured speed of SFT, and that of
# GRPO if this run resumes it.

# %% tags=["clone"]
from tools.preflight import forecast

if jax.default_backend() == "tpu":
    measured = [*run.log("sft").read(), *run.log("grpo").read()]
    print(forecast.at_hand(profile, recipe, jax.devices(), run.folder / "preflight", measured, judge is None))

# %%
policy, start = placement.load_policy(profile, plan, SEED, inputs.get("adapter"))

# %% [markdown]
# ## The judge
#
# The judge reads the question, the completion and one criterion, and rates from 1 to 5 how well the criterion is met.
# It doesn't generate anything. Its score is the expected rating under the next-token distribution (G-Eval, arXiv
# 2303.16634), so there is no text to parse. A single forward pass reads a completion once for all its criteria. With
# criterion $k$ of weight $w_k$:
#
# $$c_k = \frac{E[\text{rating}_k] - 1}{4}, \qquad \text{score} = \frac{\sum_k w_k c_k}{\sum_k w_k}.$$
#
# Three rules are added. A completion that says nothing avoids every pitfall. So the $c_k$ of a pitfall is capped at twice
# the best $c_k$ of the other criteria. A question's own rubric may say nothing about reasoning. Then it gets one more
# criterion, worth a quarter of the score: the reasoning leads to the answer. The score is rounded to 0.1, because GRPO
# divides by the group's spread and would turn the judge's noise into large advantages.
#
# When the judge fails, the result is *no signal*: the mean of the rubric's part over the rest of the group stands in,
# so the completion neither gains nor loses. A completion that is too long for the judge to read scores 0. Every
# verdict is recorded in `verdicts.jsonl`, so no completion is judged twice by the same rubric.

# %%
if local:
    judge = judge_model = None  # frees the chips if this cell is run again
    judge_model = placement.load_judge(profile, plan)
    judge = (recipe.judge or local_judge)(judge_model, plan.judge, profile, run.folder)
if recipe.uses_judge:  # every verdict is kept
    judge = CachedJudge(judge, run.stage("grpo") / "verdicts.jsonl")
elif recipe.judge:  # the policy scores itself. Its verdicts change with its weights, so none is kept
    judge = recipe.judge(policy, plan.policy, profile, run.folder)
print(f"judge: {judge.identity if judge else 'none'}")

# %% [markdown]
# ## The reward
#
# The recipe returns a list of reward functions with their weights. `RewardMix` adds them up into the single reward that
# the learner sees, and it logs every part. A part with weight 0 is only logged.
#
# In `g_rar` the rubric weighs most, because the competition scores the reasoning. On open questions it is also the
# only part that pays. This has a price: a complete but wrong solution can earn more than a right answer without steps.
#
# A completion that was cut off, or has no answer, gets 0 from the rubric, and the judge isn't asked. The same holds if a
# program can already see that it shows no work: the reasoning is empty, it repeats the question, the answer or a single
# step, or most of its sums are false or belong to another problem.
#
# The cell below prints the recipe. Each part of its reward is a function of the completions. To change it, edit the file,
# which a submission holds in the folded cell of `recipes`.

# %% [markdown] tags=["clone"]
# A recipe with a curriculum draws mostly problems that the policy solves sometimes, because the others teach it
# nothing. Two recipes are controls. `constant` pays every completion the same and must leave the adapter unchanged,
# bit for bit. `shuffled` deals the rewards out at random, and that does move the adapter. Believe only what a recipe
# gains beyond that. The field `judge` of a recipe chooses another kind of judge. It may give one rating for all
# criteria together, or rate each criterion twice, with the scale in both orders (`recipes/judges/local_variants.py`).
# It may also be the run's own reward model, or the policy itself, which reads its completions again (`rlpr`).

# %%
from importlib import import_module
from inspect import getsource

print(getsource(import_module(f"recipes.{recipe.name}")))
log = run.log("grpo")
parts = recipe.rewards(judge, train["question"])
weights = {part.__name__: weight for part, weight in parts}
code = code_sha256(part for part, _ in parts)

# %% [markdown]
# A policy learns whatever its judge rewards. So before training the judge takes an exam on the run's own problems. It
# passes if worked solutions score at least 0.05 above flawed ones on average. It fails if one kind of flaw scores
# clearly higher in any family, that is, any type of problem. The flaws are the answer without steps (*terse*), only the
# last step (*cut short*), and the solution written twice (*padded*). A fourth flaw, a *false number* in the steps, is
# only reported. A judge that misses it sees whether the work is complete, not whether it is right. The exam also fails
# if more than half of the pairs have no verdict.
#
# If the judge fails, the cell shows the pair that it got most wrong, and the judge's part of the reward is left out.
# The report at the end says so if that part had a weight. The other parts still teach, on questions with a right
# answer.
#
# Below that is the judge's prompt for one criterion. The table after it has four completions to one question, and what
# each part of the reward pays for them: a worked solution, the same answer without steps, the worked solution without
# its last tag, and the bare answer.

# %%
pairs, exam = anchors(validation), None  # pairs of a worked solution and a flawed one
if recipe.uses_judge:  # a stage that goes on keeps the exam with which it began
    exam = as_begun(examine(judge, pairs), run.stage("grpo") / "exam.json", run.resumes("grpo"))
print(exam or "no exam, because there is no judge model")
if judge_model and not recipe.judge:
    item = JudgeItem(pairs[0].question, pairs[0].good, pairs[0].rubric)
    print(f"\nWhat it reads, for one criterion:\n{judge.judge.prompts(item)[0]}")

# %%
unfit, curriculum = exam.fault if exam and is_judged(parts) else "", None
parts = without_unfit_judge(parts, exam)
if recipe.asks and not (recipe.uses_judge and is_judged(parts)):  # open ones would all get the same reward
    train = without_open(train, references=not recipe.uses_judge)
if recipe.curriculum:  # it reads its pass rates from one part
    curriculum, parts = recipe.curriculum(log, parts)
reward = RewardMix([*parts, (monitors.suspicious(log), 0.0)], log)  # weight 0: logged, not trained on
shown = next((row for row in validation if row["reasoning"] and row["answer"]), None)
# a name for these parts would keep the judge on its chips
reward_example(without_unfit_judge(recipe.rewards(judge, train["question"]), exam), shown) if shown else (
    "no problem has a worked solution")

# %% [markdown]
# ## The objective
#
# **The advantage.** For each question $q$ the policy generates $G$ completions $o_1 \dots o_G$ with rewards $r_i$. The advantage of a
# completion compares it with its group: $A_i = (r_i - \bar r) / (s_r + 10^{-6})$, or 0 if all rewards in the group are
# equal. Here $\bar r$ is the group's mean and $s_r$ its standard deviation (divisor $G - 1$).
#
# **The loss.** Each step samples $N$ completions, the *rollout*, and makes one update with them. So the paper's ratio of
# new to old probabilities is 1, its clip never acts, and the gradient is that of this loss:
#
# $$-\frac{1}{N}\sum_i \frac{1}{|o_i|}\sum_t \Big[ A_i \log \pi(o_{i,t} \mid q, o_{i,<t})
# - \beta\,m_i\,(e^{d} - d - 1) \Big], \qquad d = \log \pi_{ref} - \log \pi \text{ of that token}.$$
#
# The last term estimates the KL divergence between policy and reference by the estimator k3, and keeps the two close.
#
# **Three choices.** Tunix's default for the KL term is $-d$ (k1). The gradient of that does not depend on the reference,
# so it can't pull the policy back. $m_i$ is 1 in a group whose rewards differ and 0 otherwise: in the others the KL term
# would be the only gradient. Dividing by $s_r$ favours questions whose rewards hardly differ (arXiv 2503.20783). We keep
# it, as in the original paper.
#
# The trainer is Tunix's `GRPOLearner`. We subclass it so that this loss never holds the logits of a whole batch, and so
# that the judge scores one half of a step while the policy samples the other (`reasonkit/train/grpo.py`). The table gives
# the reason for each setting.

# %%
settings_table("grpo", profile.grpo)

# %% [markdown]
# ## Training
#
# In PyTorch's terms, one step of `g_rar` on Kaggle is:
#
# ```python
# questions = next(batches)                                  # 32
# completions = sample(policy, questions, n=8)               # 256, at temperature 1, on the policy's chips
# rewards = format + gated_answer + 1.5 * rubric             # format is 0 or less; the judge's chips score the rubric
# advantages = (rewards - mean_of_group) / (std_of_group + 1e-6)
# for part in chunks(completions, advantages, 32):           # 8 passes, because all at once would not fit
#     (grpo_loss(policy, reference, *part) / 8).backward()   # the mean of the gradients
# clip_grad_norm_(adapter, 1.0)
# adamw.step()                                               # one update, then new questions
# adamw.zero_grad()
# ```
#
# In JAX, Tunix's `GRPOLearner.train` does this. On Kaggle, beside a local judge, it samples 16 questions at a time, so
# that the judge scores one half of a step while the policy samples the other. `grpo(...)` sets up the learner and stops
# it before the session ends.
#
# Every `probe_every` steps the policy answers the validation problems greedily: this is a probe. Monitors look for
# signs of reward hacking: a reward that rises while accuracy doesn't, drifting lengths, loops, too many tags, and
# completions that address the judge. Anything that they find is flagged in the live view, with an example. A healthy
# run shows few flags. One can be harmless: with many open questions the reward may rise while accuracy stays the same.

# %%
limits = dict(max_prompt_length=profile.grpo.max_prompt_length, max_new_tokens=profile.grpo.max_new_tokens)
generate = rollout.generator(policy.model, policy.tokenizer, plan.policy, batch_size=profile.eval_batch, **limits)
if "adapter" in inputs:  # that in memory may be half trained, if this part was stopped and is run again
    checkpoints.restore_lora(policy.model, inputs["adapter"])
evaluate(generate, validation.select(range(1)), 1)  # compiles, so that the next lines time an evaluation
with run.budget.measure("probe"):  # the clock keeps time for those to come
    answers = {"before GRPO": evaluate(generate, validation, profile.eval_batch)}
judged = {}  # open questions were held out: the judge scores the policy's completions
if len(open_rows) and not exam.fault:
    judged["before GRPO"] = judge_completions(generate, open_rows, judge, profile.eval_batch)
probe = monitors.probe(generate, validation, profile.eval_batch, log, profile.probe_every, run.budget.measure)
watch = monitors.watcher(log)

# %%
from reasonkit.show.dashboard import Dashboard

board = Dashboard(log, run.budget, "GRPO", profile.grpo.steps)
board.show()
if run.begin("grpo", policy.folder, inputs, rewards=weights, code=code, judge=judge.identity if judge else None,
             curriculum=getattr(recipe.curriculum, "__name__", "")):
    result = grpo(policy, plan.policy, train, reward, profile.grpo, run.budget, log, run.checkpoints, SEED,
                  start, lambda: [look() for look in (probe, watch, board.update)], curriculum)
    run.hand_over("grpo", policy.model, result, inputs, reward=(log.last("reward") or {}).get("mean"),
                  judge_failures=judge.failures if judge else {}, unfit_judge=unfit)
else:
    checkpoints.restore_lora(policy.model, run.stage("grpo") / "adapter")
board.figure(run.stage("grpo") / "curves.png")

# %% [markdown]
# ## One group
#
# This is what GRPO learns from: the completions of one question in the last step, best first. Only the differences
# within the group count. A completion above the group's mean becomes more likely, and one below it less likely. The
# demo's judge pays for complete steps, and a single wrong step does not lower its score. Only the exact answer notices
# such a mistake.
#
# The second table has one completion from each of the last steps. Click on a column head to sort, and read those with
# the highest and the lowest reward.

# %%
if reward.group:
    log.write("group", **reward.group)
group = log.last("group")
display(group_table(group, profile.grpo) if group else "this run made no steps")
sample_table(log.read("reward"))

# %% [markdown]
# ## Open questions
#
# Most of the competition's questions have no single right answer. If the data have such questions, some were held out,
# and the judge scores the policy's greedy completions to them before and after GRPO. The judge is also the reward, so
# read the completions, too: a higher score only says that the judge likes them better. *Finished* is the share that
# came to an answer within the limit.

# %%
if judged and not has_failed(run.manifest("grpo")):
    judged["after GRPO"] = judge_completions(generate, open_rows, judge, profile.eval_batch)
    display(report.comparison_table({"the judge's score, open questions": compare_judged(*judged.values(), "score"),
                                     "finished, open questions": compare_judged(*judged.values(), "is_finished")}))
    display(open_table(judged))

# %% [markdown]
# ## Hand over
#
# A rising reward does not prove a better model. So we ask the validation questions again. If accuracy or format fell
# significantly and neither rose significantly, we keep the adapter from before this stage. The next cell also says
# where the adapter is, and frees the chips for the evaluation.

# %%
answers["after GRPO"] = evaluate(generate, validation, profile.eval_batch)
run.keep_better("grpo", policy.model, *answers.values())
left = run.manifest("grpo")  # if the stage was stopped early, this says how to go on
del policy, judge_model, judge, parts, reward, generate, probe, watch  # frees the chips for evaluation
print(f"adapter of step {left['extra']['checkpoint_step']} in {run.stage('grpo') / 'adapter'}; "
      f"{run.budget.minutes_left:.1f} minutes left")
run.close()
