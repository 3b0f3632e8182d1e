# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1b · Teacher data
#
# SFT needs worked solutions, but many data sets come with right answers only. This notebook asks a stronger model, the
# *teacher*, to write the solutions, and tests each of them. It must keep the format and show its work, and the checker
# must find its answer right. It must not refuse, and it must not give the answer away before the reasoning. If no
# completion to a question passes, the question is asked again, up to a limit. This is rejection sampling (RFT, arXiv
# 2308.01825).
#
# - **Input:** the training questions of a mix or your own file.
# - **Output:** `artifacts/teacher/traces.jsonl`, a source of data like any other. With `REJECT = 1` also `pairs.jsonl`
#   for SimPO.
# - **Do you need it?** Only in three cases: your recipe has the stage `teacher`, as `gemmatron` does. Or its mix has a
#   source with `from = "teacher"`. Or you set `TEACHER`. In any other case the notebook says so and changes nothing.
#
# Every question, answer and payment is written to `asked.jsonl` right away. You can stop this notebook whenever you
# like and run it again later: you never ask or pay for the same answer twice.

# %% tags=["parameters"]
PROFILE = "cpu"  # where it runs: cpu, kaggle, colab, gpu
RECIPE = "g_rar"  # what is trained: a file in recipes/
SEED = 0
DATA = ""  # a mix in data_recipes/, or your own file; "" is the recipe's own. The same in notebook 1
SETTINGS = {}  # the same, too
TEACHER = ""  # "api"; "policy", this run's own model after SFT; or a local model such as "gemma3-12b-it"
STYLE = ""  # "tags", "scaffold" (IDEA-E's five steps), "steps" (for a small model that knows no tags)
COUNT = 4000  # questions at most. MINUTES and DOLLARS may end it earlier
TRIES = 4  # completions per question at most
KEEP = 1  # completions to keep per question: the judge takes the best of them
REJECT = 0  # rejected completions to keep per question: 1 makes pairs for SimPO
JUDGE = ""  # "local" or "api": rejects a low score, and is needed where there is no right answer
DOLLARS = 5.0  # what the API may cost in all, and as much again if it is the judge
PRICE = None  # of a model without a known price: (0.30, 2.50) dollars per million tokens in and out
MINUTES = 0  # at most. 0: the recipe's share of the session, or an hour if it has none

# %%
# {{setup}}

# %%
from dataclasses import replace

from reasonkit.data import curation
from reasonkit.data.sources import TeacherFile
from reasonkit.models.load import load, tokenizer
from reasonkit.precheck import writer_of
from reasonkit.run import open_run

# %%
run = open_run(PROFILE, RECIPE, SEED, data=DATA, settings=SETTINGS)
recipe = run.data_recipe(DATA)
named = [source.name for source in recipe.sources if isinstance(source, TeacherFile)]
who = writer_of(run, TEACHER, recipe)
style = STYLE or ("steps" if run.profile.toy and who == run.profile.larger else "tags")
why = ("training has begun with the traces, so the cells below do nothing" if run.is_finished("teacher") else
       "these data need no teacher, so the cells below do nothing. To ask one, set TEACHER")
print(f"{recipe.title}\nteacher: {who}" if who else f"{recipe.title}: {why}.")

# %% [markdown]
# ## The questions
#
# We use the same splits as notebook 1 and ask only training questions. Sources that a teacher has written are left out.

# %%
rows = []
if who:
    others = recipe.model_copy(update={"sources": [source for source in recipe.sources if source.name not in named]})
    sizes = {**run.profile.rows, "train": min(COUNT, run.profile.rows["train"])}
    splits, _ = curation.curate(others, sizes, SEED, tokenizer(run.profile.policy), run.profile.grpo.max_prompt_length)
    rows = splits["train"].to_list()
    print(f"{len(rows)} questions, {sum(row['kind'] == 'open' for row in rows)} of them without a right answer")

# %% [markdown]
# ## The teacher
#
# To use an API, set a secret: `GEMINI_API_KEY` or `GOOGLE_API_KEY`, or `OPENAI_API_KEY` with `OPENAI_MODEL` and
# `OPENAI_BASE_URL` for any endpoint that speaks OpenAI's chat completions. Read the vendor's terms first, because some
# forbid training on the answers. A local model runs on this machine's chips. With `TEACHER = "policy"` the teacher is
# the run's own model as SFT left it. Its pairs for SimPO are *on-policy*: the model that learns from them wrote both
# completions. The second cell below prints the text of the first request.

# %%
import jax
from reasonkit.models import placement
from reasonkit.session.run_log import RunLog
from recipes.stages.teacher import TeacherSettings, local_teacher, request_for, teacher_from_secrets

TELL_ANSWER = False  # True tells the teacher the right answer, which every row records
settings = TeacherSettings(TRIES, KEEP, REJECT, style, TELL_ANSWER)
log = RunLog(run.stage("teacher") / "asked.jsonl")
local = who not in ("", "api")
profile = replace(run.profile, policy=who) if local and who != "policy" else run.profile
if local or who and JUDGE == "local":
    plan, batch, length = placement.plan_teacher(profile, jax.devices(), JUDGE == "local")

# %%
model = teacher = judge = rater = None
if who == "policy":
    model, step = placement.load_policy(profile, plan, SEED, run.stage("sft") / "adapter")
    model = replace(model, name=f"{model.name} with the adapter of step {step}")
elif local:
    model = load(profile.policy, plan.policy, profile.dtype, replicated="policy" not in plan.gathered)
if local:
    teacher = local_teacher(model, plan.policy, max_prompt_length=length,
                            max_new_tokens=profile.grpo.max_new_tokens, batch_size=batch)
elif who:
    teacher = teacher_from_secrets(DOLLARS, PRICE, log)
if who:
    print(f"{teacher.name} ({teacher.endpoint}), {teacher.sampling}\n\n{request_for(rows[0], settings)}")

# %% [markdown]
# Questions without a right answer need a judge. A judge also catches what no checker can see, a right answer with poor
# reasoning: with only two or four options, a guess is often right. If `KEEP` is above 1, the judge picks the best
# completion. Its verdicts are recorded too.

# %%
from reasonkit.models.logprobs import local_judge
from recipes.judges.cache import CachedJudge
from recipes.stages.teacher import judge_from_secrets

if who and JUDGE == "api":
    judge = judge_from_secrets(DOLLARS, PRICE, RunLog(run.stage("teacher") / "judge.jsonl"))
elif who and JUDGE == "local":
    rater = placement.load_judge(profile, plan)
    judge = local_judge(rater, plan.judge, profile, run.folder)
elif who and JUDGE:
    raise ValueError(f"JUDGE={JUDGE!r}: give \"local\" or \"api\", or \"\" for none")
judge = judge and CachedJudge(judge, run.stage("teacher") / "verdicts.jsonl")

# %% [markdown]
# ## Asking
#
# This is the slow part, and with an API the one that costs money. It stops early and says why if the money or the
# minutes run out, or if a whole batch comes back without an answer. If the chips run out of memory, a local teacher
# takes half as many questions at once. It stops early if even the fewest do not fit.

# %%
from recipes.stages.teacher import collect, minutes_to_ask

samples = []
if who:
    samples = collect(rows, teacher, settings, log, judge, minutes_to_ask(run.budget, run.recipe, MINUTES))
    print(f"{len(samples)} completions to {len({sample['prompt_sha256'] for sample in samples})} of {len(rows)} "
          f"questions, {teacher.spent():.4f} dollars so far")

# %% [markdown]
# ## What is kept
#
# The first table counts the rejected completions by cause, and the second gives examples. Some `wrong answer` rows are
# normal, because hard questions take several tries. If any other cause dominates, suspect the prompt or the teacher. If
# nothing is kept, the run goes on with its other data, and their title says so.

# %%
from reasonkit.show import data_view
from recipes.stages.traces import pairs, traces

kept, ledger = traces(samples, teacher.provenance) if who else ([], None)
data_view.step_table(ledger) if who else "no completions"

# %%
data_view.example_table(ledger, ["completions"]) if who else "no completions"

# %% [markdown]
# Here are five of the traces, exactly as SFT will see them:

# %%
from reasonkit.show.figures import block
from reasonkit.show.report import table
from reasonkit.text.tags import TAGS

shown = [[row["question"], block(TAGS.render(reasoning=row["reasoning"], answer=row["answer"])), row["tries"]]
         for row in kept[:5]]
table(["question", "trace", "tries"], shown, f"{len(kept)} traces in all") if shown else "no traces"

# %% [markdown]
# ## Hand over
#
# Notebook 1 cleans the traces like any other rows. With the recipe `gemmatron` it reads them by itself, before the rows of
# its mix or of your own file. With other recipes, set `DATA = "artifacts/teacher/traces.jsonl"` there, or name them as a
# source of a mix in `data_recipes/`.

# %%
import json
from reasonkit.session.files import write_atomic
read = who == "policy" and named and run.is_finished("teacher")  # this run's data are those traces: only pairs are written
files = {**({"traces": kept} if who and not read else {}), **({"pairs": pairs(samples)} if who and REJECT else {})}
for name, found in files.items():
    path = run.stage("teacher") / f"{name}.jsonl"
    if found:
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in found))
    else:  # those there are of an earlier try; asked.jsonl still has their completions
        path.unlink(missing_ok=True)
    print(f"{len(found)} {name} in {path}" if found else f"no {name}")
if "traces" in files:
    run.finish("teacher", inputs={}, metrics={"traces": len(kept)}, minutes=run.budget.minutes_here, teacher=who)
    print('\n[[sources]]\nname = "taught"\nfrom = "teacher"\nweight = 1.0\ndomain = "science"\n'
          'licence = "…"  # of the questions, as far as the terms of the teacher allow\naddress = "https://…"')

# %%
del model, teacher, judge, rater  # frees the chips
run.close()
