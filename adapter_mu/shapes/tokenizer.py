"""A CLIP tokenizer over the world's own words: byte-level, so any text still encodes."""

from __future__ import annotations

from collections import Counter

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from adapter_mu.shapes.vocabulary import WORDS

MAX_TOKENS = 20
START, END = "<|startoftext|>", "<|endoftext|>"


def _merge(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """`parts` with every occurrence of `pair` joined, left to right."""
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return tuple(joined)


def byte_pair_merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Byte-pair encoding trained until every word is one token (most frequent pair first, ties by spelling)."""
    split = [(*word[:-1], word[-1] + "</w>") for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for parts in split for pair in zip(parts, parts[1:], strict=False)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = [_merge(parts, best) for parts in split]
    return merges


def build_tokenizer() -> CLIPTokenizer:
    """OpenAI CLIP's layout (bytes, bytes at word end, merges, start, end); the end token pads."""
    letters = sorted(ByteLevel.alphabet())
    merges = byte_pair_merges(WORDS)
    joined = dict.fromkeys(left + right for left, right in merges)
    tokens = [*letters, *(letter + "</w>" for letter in letters), *joined, START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS, pad_token=END)
