"""The kind "quantity": a number with a unit, converted by pint."""

from __future__ import annotations

from reasonkit.text.answers import Kind, bare, known
from recipes.graders.quantities import read_quantity, same_quantity

_read = bare(read_quantity)
KIND = Kind(_read, same_quantity, known(_read, same_quantity))
