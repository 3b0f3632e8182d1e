"""Converts a Gemma's SentencePiece model to the files of Hugging Face's tokenizers, with our prompt as chat template.

Entry point: `write_tokenizer`. transformers can convert tokenizer.model itself, but some versions leave out <bos> if
there is no tokenizer_config.json, or read the turn markers as plain text, which stays in decoded text. BPE merges are
ranked by the score of the merged piece, as in SentencePiece.
"""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from sentencepiece import sentencepiece_model_pb2 as pb  # needs protobuf, which tunix's perfetto brings
from tokenizers import decoders, models, normalizers, processors

from reasonkit.models.load import Tokenizer
from reasonkit.session.files import write_atomic
from reasonkit.text.tags import TAGS, neutralise

_SPACE = "\u2581"  # SentencePiece's
# tokenizer.json is kept only if it reads these as tokenizer.model does.
PROBES = (TAGS.prompt("What is 12 + 7,\nand why?"), TAGS.render(reasoning="12 + 7 = 19", answer="19"),
          " two  spaces,\tthen a tab\n\n\nand lines ", "3.14159 − x² ≤ 10⁶; naïve café, 数学 \U0001f600")


def chat_template() -> str:
    """Jinja that renders a user's question as <bos> and `TAGS.prompt(question)`, byte for byte.

    The request for the tags is added to each user turn that does not end with it. A system turn goes before the first
    user turn, as in Gemma's own template. Contents may be a text, or a list of parts whose texts are read.
    """
    head, tail = TAGS.template.split("{question}")
    request, _, opened = tail.partition("<end_of_turn>\n")
    user, model, ask = (json.dumps(text, ensure_ascii=False) for text in (head, opened, request))
    return (
        "{{ bos_token }}{% set ns = namespace(system='') %}"
        "{% for message in messages %}"
        "{% if message['content'] is string %}{% set text = message['content'] %}"
        "{% else %}{% set text = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text')"
        " | join('') %}{% endif %}"
        "{% if message['role'] == 'system' %}{% set ns.system = text + '\\n\\n' %}"
        f"{{% elif message['role'] == 'user' %}}{{{{ {user} + ns.system + text }}}}"
        f"{{% if not text.endswith({ask}) %}}{{{{ {ask} }}}}{{% endif %}}"
        "{{ '<end_of_turn>\\n' }}{% set ns.system = '' %}"
        f"{{% else %}}{{{{ {model} + text + '<end_of_turn>\\n' }}}}{{% endif %}}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {model} }}}}{{% endif %}}")


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json. Control tokens are special, so that decoding can leave them out.

    Raises ValueError if tokenizer.json does not read one of PROBES as tokenizer.model does.
    """
    proto = pb.ModelProto.FromString(tokenizer.path.read_bytes())
    made = _fast(proto)
    for probe in PROBES:
        ours, theirs = tokenizer.encode(probe), made.encode(probe, add_special_tokens=False).ids
        if ours != theirs:
            raise ValueError(f"{tokenizer.path} reads {probe!r} as {ours}, and as a tokenizer.json it would be "
                             f"{theirs}: only Gemma's kind can be exported, BPE without normalisation")
    names = {"bos": tokenizer.bos_id(), "eos": tokenizer.eos_id(), "pad": tokenizer.pad_id(),
             "unk": proto.trainer_spec.unk_id}
    settings = {
        "tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "add_eos_token": False,
        "clean_up_tokenization_spaces": False, **{f"{name}_token": tokenizer.piece(at) for name, at in names.items()},
        "additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"], "chat_template": chat_template(),
        # In transformers 5 these replace tokenizer.json's.
        "added_tokens_decoder": {token.pop("id"): token for token in json.loads(made.to_str())["added_tokens"]}}
    write_atomic(folder / "tokenizer.json", made.to_str() + "\n")
    write_atomic(folder / "tokenizer_config.json", json.dumps(settings, ensure_ascii=False, indent=2) + "\n")


def _fast(proto: pb.ModelProto) -> tokenizers.Tokenizer:
    """The tokenizer of a SentencePiece BPE without normalisation."""
    kinds, spec = pb.ModelProto.SentencePiece, proto.trainer_spec
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == kinds.NORMAL}
    merges = [(-score, len(piece) - at, piece[:at], piece[at:]) for piece, score in scores.items()
              for at in range(1, len(piece)) if piece[:at] in scores and piece[at:] in scores]
    made = tokenizers.Tokenizer(models.BPE(
        {piece.piece: number for number, piece in enumerate(proto.pieces)}, [pair[2:] for pair in sorted(merges)],
        unk_token=proto.pieces[spec.unk_id].piece, fuse_unk=True, byte_fallback=True))
    bos = proto.pieces[spec.bos_id].piece
    made.normalizer = normalizers.Replace(" ", _SPACE)
    made.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B:1", special_tokens=[(bos, spec.bos_id)])
    made.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    added = []
    for piece in proto.pieces:
        special = piece.type in (kinds.CONTROL, kinds.UNKNOWN) or neutralise(piece.piece) != piece.piece
        if special or piece.type == kinds.USER_DEFINED:
            # Normalised ones are found after spaces have become "▁", as in SentencePiece.
            added.append(tokenizers.AddedToken(piece.piece, normalized=not special, special=special))
    made.add_tokens(added)
    return made
