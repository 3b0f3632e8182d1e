"""The kind "smiles": molecules, compared by RDKit."""

from __future__ import annotations

import re

from reasonkit.text.answers import Kind, known
from reasonkit.text.cleaning import unfence
from recipes.graders.worker import decide


def _read_smiles(text: str) -> str | None:
    """The one word that raw text is, without quotes or a label: in SMILES a backslash is a bond."""
    text = _LABEL.sub("", unfence(text).strip()).strip("`\"' \n").rstrip(".")
    return text if re.fullmatch(r"[!-~]+", text) else None


_LABEL = re.compile(r"\A\W*+(?:the\s++)?+(?:smiles|answer)\s*+(?:is\b|[:=])\s*+", re.IGNORECASE)


def _same_smiles(found: str, expected: str) -> bool | None:
    return decide("smiles", found, expected)


KIND = Kind(_read_smiles, _same_smiles, known(_read_smiles, _same_smiles))
