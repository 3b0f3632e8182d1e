# %% [markdown]
# # A small Gemma that shows its work
#
# This notebook does everything in a single session. It collects problems with worked solutions and trains a LoRA
# adapter on them: a few small matrices beside each frozen weight of Gemma. Training has several stages, which a
# *recipe* lists. Every stage is measured on unseen questions.
#
# **Before you run it on Kaggle:**
#
# 1. *Accelerator*: TPU v5e-8. *Internet*: on, because the questions come from the Hugging Face hub.
# 2. *Add Input → Models*: Gemma 2 `gemma2-2b-it` and, for the judge, Gemma 3 `gemma3-12b-it`, both Flax. Accept
#    Google's terms first. If the recipe needs another model, the first cells name it.
# 3. *Save Version → Save & Run All*. The forecast for `g_rar` is 484 of 520 minutes. If the chips turn out faster than
#    forecast, GRPO makes more steps in that time. Kaggle gives 20 TPU hours per week. For a short trial, set
#    `sft_steps` and `grpo_steps` to 5 below and choose *Run All*.

# %% tags=["parameters"]
PROFILE = "kaggle"  # where it runs: kaggle, colab, gpu
RECIPE = "g_rar"  # what is trained: this notebook carries only this recipe
SEED = 42  # the judges decode with seed 42, and this run uses the same
DATA = ""  # your own file of questions (CSV, JSONL, JSON, Parquet); "" is the recipe's mix
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
#    answer if the question has a right one. In `g_rar` a judge model scores the reasoning. We never train on a test
#    question.
# 2. **Training.** In `g_rar` the model first imitates worked solutions (supervised fine-tuning, SFT). Then it
#    practises: for each question it writes several completions, and the adapter moves towards those that score best
#    (Group Relative Policy Optimization, GRPO). Part 3 has a chapter for each stage. It says what the stage is for,
#    what its objective is, and why each setting has its value.
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
# | policy, reference | the model being trained; the same model as it was before the stage |
# | rubric | the criteria by which a judge model scores a completion |
# | judge | a model that scores completions. *The judges* are the people who judge this competition |
# | trace | a worked solution that SFT imitates. A *terse* one states its answer without steps |
# | demo | the same notebooks with models of 1 M parameters, on a CPU. Its results are below |
# | group | the completions to one question, which GRPO compares with each other |
#
# ## Choices and reasons
#
# | Choice | Reason |
# |---|---|
# | the recipe `g_rar`: SFT, then GRPO with a rubric judge | the competition scores the reasoning, on questions without one right answer. In the demo, which has plenty of good traces, SFT on those alone does as well (below). Whether GRPO helps a real Gemma is measured in part 3 |
# | one LoRA adapter through all stages | the judges load one adapter, so every checkpoint can be submitted |
# | half of the chips for the policy, half for the judge | the judge scores one half of a step while the policy samples the other. Tunix's own demo leaves four chips idle |
# | the base model replicated on each of the policy's chips | it fits, and no chip waits for weights from another |
# | one prompt in all stages, byte for byte | a difference in white space cost one entrant 39 points of format rate |
# | a judge that fails gives no signal | a low score in its place would punish the policy for the judge's mistake |
# | every stage stops in time to save a checkpoint | a session that ends early still leaves something to submit. If a stage fails after the run's first checkpoint, the run goes on with the last good one |
# | the judges' own loader runs before the end | an adapter that the judges can't load is worth nothing |

# %% [markdown]
# ## Results of a demo run
#
# This is a run of the same notebooks on a CPU, with a policy and a judge of 1 M parameters each: recipe `g_rar`, seed
# 0, 600 unseen problems. *By content* an answer counts with or without its tag, because the base model was never
# trained on the tags. *Step accuracy* is the share of reasoning steps that equal the worked solution's. The *controls*
# show how much can be had without the rubric.
#
# | | by content | format | step accuracy |
# |---|---|---|---|
# | base model | 66.2 % [62.3, 69.9] | 0.0 % [0.0, 0.5] | 0.0 % [0.0, 0.5] |
# | after SFT | 54.0 % [50.0, 58.0] | 100.0 % [99.5, 100.0] | 12.1 % [9.7, 14.7] |
# | after GRPO | 74.5 % [70.9, 77.9] | 100.0 % [99.5, 100.0] | 88.9 % [87.3, 90.4] |
# | *control:* GRPO without the rubric | 70.5 % [66.8, 74.0] | 99.8 % [99.2, 100.0] | 76.5 % [73.6, 79.2] |
# | *control:* GRPO, rewards dealt out at random | 57.0 % [53.0, 60.9] | 99.8 % [99.2, 100.0] | 39.3 % [35.7, 42.9] |
# | *control:* GRPO, the same reward for all | 54.0 % [50.0, 58.0] | 100.0 % [99.5, 100.0] | 12.1 % [9.7, 14.7] |
# | *control:* the same number of SFT steps, but only on traces that show their steps | 77.7 % [74.2, 80.9] | 100.0 % [99.5, 100.0] | 93.5 % [92.2, 94.6] |
#
# Compared question by question, GRPO ends 8.3 points [3.2, 13.5] of right answers above the base model. SFT lowers
# accuracy, because we made 60 % of its traces skip their steps. GRPO wins that back. SFT on only the traces that show
# their steps does as well without any GRPO. The rubric raises step accuracy on two of three seeds, and accuracy on
# none. The three seeds and the controls ran before the rubric paid 0 for reasoning without work, and for completions
# that were cut off. The figures show that the pipeline works, not what a Gemma gains. That is measured at the end of
# part 3. Below is the live view of this run's GRPO. Part 3 has the same view for yours:
#
# ![Reward and its parts, held-out accuracy, flat groups, loss, length, KL, entropy, and two completions](../docs/images/live_view_light.png)

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
# Part 3 defined them as soon as training was over. The tokenizer's end-of-sequence token is `<end_of_turn>` here,
# because that is where the policy stops.

# %%
print(f"checkpoints in {CKPT_DIR}, generation of up to {MAX_GENERATION_STEPS} tokens, temperature {INF_TEMPERATURE}")

# %% [markdown]
# # 4 · Unrestricted mode
#
# This run does not enter it. To enter, publish a model in Flax format on the same base model and give its name here as
# `"user/model"`. Notebook 4 of the kit uploads such a model if the secret `KAGGLE_MODEL_HANDLE` is set.

# %%
unrestricted_kaggle_model = None

# %% [markdown]
# # 5 · Other things to know
#
# - No cell needs a key, and nothing a model writes is ever executed.
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
# - The trainers are those of Tunix 0.1.7.
