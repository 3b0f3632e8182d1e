# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1 · Data curation
#
# A reasoning model is taught by three things: questions, worked solutions in the form we want, and a way to tell a good
# reply from a bad one. This notebook makes all three and splits them so that no test question can have been trained on.
#
# **What comes out:** `artifacts/data/{train,validation,test}.jsonl` and a manifest that notebook 2 reads.
# **How long:** under a minute. **What to change:** the two lines below.

# %% tags=["parameters"]
PROFILE = "cpu"  # where it runs: cpu, kaggle, colab, gpu
RECIPE = "g_rar"  # what is trained: a file in recipes/
SEED = 0

# %% [markdown]
# The next two cells find the library and install what is missing, pinned. Where that fails they stop and say what to do;
# where a package was imported before it was replaced, that is to restart the kernel once.

# %%
# {{setup}}

# %%
from reasonkit.data import problems, screening
from reasonkit.models import load
from reasonkit.run import open_run
from reasonkit.text.tags import TAGS

run = open_run(PROFILE, RECIPE, SEED)
recipe = problems.load_recipe(run.recipe.data_for(run.profile))
print(f"{run.recipe.name}: {run.recipe.summary}\n{recipe.title}, {recipe.licence}\n"
      f"{run.budget.minutes_left:.0f} minutes left")

# %% [markdown]
# ## The form
#
# Training, rollout, evaluation and the judges all use **one prompt**, byte for byte. A difference of a single space
# between training and evaluation has cost an entrant 40 points of format; here there is only one template to differ from.

# %%
print(TAGS.template)

# %% [markdown]
# ## The problems
#
# Every problem is a function of its family, its number and the seed. The worked steps are canonical, one operation each,
# so that a program can later tell how many of a reply's steps are right, not only whether the answer is.

# %%
for family in recipe.families:
    item = problems.make_problem(family, 0, SEED)
    print(f"{family} ({item.kind})\n  {item.question}\n  {TAGS.render(reasoning=item.reasoning, answer=item.answer)}\n")

# %% [markdown]
# ## The rubric
#
# What a judge model is asked about each reply, with the weights of *Rubrics as Rewards* (arXiv 2507.17746). As there, the
# criteria are written for each problem from its reference solution; a fixed generic rubric does worse.

# %%
for criterion in problems.rubric_of(recipe, item):
    print(f"{criterion.weight:.1f}  {criterion.title}: {criterion.description}")

# %% [markdown]
# ## The splits
#
# A question belongs to exactly one split by the hash of its text, whatever the seed, so train, validation and test are
# disjoint by construction. `curate` proves it anyway, and takes two spellings of a question for one: another case,
# apostrophe, minus sign or final mark does not make it new.

# %%
splits = problems.curate(recipe, run.profile.rows, SEED)

# %% [markdown]
# ## What can be used
#
# One row that a later stage cannot use would stop the run hours from now, so every row is tried here. Its gold answer goes
# through the checker that will grade the replies, and must be right. Its prompt must fit the limit, counted with the
# policy's own tokenizer. A validation or test row needs worked reasoning to compare with; a training row without it is
# left to GRPO. Rows that fail are left out and shown. If more than half of a split fails, that is an error.

# %%
from collections import Counter

tokenizer = load.tokenizer(run.profile.policy)
splits, left_out = screening.screen(splits, tokenizer, run.profile.grpo.max_prompt_length)
print(f"{len(left_out)} rows left out")
for (name, cause), times in Counter((row.split, row.cause) for row in left_out).items():
    print(f"{times:>6} of {name}: {cause}")
for row in left_out[:5]:
    print(f"{row.id}, {row.question!r:.100}\n  {row.why}")
for_sft = screening.sft_pairs(splits["train"], tokenizer, run.profile.sft.max_length)
print(f"SFT can learn from {len(for_sft)} of {len(splits['train'])} rows: those with reasoning, at most "
      f"{run.profile.sft.max_length} tokens long")

# %%
for name, rows in splits.items():
    counts = {family: rows["family"].count(family) for family in recipe.families}
    print(f"{name:>10}: {len(rows):>6} rows  {counts}")

# %% [markdown]
# A look at lengths: rows that do not fit a stage's token limit are left out, never cut, so a long tail here would be a
# loss. The hump on the left are terse traces, which show no step at all: distilled traces are uneven, and SFT learns
# that habit too. Where such a reply is right as often as a full one, the answer cannot tell them apart: to prefer the full
# reasoning is what the judge is for.

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(7, 2.4))
for family in recipe.families:
    lengths = [len(row["reasoning"]) for row in splits["train"] if row["family"] == family]
    axes.hist(lengths, bins=30, alpha=0.6, label=family)
axes.set(xlabel="characters of reasoning", ylabel="problems")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Hand over
#
# The manifest carries the hashes of the files and of the prompt: the next notebook refuses another prompt.

# %%
paths = problems.save_splits(splits, run.stage("data"))
run.finish("data", inputs=paths, metrics={name: len(rows) for name, rows in splits.items()},
           minutes=run.budget.minutes_here, title=recipe.title, licence=recipe.licence)
print(f"wrote {run.stage('data')}; {run.budget.minutes_left:.1f} minutes left")
run.close()  # the next notebook has a kernel of its own
