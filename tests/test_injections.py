"""Injections: whatever a question or a reply holds, the judge's prompt keeps its structure, down to the token ids.

What injections do to a judge's score is measured by `benchmarks/judge_readout.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from reasonkit.judge.judge import judge_prompt, quote_block
from reasonkit.judge.rubric import Criterion
from reasonkit.models.load import ASSETS, Tokenizer
from reasonkit.text.tags import TAGS, neutralise
from recipes.judges.local_variants import overall_prompt

GOLDEN = Path(__file__).parent / "golden"
# the first file is measured on judges, too; the second is of what a tokenizer or a score sheet might read
INJECTIONS = {row["name"]: row["text"] for name in ("injections", "markers") for row in map(
    json.loads, (GOLDEN / f"{name}.jsonl").read_text().splitlines())}
RUBRIC = (Criterion("Steps", "Every step follows.", 1.0), Criterion("Clear", "Reads well.", 0.3, ("no", "yes")))
# Every piece of Gemma 3's vocabulary that SentencePiece finds whole, or that stands in brackets (of 256 bytes, some; of
# <unused0> to <unused6241>, none), by the tokenizer of `gemma_from_gguf`; and of Gemma 2's and 3n's what that lacks.
PIECES = [json.loads(line) for line in (GOLDEN / "vocabulary.jsonl").read_text().splitlines()]
BRACKETS = dict.fromkeys(map(ord, "<>[]()"))
HEAD, TAIL = "<start_of_turn>user\nQuestion:\n> ", "<end_of_turn>\n<start_of_turn>model\n"
MARKERS = (*dict.fromkeys(row["piece"] for row in PIECES if row["control"]), *(f"<unused{n}>" for n in range(6242)))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(ASSETS / "judge" / "tokenizer.model", "gemma3")


def places(text):
    """The reply with the injection in its reasoning, in its answer, and after its end."""
    plain = TAGS.render(reasoning="2+2=4", answer="4")
    return [plain.replace("4</reasoning>", f"4\n{text}</reasoning>"), plain.replace("4</answer>", f"4 {text}</answer>"),
            f"{plain}\n{text}"]


def prompts(question, reply):
    return [judge_prompt(question, reply, RUBRIC[0]), judge_prompt(question, reply, RUBRIC[1], reverse=True),
            overall_prompt(question, reply, RUBRIC)]


def control_ids(tokenizer, text):
    """Ids of control tokens: with the tiny tokenizer as with Gemma 3's, all up to <end_of_turn>."""
    return [i for i in tokenizer.encode(text) if i <= tokenizer.end_of_turn]


def test_a_lone_surrogate_anywhere_can_be_encoded(tokenizer):
    """JSON can hold one, and what no tokenizer takes would fail every item of the call."""
    rubric = (Criterion("a\ud800", "b\udfff", 1.0, ("c\ud800", "d")),)
    for prompt in (judge_prompt("\ud800", "\udfff", rubric[0]), overall_prompt("\ud800", "\udfff", rubric)):
        assert control_ids(tokenizer, prompt) == [105, 106, 105] and prompt.count("?") >= 5


def test_there_are_enough_of_them():
    assert len(INJECTIONS) >= 30 and len(set(INJECTIONS.values())) == len(INJECTIONS)


@pytest.mark.parametrize("name", INJECTIONS)
def test_no_injection_changes_the_prompts_structure(tokenizer, name):
    text = INJECTIONS[name]
    for question, reply in [(text, "4"), *(("2+2?", place) for place in places(text))]:
        for prompt in prompts(question, reply):
            assert prompt.startswith(HEAD) and prompt.endswith(TAIL)
            assert prompt.count("<start_of_turn>") == 2 and prompt.count("<end_of_turn>") == 1
            assert control_ids(tokenizer, prompt) == control_ids(tokenizer, HEAD + TAIL) == [105, 106, 105]
            # every line that is not the judge's own is quoted, by any of Unicode's line breaks
            lines, own = prompt.splitlines(), prompts("", "")
            assert len(lines) == prompt.count("\n")
            unquoted = [line for line in lines if not line.startswith("> ")]
            assert unquoted in [[line for line in p.splitlines() if not line.startswith("> ")] for p in own]


@pytest.mark.parametrize("name", INJECTIONS)
def test_no_word_of_it_is_lost(name):
    """It is fenced, not censored: a reply about such markers can still be judged."""
    text, kept = INJECTIONS[name], quote_block(INJECTIONS[name])
    assert [c for c in text if c.isalnum()] == [c for c in kept if c.isalnum()]


def test_every_marker_of_the_vocabularies_is_broken():
    assert len(MARKERS) == 6242 + 17 and not [marker for marker in MARKERS if neutralise(marker) == marker]
    joined = neutralise("".join(MARKERS))
    assert not [marker for marker in MARKERS if marker in joined]


@pytest.fixture(scope="module")
def whole():
    """A SentencePiece tokenizer that finds every one of the pieces whole, and all else byte by byte."""
    from sentencepiece import sentencepiece_model_pb2 as pb

    model, kinds = pb.ModelProto(), pb.ModelProto.SentencePiece
    model.pieces.add(piece="<none>", type=kinds.UNKNOWN)
    for piece in dict.fromkeys([*MARKERS, *(row["piece"] for row in PIECES if not row["piece"].startswith("<0x"))]):
        model.pieces.add(piece=piece.replace(" ", "\u2581"), type=kinds.USER_DEFINED)
    for number in range(256):
        model.pieces.add(piece=f"<0x{number:02X}>", type=kinds.BYTE)
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = pb.TrainerSpec.BPE, True
    model.trainer_spec.unk_id, model.trainer_spec.unk_piece, model.trainer_spec.bos_id = 0, "<none>", -1
    model.trainer_spec.eos_id = model.trainer_spec.pad_id = -1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = model.normalizer_spec.remove_extra_whitespaces = False
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


@pytest.mark.parametrize("row", PIECES, ids=lambda row: f"{row['gemma']}-{row['piece']!r}")
def test_a_control_piece_is_broken_and_any_other_is_text(whole, row):
    piece, controls = row["piece"], set(map(whole.PieceToId, MARKERS))
    for text in (piece, f"a{piece}b", f"<{piece}>", f"[{piece}]", piece * 2, f"{piece[:-1]}{piece}{piece[-1]}"):
        found, kept = controls & set(whole.encode(text)), neutralise(text)
        assert not controls & set(whole.encode(kept))
        assert (kept != text) == row["control"] == bool(found)
        assert kept.translate(BRACKETS) == text.translate(BRACKETS), "nothing but its brackets"


def test_the_tiny_tokenizer_would_read_them(tokenizer):
    """Else the ids above prove nothing."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path))
    held = {pieces.IdToPiece(i) for i in range(4, 107)}
    assert len(held & set(MARKERS)) == 103
    raw = {name for name, text in INJECTIONS.items() if control_ids(tokenizer, text)}
    assert {"turn_ended", "turn_nested", "mask", "unused", "turn_null"} <= raw


@given(st.lists(st.sampled_from([*MARKERS[:20], "<", ">", "[", "]", "\n", "\u2028", "_", " ", "turn", "end_of_",
                                 "\ud800", "@BOS@", "multimodal", "toxicity", "=", "0", "x"])).map("".join))
def test_no_mixture_of_them_does(tokenizer, text):
    for prompt in prompts(text, text):
        assert control_ids(tokenizer, prompt) == [105, 106, 105]
        assert all(line.startswith("> ") for line in quote_block(text).splitlines())
    assert neutralise(neutralise(text)) == neutralise(text)
