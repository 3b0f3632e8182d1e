"""Word problems after GSM-Symbolic, from reasoning-gym. The answer is a number. The worked solution comes as text, one
step a line, so that a slip changes nothing."""

from data_recipes.families._gym import item

KIND = "number"


def make(rng, slip):
    found = item("gsm_symbolic", rng)
    lines = (line.strip().replace(";", ",") for line in found["metadata"]["answer_cot"].splitlines())
    return found["question"].strip(), [line for line in lines if line and not line.startswith("####")], found["answer"]
