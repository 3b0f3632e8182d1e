"""The tables of sampled completions and of the judge's calibration hold the figures of their sources."""

from __future__ import annotations

import re

import pytest

from reasonkit.eval.evaluate import EvalResult
from reasonkit.show.uncertainty import at_k_table, calibration_table


def cells(page):
    return [[re.sub(r"<svg.*?</svg>|<[^>]*>", "", cell).strip() for cell in re.findall("<td>(.*?)</td>", row, re.S)]
            for row in re.findall("<tr>.*?</tr>", page, re.S)[1:]]


@pytest.mark.parametrize(("n", "ks"), [(1, ["1"]), (2, ["1", "2"]), (6, ["1", "2", "4", "6"])])
def test_the_table_has_the_powers_of_two_and_all(n, ks):
    results = [EvalResult([{"id": "a", "answer": "1", "correct": i == 0}]) for i in range(n)]
    rows = cells(at_k_table(results))
    assert [row[0] for row in rows] == ks
    assert rows[0][1].startswith(f"{100 / n:.1f}") and rows[-1][1].startswith("100.0")


def test_a_judge_that_knows_and_one_that_does_not():
    def row(score, right, **more):
        return {"sample": {"parts": {"rubric_if_tag_format": score, "exact_answer": right, "words": 0.5}}, **more}

    rows = [row(0.05, 0.0)] * 8 + [row(1.0, 1.0)] * 6 + [row(0.81, 0.0)] * 2 + [row(0.6, 1.0)]
    low, middle, high = cells(calibration_table([*rows, row(0.5, None), row(None, 1.0), {"at": 3}]))
    assert middle[:3] == ["0.6 to 0.8", "1", "0.60"]
    assert low[:3] == ["0.0 to 0.2", "8", "0.05"] and low[3].startswith("0.0")
    assert high[:3] == ["0.8 to 1.0", "8", "0.95"] and high[3].startswith("75.0")
    assert calibration_table([]) == ""
