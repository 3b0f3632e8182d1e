"""Three sums, which is the largest. The answer is a choice."""

KIND = "choice"


def make(rng, slip):
    options, totals, values, steps = [], [], [], []
    while len(options) < 3:
        a, b = rng.randint(5, 30), rng.randint(2, 12)
        sign = rng.choice("+-") if a > b else "+"
        total = a + b if sign == "+" else a - b
        if total in totals:
            continue
        letter = "ABC"[len(options)]
        options.append(f"({letter}) {a}{sign}{b}")
        totals.append(total)
        values.append(slip(total))
        steps.append(f"{letter}: {a}{sign}{b}={values[-1]}")
    best = values.index(max(values))
    steps.append(f"max {values[best]}")
    return f"Which is largest? {' '.join(options)}", steps, "ABC"[best]
