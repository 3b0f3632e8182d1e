"""The four pictures of docs/grpo.md: `python benchmarks/grpo_pictures.py`.

A group of eight completions, scored by the kit's own rewards and normalised by its own advantage. The policy of the
third picture is a table with one logit per completion, so a step of gradient ascent can be drawn.
"""

from __future__ import annotations

import argparse

import numpy as np
from checkout import ROOT
from matplotlib.figure import Figure
from tunix.rl import function_registry

import reasonkit.train.policy_loss  # noqa: F401  it registers the advantage
from reasonkit.rewards.mix import RewardMix
from reasonkit.rewards.rules import exact_answer, gate, tag_format
from reasonkit.session.run_log import NullLog
from reasonkit.show.figures import COLOURS
from reasonkit.text.tags import TAGS

QUESTION = "A box holds 4 rows of 6 eggs. Three are broken. How many are whole?"
WORKED = TAGS.render(reasoning="4 x 6 = 24; 24 - 3 = 21", answer="21")
GROUP = (WORKED, TAGS.render(reasoning="4 x 6 = 24", answer="24"), WORKED.replace("4 x 6", "6 x 4"), "21",
         TAGS.render(reasoning="6 - 3 = 3", answer="3"), "<reasoning>24 eggs",
         TAGS.render(reasoning="24 - 3", answer="21"), TAGS.render(reasoning="4 + 6 = 10", answer="7"))
STEP = 4.0  # of gradient ascent on the logits: large, so that the picture shows it
D = np.linspace(-2.0, 2.0, 101)  # log pi_ref - log pi


def main() -> None:
    reward = RewardMix([(tag_format, 1.0), (gate(exact_answer, tag_format), 1.0)], NullLog())
    count = len(GROUP)
    rewards_N = np.array(reward([TAGS.prompt(QUESTION)] * count, list(GROUP), count, answer=["21"] * count,
                                kind=["number"] * count))
    advantages_N = np.array(function_registry.get_advantage_estimator("reasonkit_grpo")(
        rewards=rewards_N, num_generations=count))
    before_N = np.full(count, 1 / count)
    gradient_N = advantages_N / count - before_N * advantages_N.sum() / count  # of sum A log softmax / N
    after_N = before_N * np.exp(STEP * gradient_N)
    after_N /= after_N.sum()

    figure, number = Figure(figsize=(11, 6.4), layout="constrained"), np.arange(1, count + 1)
    (one, two), (three, four) = figure.subplots(2, 2)
    one.bar(number, rewards_N, color=COLOURS[2])
    one.axhline(rewards_N.mean(), color=COLOURS[0], linestyle="--", label=f"mean {rewards_N.mean():.2f}")
    one.set(title="1 · Eight completions of one question, scored", ylabel="reward")
    one.legend(frameon=False)
    two.bar(number, advantages_N, color=[COLOURS[2] if value > 0 else COLOURS[1] for value in advantages_N])
    two.set(title="2 · Advantage: better or worse than the group", ylabel="(reward - mean) / std")
    three.bar(number - 0.2, before_N, 0.4, color="#bbbbbb", label="before")
    three.bar(number + 0.2, after_N, 0.4, color=COLOURS[2], label="after one step")
    three.set(title="3 · The policy moves towards what did better", ylabel="probability")
    three.set_ylim(0, 0.24)
    three.legend(frameon=False, loc="upper center", ncols=2)
    four.plot(D, np.exp(D) - D - 1, color=COLOURS[2], label="k3, used here: smallest where both agree")
    four.plot(D, -D, color=COLOURS[1], linestyle="--", label="k1: no minimum, so it holds nothing back")
    four.set(title="4 · The leash: what it costs to leave the reference", ylabel="penalty of a token",
             xlabel="log-probability under the reference, less that under the policy")
    four.legend(frameon=False)
    for axes in (one, two, three):
        axes.set(xlabel="completion", xticks=number)
    for axes in (one, two, three, four):
        axes.axhline(0, color="#888888", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    path = ROOT / "docs" / "images" / "grpo.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"{path.relative_to(ROOT)}: rewards {rewards_N.tolist()}, advantages {advantages_N.round(2).tolist()}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    main()
