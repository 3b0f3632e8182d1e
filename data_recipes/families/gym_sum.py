"""Long sums and differences, from reasoning-gym, one operation a step. The answer is a number."""

from data_recipes.families._gym import item

KIND = "number"


def make(rng, slip):
    found = item("chain_sum", rng)
    first, *rest = found["metadata"]["expression"].split()
    value, steps = int(first), []
    for sign, n in zip(rest[::2], rest[1::2], strict=True):
        result = slip(value + int(n) if sign == "+" else value - int(n))
        steps.append(f"{value} {sign} {n} = {result}")
        value = result
    return found["question"], steps, str(value)
