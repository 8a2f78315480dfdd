"""The tokenizer: CLIP's own kind (byte-level BPE, words marked at their end), merges learned from the grammar's words.

Every word of the grammar becomes one token; any other word falls into pieces, so nothing is ever unknown.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from tools.tiny.captions import vocabulary
from tools.tiny.dataset import SPLITS, open_split

POSITIONS = 77
"""Tokens a prompt may have, start and end included: CLIP's number, which every tool of the field assumes."""
CAPTION_TOKENS = 40
"""No caption of the grammar is longer; stored captions are padded to this."""
_WORDS = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
"""How CLIP's tokenizer cuts text before BPE."""


def merges() -> list[tuple[str, str]]:
    """BPE merges that make one token of every word of the grammar, in the order they were learned."""
    model = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, end_of_word_suffix="</w>", initial_alphabet=alphabet, min_frequency=1, show_progress=False
    )
    model.train_from_iterator(vocabulary(), trainer)
    return [(first, second) for first, second in json.loads(model.to_str())["model"]["merges"]]


def build_tokenizer() -> CLIPTokenizer:
    """The tokenizer: 2 x 256 bytes, the merges, start and end of text; padded with the latter."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learned = merges()
    joined = dict.fromkeys(first + second for first, second in learned)
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet), *joined, "<|startoftext|>", "<|endoftext|>"]
    tokens = list(dict.fromkeys(tokens))
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=learned, model_max_length=POSITIONS)


def encode(tokenizer: CLIPTokenizer, texts: list[str], length: int = POSITIONS) -> np.ndarray:
    """Token ids, int64 `[n, length]`. Raises `ValueError` if a text needs more."""
    rows = tokenizer(texts, padding="max_length", max_length=length).input_ids
    longest = max(len(row) for row in rows)
    if longest > length:
        raise ValueError(f"a text has {longest} tokens, more than {length}")
    return np.array(rows, np.int64)


def save_tokenizer(work: Path) -> None:
    """Write `work/tokenizer` and the tokens of every caption, `work/pictures/<split>-tokens.npy` int16."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(work / "tokenizer")
    for split in SPLITS:
        captions = open_split(work, split).captions
        flat = encode(tokenizer, [text for row in captions for text in row], CAPTION_TOKENS)
        tokens = flat.reshape(len(captions), -1, CAPTION_TOKENS).astype(np.int16)
        np.save(work / "pictures" / f"{split}-tokens.npy", tokens)


def load_tokenizer(work: Path) -> CLIPTokenizer:
    """The tokenizer of a work folder."""
    return CLIPTokenizer.from_pretrained(work / "tokenizer")
