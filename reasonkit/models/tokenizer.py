"""A Gemma's SentencePiece tokenizer as Tunix wants it, with the tokens that stop a reply.

Departs from Tunix's own, which sets options that sentencepiece 0.2.3 rejects.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sentencepiece

from reasonkit.models.hf_files import again, file_size

END_OF_TURN = {"gemma2": 107, "gemma3": 106}
MOST_BYTES = 100_000_000  # Gemma's have 5


class Tokenizer:
    """A SentencePiece model as Tunix wants it: no BOS added, decoding that never raises.

    Tunix's sampler adds BOS itself.
    `end_of_turn` is the id of <end_of_turn>; `stop_ids` is (end of sequence, end of turn).

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown family, no SentencePiece model, or one without a Gemma's tokens: <end_of_turn> must be
            the one that the family has for it.
    """

    def __init__(self, path: str | Path, family: str):
        if family not in END_OF_TURN:
            raise ValueError(f"family {family!r} is unknown: choose from {', '.join(END_OF_TURN)}")
        self.path, self.family = Path(path), family
        file_size(self.path, MOST_BYTES)
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{path} is no SentencePiece model ({str(error)[:120]}): {again(self.path)}") from error
        self.vocab_size = self._pieces.GetPieceSize()
        for name, number in (("padding", self.pad_id()), ("end of sequence", self.eos_id()), ("start", self.bos_id())):
            if number < 0:
                raise ValueError(f"{path} has no token for the {name}: it is no Gemma's, {again(self.path)}")
        ids, self.end_of_turn = self.encode("<end_of_turn>"), END_OF_TURN[family]
        if ids != [self.end_of_turn]:
            raise ValueError(
                f"{path} reads <end_of_turn> as {ids}, but {family} has it at {self.end_of_turn}: "
                "the tokenizer belongs to another model, take the one beside the weights"
            )
        self.stop_ids = (self.eos_id(), self.end_of_turn)

    def encode(self, text: str, **_: Any) -> list[int]:
        """Ids of `text` without BOS. Turn markers become control tokens: see tags.neutralise."""
        return self._pieces.EncodeAsIds(text)

    def decode(self, ids: Any, **_: Any) -> str:
        """Text of the ids, skipping those past the vocabulary: embeddings may have more rows."""
        return self._pieces.DecodeIds([int(i) for i in ids if 0 <= int(i) < self.vocab_size])

    def piece(self, number: int) -> str:
        """What the SentencePiece model calls the token."""
        return self._pieces.IdToPiece(number)

    def bos_id(self) -> int:
        return self._pieces.bos_id()

    def eos_id(self) -> int:
        return self._pieces.eos_id()

    def pad_id(self) -> int:
        return self._pieces.pad_id()
