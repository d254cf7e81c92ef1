"""Byte-level BPE with single digits and lone newlines, in Hugging Face's file layout.

A newline is always a token of its own, so a prompt that ends with a line break is, token by token, a prefix of every
text that goes on after it; single digits keep numbers copyable by small models.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS, PAD = 0, 1, 2
SPECIALS = ("<|bos|>", "<|eos|>", "<|pad|>")
CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] + '\\n' }}{% endfor %}"

# Words take the space, dot or underscore before them; a run of spaces leaves its last one to the word, as in GPT-2's
# splitter. A JSON key may become one token with the quotes and brackets around it (`","set":{"`): answers to commands
# then take 0.6 of the tokens, at the edge and in every cloud pass.
_PIECES = "|".join(
    (
        r"\n",
        r'["\]}\[{,]*"\p{L}+":["{\[]*',
        r'":(?:["{\[]+|\p{L}+)?',
        r"[ ._]?\p{L}+",
        r"_?\p{N}",
        r" ?[^\s\p{L}\p{N}]+",
        r"[^\S\n]+(?!\S)",
        r"\s",
    )
)


def train_tokenizer(texts: Iterable[str], vocab: int = 4096) -> Tokenizer:
    """Learn merges from `texts`; the result has at most `vocab` ids, specials first, then bytes, then merges.

    Raises ValueError when `vocab` can't hold the specials and the 256 bytes.
    """
    if vocab < len(SPECIALS) + 256:
        raise ValueError(f"a byte-level vocabulary needs at least {len(SPECIALS) + 256} ids, got {vocab}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_PIECES), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = SPECIALS[BOS]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, BOS)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, out: Path, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json into `out`, which must exist."""
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIALS[BOS],
        "eos_token": SPECIALS[EOS],
        "pad_token": SPECIALS[PAD],
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
