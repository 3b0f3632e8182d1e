"""Single completions to look at: where SFT has a loss, what a reward pays, and what two adapters answer.

Entry points: `loss_mask`, `reward_example`, `group_table`, `sample_table`, `Ask` and `adapter_in`.
Rewards are summed as in training.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import jax
import jax.numpy as jnp
import numpy as np
from datasets import Dataset
from flax import nnx
from IPython.display import display
from markupsafe import Markup
from tunix.rl import function_registry

from reasonkit.data.rows import GRPO_COLUMNS, sft_batches
from reasonkit.models.checkpoints import restore_lora
from reasonkit.models.lora import lora_state
from reasonkit.rewards.mix import RewardMix
from reasonkit.rewards.rules import RewardFn
from reasonkit.session.run_log import NullLog
from reasonkit.settings import GrpoSettings
from reasonkit.show.figures import COLOURS, block, escape, number, visible
from reasonkit.show.report import Html, table
from reasonkit.text.tags import TAGS, neutralise
from reasonkit.train.policy_loss import loss_config

POOL = 64  # worked rows to pick one from
SAMPLES = 60  # the last steps, which the table of samples shows
# Sorts a table's rows by the numbers in the clicked column, largest first. A second click reverses the order.
SORT = ("const n=this.cellIndex,body=this.closest('table').tBodies[0],value=row=>{const x=parseFloat(row.cells[n]"
        ".textContent);return isNaN(x)?-1e9:x};this.sign=-(this.sign||1);[...body.rows].sort((a,b)=>this.sign*"
        "(value(a)-value(b))).forEach(row=>body.append(row))")
# Each front end that can show a live widget sets one of these in the kernel: Jupyter, VS Code, Colab.
FRONT_ENDS = ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG")

Adapter = Path | tuple[Path, int] | None  # a folder, for its last step; a folder and a step; None: the base model


def _cell(value: object) -> str:
    return f"{number(value):.2f}" if np.isfinite(number(value)) else "no signal"


def loss_mask(rows: Iterable[Mapping[str, Any]], tokenizer, max_length: int) -> Html:
    """One of the first worked rows as SFT trains on it, token by token. Tokens with a loss are coloured."""
    worked = Dataset.from_list(list(islice((dict(row) for row in rows if row["reasoning"]), POOL)))
    batch = next(sft_batches(worked, tokenizer, 1, max_length, 0))
    pairs = [(int(token), mask > 0) for token, mask in zip(batch["tokens_BL"][0], batch["loss_mask_BL"][0], strict=True)
             if token != tokenizer.pad_id()]
    style = {True: f"border-right:1px solid {COLOURS[1]};color:{COLOURS[1]}", False: "opacity:.6"}
    spans = Markup("").join(Markup('<span style="{}">{}</span>').format(
        style[has_loss], Markup(escape(tokenizer.piece(token).replace("\u2581", " ")))) for token, has_loss in pairs)
    note = Markup('<p class="note">{} of {} tokens have a loss, those in colour. A line ends each of them.</p>').format(
        sum(has_loss for _, has_loss in pairs), len(pairs))
    return Html(Markup("<pre>{}</pre>").format(spans) + note)


def reward_example(parts: Sequence[tuple[RewardFn, float]], row: Mapping[str, Any]) -> Html:
    """The reward of four completions to one problem, one line per part. `row` is a problem with reasoning.

    They are the worked solution, its answer without steps, the solution with its last tag open, and the bare answer.
    A part that keeps state, such as one with a random stream, must not be one that is trained on.
    """
    worked = TAGS.render(reasoning=row["reasoning"], answer=row["answer"])
    texts = [worked, TAGS.render(reasoning=f"So {row['answer']}", answer=row["answer"]),
             worked.removesuffix(TAGS.answer_end), row["answer"]]
    mix = RewardMix(parts, NullLog(), max_no_signal=1.0)
    count = len(texts)
    total = mix([TAGS.prompt(row["question"])] * count, texts, count,
                **{name: [row[name]] * count for name in GRPO_COLUMNS})
    lines = [[name, f"{weight:g}", *map(_cell, mix.group["parts"][name])] for name, weight in mix.weights.items()]
    return table(["", "weight", "worked solution", "without steps", "tag left open", "bare answer"],
                 [["completion", "", *map(block, texts)], *lines, ["total", "", *map(_cell, total)]],
                 f"Asked: {row['question']}", mark_last=True)


def group_table(group: Mapping[str, Any], settings: GrpoSettings) -> Html:
    """A group of completions as GRPO saw it, best first: each part of the reward, the total and the advantage.

    `group` is `RewardMix.group`, or a "group" row of the run log.
    """
    totals_N = np.array(list(map(number, group["totals"])))
    name = loss_config(settings, len(totals_N)).advantage_estimator
    advantages_N = function_registry.get_advantage_estimator(name)(rewards=totals_N, num_generations=len(totals_N))
    lines = [[block(group["completions"][n]), *(_cell(values[n]) for values in group["parts"].values()),
              _cell(totals_N[n]), f"{advantages_N[n]:+.2f}"] for n in np.argsort(-totals_N, kind="stable")]
    parts = [f"{name} × {group['weights'][name]:g}" for name in group["parts"]]
    return Html(block(group["prompt"]) + table(
        ["completion", *parts, "total", "advantage"], lines,
        f"The totals have mean {totals_N.mean():.2f} and standard deviation {totals_N.std(ddof=1):.2f}. A part with "
        "weight 0 is only logged."))


def sample_table(rows: Iterable[Mapping[str, Any]]) -> Html:
    """One completion of each of the last steps, with its reward per part. A click on a column's head sorts the table.

    `rows` are "reward" rows of the run log. In a notebook that is not trusted no script runs, so nothing is sorted.
    """
    rows = [row for row in rows if row.get("sample")][-SAMPLES:]
    weights = {name: part["weight"] for row in rows for name, part in row["parts"].items()}
    heads = ["step", *(f"{name} × {weight:g}{'' if weight else ', only logged'}" for name, weight in weights.items()),
             "total"]
    lines = [[row["at"], *(_cell(row["sample"]["parts"].get(name)) for name in weights), _cell(row["sample"]["total"]),
              block(row["sample"]["completion"])] for row in rows]
    page = table([*heads, "completion"], lines, "One completion per step. Click a head to sort by it.")
    return Html(page.replace("<th>", Markup('<th style="cursor:pointer" onclick="{}">').format(SORT), len(heads)))


@contextlib.contextmanager
def adapter_in(model: nnx.Module, adapter: Adapter) -> Iterator[None]:
    """Give the model another adapter within the block. Afterwards it has its own again, after an error too."""
    before = jax.tree.map(jnp.copy, lora_state(model))
    try:
        if adapter is None:
            nnx.update(model, jax.tree.map(lambda x: jnp.zeros_like(x, device=x.sharding), before))
        else:
            restore_lora(model, *(adapter if isinstance(adapter, tuple) else (adapter,)))
        yield
    finally:
        nnx.update(model, before)


@dataclass(frozen=True, repr=False)
class Answers:
    """The answers to a question by name: a table in a notebook, text in a terminal."""

    question: str
    answers: Mapping[str, str]

    def _repr_html_(self) -> str:
        return table([*self.answers], [[*map(block, self.answers.values())]], f"Asked: {self.question}")._repr_html_()

    def __repr__(self) -> str:
        named = {"Asked": self.question, **self.answers}
        return "\n\n".join(f"{name}:\n{visible(text)}" for name, text in named.items())


class Ask:
    """Shows the answers of one base model with several named adapters side by side: `Ask(...)("How many?")`.

    `generate` is the model's `rollout.generator`. Raises ValueError if a question is too long for it.
    """

    def __init__(self, model: nnx.Module, generate: Callable[[list[str]], list[str]],
                 adapters: Mapping[str, Adapter]) -> None:
        self._model, self._generate, self._adapters = model, generate, dict(adapters)

    def __call__(self, question: str) -> Answers:
        answers = {}
        for name, adapter in self._adapters.items():
            with adapter_in(self._model, adapter):
                (answers[name],) = self._generate([TAGS.prompt(neutralise(question))])
        return Answers(question, answers)

    def show(self, example: str) -> None:
        """Show the answers to `example`, and a box for other questions if a front end can show one."""
        display(self(example))
        kaggle = os.environ.get("KAGGLE_KERNEL_RUN_TYPE")  # "Batch" is a version that nobody looks at
        if kaggle == "Interactive" or not kaggle and any(name in os.environ for name in FRONT_ENDS):
            display(self.box(example))

    def box(self, example: str) -> widgets.VBox:
        """A text box, a button, and a place for the answers."""
        text = widgets.Textarea(value=example, layout=widgets.Layout(width="100%"))
        button, answers = widgets.Button(description="Ask"), widgets.HTML()

        def answer(_) -> None:
            button.disabled, answers.value = True, "thinking …"
            try:
                answers.value = self(text.value)._repr_html_()
            except ValueError as error:  # too long
                answers.value = escape(error)
            finally:
                button.disabled = False

        button.on_click(answer)
        return widgets.VBox([text, button, answers])
