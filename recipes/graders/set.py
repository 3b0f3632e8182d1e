"""The kind "set": a list without order or repetition."""

from __future__ import annotations

from reasonkit.text.answers import Kind
from recipes.graders.list import read_set

KIND = Kind(read_set)
