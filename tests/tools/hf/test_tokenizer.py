"""The tokenizer that an export holds, against SentencePiece; what transformers makes of it is in test_parity."""

from __future__ import annotations

import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as pb
from tiny_gemma import train_tokenizer
from tiny_run import short_tokenizer

from reasonkit.models.load import ASSETS, Tokenizer
from reasonkit.text.tags import TAGS, neutralise
from tools.hf.tokenizer import chat_template, write_tokenizer


@pytest.fixture(scope="module", params=["trained", "with spaces in its symbols"])
def both(request, tmp_path_factory):
    """SentencePiece and tokenizer.json."""
    folder = tmp_path_factory.mktemp("tokenizer")
    ours = (Tokenizer(ASSETS / "policy" / "tokenizer.model", "gemma3") if request.param == "trained"
            else short_tokenizer(folder))
    write_tokenizer(ours, folder)
    return ours, tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@given(st.text(st.one_of(st.sampled_from(list("ab 12+=\n\t<>/\u2581é数")), st.characters(exclude_categories=["Cs"]))),
       st.sampled_from(["", TAGS.prompt(""), TAGS.answer_start, "Show your work between ", "<end_of_turn>"]))
def test_any_text_is_read_as_sentencepiece_reads_it(both, text, start):
    ours, theirs = both
    ids = ours.encode(start + text)
    assert theirs.encode(start + text, add_special_tokens=False).ids == ids
    assert theirs.encode(start + text).ids == [ours.bos_id(), *ids]


def test_control_tokens_alone_are_special(both, tmp_path):
    ours, theirs = both
    special = {number for number in range(ours.vocab_size) if theirs.decode([number]) == ""}
    control = {number for number in range(ours.vocab_size) if neutralise(ours.piece(number)) != ours.piece(number)}
    assert special == control | {0, 1, 2, 3} and 106 in special
    reply = ours.encode(TAGS.render(reasoning="1 + 2", answer="3"))
    assert theirs.decode([*reply, 106]) == ours.decode(reply)


def test_a_tokenizer_of_another_kind_is_refused(tmp_path):
    file = train_tokenizer(tmp_path / "pieces")
    model = pb.ModelProto.FromString(file.read_bytes())
    model.normalizer_spec.remove_extra_whitespaces = True
    file.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="tokenizer.model reads .* and as a tokenizer.json it would be .*: only Gemma"):
        write_tokenizer(Tokenizer(file, "gemma3"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_template_is_made_of_our_prompt():
    head, tail = TAGS.template.split("{question}")
    for part in (head, tail.partition("<end_of_turn>")[0], "<start_of_turn>model\n"):
        assert json.dumps(part) in chat_template()
