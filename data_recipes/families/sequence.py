"""A start and numbers to add one after the other. The answer is the list of results."""

KIND = "list"


def make(rng, slip):
    start = value = rng.randint(1, 30)
    steps, terms, numbers = [], [], [rng.randint(2, 12) for _ in range(rng.randint(2, 4))]
    for n in numbers:
        result = slip(value + n)
        steps.append(f"{value}+{n}={result}")
        terms.append(str(result))
        value = result
    listed = ", then ".join(map(str, numbers))
    return f"Start at {start}. Add {listed}. List the results.", steps, ", ".join(terms)
