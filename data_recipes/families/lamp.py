"""A lamp that people switch or leave. The answer is a word, and half the guesses are right."""

KIND = "text"
NAMES = ("Ann", "Ben", "Eva", "Kim", "Leo", "Mia", "Sam", "Tom")


def make(rng, slip):
    start = state = rng.randint(0, 1)
    story, steps = [], []
    for name in rng.sample(NAMES, rng.randint(3, 5)):
        flips = rng.random() < 0.6
        story.append(f"{name} {'flips' if flips else 'leaves'} it")
        state = slip(state ^ flips) % 2
        steps.append(f"{name}: {'on' if state else 'off'}")
    return (f"The lamp is {'on' if start else 'off'}. {', '.join(story)}. Is the lamp on or off?",
            steps, "on" if state else "off")
