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
# One session, one notebook: problems with worked solutions, a supervised warm start of one LoRA adapter, reinforcement
# learning with a rubric judge on the other half of the chips, and an evaluation with intervals. The library it uses is
# written out below, readable, so nothing is downloaded but the models attached as inputs.

# %% tags=["parameters"]
PROFILE = "kaggle"  # where it runs: kaggle, colab, gpu
RECIPE = "g_rar"  # what is trained
SEED = 42  # the judges decode with seed 42; the run uses the same

# %% [markdown]
# # 1 · Overall training and evaluation strategy
#
# 1. **Data.** Procedural problems with canonical worked steps, so that form, answer *and* reasoning can be checked by a
#    program. Splits are disjoint by the hash of the question.
# 2. **SFT warm start.** One LoRA adapter on all attention and feed-forward matrices learns the tags. The loss includes the
#    stop token.
# 3. **GRPO.** The reward is a penalty for broken form, the exact answer, and a rubric scored by a second Gemma: the
#    expectation over its rating tokens, from one forward pass. A judge that fails gives no signal, never a low score. The
#    reference is the adapter as GRPO began, on the same base.
# 4. **Evaluation.** Greedy, as the judges decode; stock, after SFT and after GRPO on the same unseen questions, with 95 %
#    intervals and paired comparisons.
#
# A clock counts from the start of the session and ends each stage in time for its last checkpoint. All stages save into one
# folder in the judges' layout, under growing step numbers, so whatever stops the run, what lies there can be loaded.
#
# ## The library
#
# Folded here; open any cell to read it. The cells after it install the packages that are missing, pinned.

# %%
# {{library}}

# %%
# {{setup}}

# %% [markdown]
# ## What the judges read
#
# The prompt and the limits are those of training, byte for byte: the assertions hold them to it.

# %%
from reasonkit.run import open_run
from reasonkit.text.tags import TAGS

run = open_run(PROFILE, RECIPE, SEED)
REASONING_START, REASONING_END = "<reasoning>", "</reasoning>"
SOLUTION_START, SOLUTION_END = "<answer>", "</answer>"
PROMPT_TEMPLATE = TAGS.template
MAX_PROMPT_LENGTH = run.profile.grpo.max_prompt_length
MAX_GENERATION_STEPS = run.profile.grpo.max_new_tokens
INF_TEMPERATURE, INF_TOP_K, INF_TOP_P = 0, 1, None
CKPT_DIR = str(run.checkpoints)
assert (REASONING_START, REASONING_END) == (TAGS.reasoning_start, TAGS.reasoning_end)
assert (SOLUTION_START, SOLUTION_END) == (TAGS.answer_start, TAGS.answer_end)

# %% [markdown]
# # 2 · How the data set is made

# %%
# {{notebook 01_data_curation}}

# %% [markdown]
# # 3 · Fine-tuning

# %%
# {{notebook 02_sft_warm_start}}

# %%
# {{notebook 03_grpo_with_judge}}

# %%
# {{notebook 04_evaluation}}

# %% [markdown]
# ## What the judges load
#
# The adapter's module, its tokenizer and the model's configuration, under the names the template asks for.

# %%
lora_policy, tokenizer, model_config = policy.model, policy.tokenizer, policy.config
print(f"checkpoints in {CKPT_DIR}, generation of up to {MAX_GENERATION_STEPS} tokens, temperature {INF_TEMPERATURE}")

# %% [markdown]
# # 4 · Unrestricted mode
#
# Not entered. To enter, publish a model in Flax format on the same base and name it here as `"user/model"`. Notebook 4's
# last cell publishes this one where the secret `KAGGLE_MODEL_HANDLE` says so.

# %%
unrestricted_kaggle_model = None

# %% [markdown]
# # 5 · Other things to know
#
# - Only the frozen base and one adapter are held on the policy's chips; weights are replicated, so that no token waits for
#   a gather.
# - Nothing here needs a key. Nothing a model writes is executed.
# - Run it again after an interruption: finished stages are read back, an unfinished one resumes from its last checkpoint.
