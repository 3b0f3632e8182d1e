"""The kind "set": a list without order or repetition."""

from __future__ import annotations

from reasonkit.text.answers import Kind
from reasonkit.text.cleaning import clean
from recipes.graders.list import read_set

KIND = Kind(lambda text: read_set(clean(text)))
