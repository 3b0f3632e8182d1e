"""Does a chain of sums end above a bound. The answer is yes or no, so half the guesses are right."""

KIND = "yes_no"


def make(rng, slip):
    start = total = value = rng.randint(5, 30)
    chain, steps = str(start), []
    for _ in range(rng.randint(2, 3)):
        n = rng.randint(2, 12)
        sign = "-" if total >= n and rng.random() < 0.5 else "+"
        chain += f"{sign}{n}"
        change = n if sign == "+" else -n
        result = slip(value + change)
        steps.append(f"{value}{sign}{n}={result}")
        total, value = total + change, result
    bound = max(0, total + rng.choice((-1, 1)) * rng.randint(1, 5))
    if bound == total:  # only when the total is 0 and the bound was cut
        bound = total + 1
    above = value > bound
    steps.append(f"{value} above {bound}: {'yes' if above else 'no'}")
    return f"Is {chain} above {bound}?", steps, "yes" if above else "no"
