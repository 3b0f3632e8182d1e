"""The greatest common divisor of two numbers, from reasoning-gym, by Euclid's algorithm. The answer is a number."""

from data_recipes.families._gym import item

KIND = "number"


def make(rng, slip):
    found = item("gcd", rng)
    a, b = found["metadata"]["numbers"]
    steps = []
    while b:
        steps.append(f"{a} mod {b} = {slip(a % b)}")
        a, b = b, a % b
    return found["question"], steps, str(slip(a))
