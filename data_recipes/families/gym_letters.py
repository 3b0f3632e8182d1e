"""How often a letter appears in a text, from reasoning-gym, word by word. The answer is a number."""

from data_recipes.families._gym import item

KIND = "number"


def make(rng, slip):
    found = item("letter_counting", rng)
    total, steps = 0, []
    for word in found["metadata"]["span"]:
        if count := word.lower().count(found["metadata"]["target_letter"]):
            total = slip(total + count)
            steps.append(f"{word}: {count}, so far {total}")
    return found["question"], steps, str(total)
