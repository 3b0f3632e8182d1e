# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A small Gemma that shows its work
#
# This notebook does everything in a single session. It collects problems with worked solutions, trains a LoRA adapter
# through the stages of its recipe, and measures every stage on unseen questions. The models are attached as inputs. The
# questions are downloaded from the Hugging Face hub, so turn *Internet* on.

# %% tags=["parameters"]
PROFILE = "kaggle"  # where it runs: kaggle, colab, gpu
RECIPE = "g_rar"  # what is trained
SEED = 42  # the judges decode with seed 42, and this run uses the same
DATA = ""  # your own file of questions (CSV, JSONL, JSON, Parquet); "" is the recipe's mix
SETTINGS = {  # 0 and "" leave the profile's value
    "policy": "", "judge": "",  # models, such as "gemma3-1b-it"
    "sft_steps": 0, "sft_learning_rate": 0,
    "grpo_steps": 0, "grpo_learning_rate": 0,
    "minutes": 0,  # of the session
}

# %% [markdown]
# # 1 · Overall training and evaluation strategy
#
# 1. **Data.** We collect problems with worked solutions. A program can check the format, the answer *and* the steps. A
#    question's hash decides its split, so we never train on a test question.
# 2. **Training.** One LoRA adapter on all attention and feed-forward matrices goes through all stages of the recipe.
#    Part 3 has a chapter for each stage that explains what it is for, its objective, and the reason for each setting.
# 3. **Evaluation.** The base model and the model after each stage answer the same unseen questions greedily. Every
#    figure comes with a 95 % interval, and comparisons are paired.
#
# A clock runs from the start of the session and stops each stage in time to save its last checkpoint. All stages save
# into one folder in the judges' layout, with rising step numbers. So whenever the run stops, the judges can load the
# last checkpoint there.
#
# ## Choices and reasons
#
# | Choice | Reason |
# |---|---|
# | one LoRA adapter through all stages | the judges load one adapter, so every checkpoint can be submitted |
# | the base model replicated on each of the policy's chips | it fits, and no chip waits for weights from another |
# | one prompt in all stages, byte for byte | a difference in white space cost one entrant 39 points of format rate |
# | every stage stops in time to save a checkpoint | whatever the clock does, there is something to submit |

# %% [markdown]
# ## Results of a demo run
#
# The same notebooks with a policy and a judge of 1 M parameters each, on a CPU: recipe `g_rar`, seed 0, 600 unseen
# problems. By content, an answer counts with or without its tag, because the base model was never shown the tags.
#
# | | by content | format | step accuracy |
# |---|---|---|---|
# | base model | 66.2 % [62.3, 69.9] | 0.0 % [0.0, 0.5] | 0.0 % [0.0, 0.5] |
# | after SFT | 54.0 % [50.0, 58.0] | 100.0 % [99.5, 100.0] | 12.1 % [9.7, 14.7] |
# | after GRPO | 75.5 % [71.9, 78.8] | 100.0 % [99.5, 100.0] | 89.7 % [88.0, 91.1] |
#
# The gain in right answers is 9.3 points [4.1, 14.5], paired. SFT lowers accuracy, because we made 60 % of the traces
# skip their steps, and GRPO wins it back. The figures show that the pipeline works, not what a Gemma gains. That
# is measured at the end of part 3, where this notebook asks the same questions of every stage. This is the live view of
# that run's GRPO, which part 3 shows for yours:
#
# ![Reward and its parts, held-out accuracy, flat groups, loss, length, KL, entropy, and two completions](../docs/images/live_view_light.png)

# %% [markdown] tags=["library"]
# ## The library
#
# The folded cells below write out the library, one folder per cell. Open any of them to read the code. The cells after
# them install missing packages at pinned versions.

# %%
# {{library}}

# %%
# {{setup}}

# %% [markdown]
# # 2 · How the data set is made

# %%
# {{stages data}}

# %% [markdown]
# # 3 · Fine-tuning

# %% [markdown]
# ## What the judges read
#
# The prompt and the limits are the same as in training. The assertions fail if the tags differ by even one byte.

# %%
from reasonkit.text.tags import TAGS

REASONING_START, REASONING_END = "<reasoning>", "</reasoning>"
SOLUTION_START, SOLUTION_END = "<answer>", "</answer>"
PROMPT_TEMPLATE = TAGS.template
MAX_PROMPT_LENGTH = run.profile.grpo.max_prompt_length
MAX_GENERATION_STEPS = run.profile.grpo.max_new_tokens
INF_TEMPERATURE, INF_TOP_K, INF_TOP_P = 0, 1, None
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
# These are the policy with its adapter, its tokenizer and its configuration, under the names that the template expects.

# %%
lora_policy, tokenizer, model_config = policy.model, policy.tokenizer, policy.config
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
# - After an interruption, just run the notebook again. It reads finished stages back and resumes an unfinished one from
#   its last checkpoint.
#
# ## References
#
# - LoRA: arXiv 2106.09685. Gemma 2: arXiv 2408.00118. Gemma 3: arXiv 2503.19786.
# - GRPO: *DeepSeekMath*, arXiv 2402.03300. Dividing by the group's standard deviation, and its bias: *Understanding
#   R1-Zero-Like Training*, arXiv 2503.20783.
# - The judge: *Rubrics as Rewards*, arXiv 2507.17746, and *G-Eval*, arXiv 2303.16634.
# - The trainers are those of Tunix 0.1.7.
