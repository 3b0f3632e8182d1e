"""A running total told as a story. The answer is a number."""

KIND = "number"
NAMES = ("Ann", "Ben", "Eva", "Kim", "Leo", "Mia", "Sam", "Tom")
THINGS = ("coins", "cards", "pens", "shells")
VERBS = {"+": ("finds", "buys"), "-": ("loses", "sells")}


def make(rng, slip):
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    start = total = value = rng.randint(3, 30)
    story, steps = [], []
    for _ in range(rng.randint(2, 4)):
        n = rng.randint(2, 12)
        sign = "-" if total >= n and rng.random() < 0.5 else "+"
        story.append(f"{rng.choice(VERBS[sign])} {n}")
        change = n if sign == "+" else -n
        result = slip(value + change)
        steps.append(f"{value}{sign}{n}={result}")
        total, value = total + change, result
    return f"{name} has {start} {things}, {', '.join(story)}. How many {things} now?", steps, str(value)
