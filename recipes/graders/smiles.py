"""The kind "smiles": molecules, compared by RDKit's canonical SMILES."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from reasonkit.text.answers import Kind
from reasonkit.text.cleaning import unfence
from recipes.graders.worker import decide, gold_reader

_LABEL = re.compile(r"\A\W*+(?:the\s++)?+(?:smiles|answer)\s*+(?:is\b|[:=])\s*+", re.IGNORECASE)


def _read(text: str) -> str | None:
    """The only word of raw text, without quotes or a label. Not cleaned, because in SMILES a backslash is a bond."""
    text = _LABEL.sub("", unfence(text).strip()).strip("`\"' \n").rstrip(".")
    return text if re.fullmatch(r"[!-~]+", text) else None


def load() -> Callable[[str, str], bool]:
    """For the worker: a function that tells whether two SMILES are the same molecule."""
    from rdkit import Chem, RDLogger

    RDLogger.DisableLog("rdApp.*")

    def same(answer: str, gold: str) -> bool:
        molecules = [Chem.MolFromSmiles(smiles) for smiles in (answer, gold)]
        return None not in molecules and len(set(map(Chem.MolToSmiles, molecules))) == 1

    return same


_same = partial(decide, "smiles")
KIND = Kind(_read, _same, gold_reader(_read, _same))
