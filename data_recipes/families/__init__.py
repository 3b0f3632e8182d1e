"""Procedural problem families: one small file each.

A family is a module with `KIND` (an answer kind of `reasonkit.text.answers`) and

    make(rng: random.Random, slip: Callable[[int], int]) -> (question, steps, answer)

Every random draw of the question is independent of `slip`, which passes through the result of each step: the identity
gives the worked solution, anything else gives the same question with a consistent but flawed reply.
"""
