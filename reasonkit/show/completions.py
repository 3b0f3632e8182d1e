"""Single completions to look at: where SFT has a loss, what a reward pays, and what two adapters answer you.

Entry points: `loss_mask`, `reward_example`, `group_table`, `sample_table`, `Ask`, `compare_checkpoints`. The reward is
the one of training, without its log. The model's own adapter is put back after every use.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
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
from reasonkit.eval.evaluate import compare_paired, evaluate
from reasonkit.models.checkpoints import restore_lora
from reasonkit.models.lora import lora_state
from reasonkit.rewards.mix import RewardMix
from reasonkit.rewards.rules import RewardFn
from reasonkit.session.run_log import NullLog
from reasonkit.settings import GrpoSettings
from reasonkit.show.figures import COLOURS, block, escape, number
from reasonkit.show.report import Html, comparison_table, results_table, table
from reasonkit.text.tags import TAGS, neutralise
from reasonkit.train.policy_loss import loss_config

POOL = 64  # worked rows, of which one is shown
SAMPLES = 60  # rows of the table of samples: those of the last steps
# Sorts a table's rows by the numbers of the column that is clicked, the largest first, and by a second click last.
SORT = ("const n=this.cellIndex,body=this.closest('table').tBodies[0],value=row=>{const x=parseFloat(row.cells[n]"
        ".textContent);return isNaN(x)?-1e9:x};this.sign=-(this.sign||1);[...body.rows].sort((a,b)=>this.sign*"
        "(value(a)-value(b))).forEach(row=>body.append(row))")
# The front ends that can show a live widget set one of these in the kernel: Jupyter, VS Code, Colab.
FRONT_ENDS = ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG")

Parts = Sequence[tuple[RewardFn, float]]
Adapter = Path | tuple[Path, int] | None  # a folder, for its last step; a folder and a step; None: the base model


def _cell(value: object) -> str:
    return f"{number(value):.2f}" if np.isfinite(number(value)) else "no signal"


def loss_mask(rows: Iterable[Mapping[str, Any]], tokenizer, max_length: int) -> Html:
    """One of the first worked rows as SFT trains on it, token by token. The tokens with a loss are coloured."""
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


def reward_example(parts: Parts, row: Mapping[str, Any]) -> Html:
    """The reward of a worked solution and of its bare answer, one line per part. `row` is a problem with reasoning.

    A part that keeps state, such as one with a random stream, must not be one that is trained on.
    """
    texts = [TAGS.render(reasoning=row["reasoning"], answer=row["answer"]), row["answer"]]
    columns = {name: [row[name]] * 2 for name in GRPO_COLUMNS}
    prompts = [TAGS.prompt(row["question"])] * 2
    found: dict[str, list[float | None]] = {}

    def record(part: RewardFn) -> RewardFn:
        @wraps(part)
        def recorded(**given) -> list[float | None]:
            found[part.__name__] = part(**given)
            return found[part.__name__]
        return recorded

    total = RewardMix([(record(part), weight) for part, weight in parts], NullLog(),
                      max_no_signal=1.0)(prompts, texts, 2, **columns)
    lines = [[part.__name__, f"{weight:g}", *map(_cell, found[part.__name__])] for part, weight in parts]
    return table(["", "weight", "worked solution", "bare answer"],
                 [["completion", "", *map(block, texts)], *lines, ["total", "", *map(_cell, total)]],
                 f"Asked: {row['question']}", mark_last=True)


def group_table(group: Mapping[str, Any], settings: GrpoSettings) -> Html:
    """A group of completions as GRPO saw it, the best first: each part of the reward, the total, and the advantage.

    `group` is a "group" row of the run log, from `RewardMix.group`.
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
    """One completion of each of the last steps, with its reward per part, as a table that a click on a head sorts.

    `rows` are "reward" rows of the run log. Where a front end runs no script, as in a copy that is not trusted, the
    rows stay in the order of the steps.
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
    """The model with another adapter for a while. The one it has now is put back, whatever happens."""
    before = jax.tree.map(jnp.copy, lora_state(model))
    try:
        if adapter is None:
            nnx.update(model, jax.tree.map(lambda x: jnp.zeros_like(x, device=x.sharding), before))
        else:
            restore_lora(model, *(adapter if isinstance(adapter, tuple) else (adapter,)))
        yield
    finally:
        nnx.update(model, before)


class Ask:
    """Asks one base model with several adapters, given by name: `Ask(...)("How many?")` shows the answers side by side.

    `generate` is `rollout.generator` of the model. A question too long for it raises ValueError.
    """

    def __init__(self, model: nnx.Module, generate: Callable[[list[str]], list[str]],
                 adapters: Mapping[str, Adapter]) -> None:
        self._model, self._generate, self._adapters = model, generate, dict(adapters)

    def __call__(self, question: str) -> Html:
        answers = []
        for adapter in self._adapters.values():
            with adapter_in(self._model, adapter):
                answers += self._generate([TAGS.prompt(neutralise(question))])
        return table([*self._adapters], [[block(answer) for answer in answers]], f"Asked: {question}")

    def show(self, example: str) -> None:
        """The answers to `example`, and below them a box for other questions where a front end can show one."""
        display(self(example))
        if has_front_end():
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


def has_front_end() -> bool:
    """Whether someone looks on. Kaggle says so itself. Elsewhere the front end's own variables do."""
    kaggle = os.environ.get("KAGGLE_KERNEL_RUN_TYPE")
    return kaggle == "Interactive" if kaggle else any(name in os.environ for name in FRONT_ENDS)


def compare_checkpoints(model: nnx.Module, generate: Callable[[list[str]], list[str]], adapters: Mapping[str, Adapter],
                        problems: Dataset, batch_size: int) -> Html:
    """Two adapters, given by name, on the same problems: all measures, and the paired difference of the second to the
    first with its interval. Raises ValueError for another number than two."""
    if len(adapters) != 2:
        raise ValueError(f"{len(adapters)} adapters, {', '.join(adapters)}: give the two to compare")
    results = {}
    for name, adapter in adapters.items():
        with adapter_in(model, adapter):
            results[name] = evaluate(generate, problems, batch_size)
    first, second = results.values()
    changes = {f"{name}, {' to '.join(results)}": compare_paired(first, second, field)
               for name, field in (("accuracy", "correct"), ("step accuracy", "steps"))}
    return Html(results_table(results) + comparison_table(changes))
