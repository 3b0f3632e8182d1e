"""Kinds of answer that only some data has. `answers.check` looks a kind up here by its name."""
