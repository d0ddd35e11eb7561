"""Write CLIP's byte-pair vocabulary, reduced to the captions: `python -m tools.clip_small.vocabulary`.

The file has the format of open_clip's own, so its SimpleTokenizer reads it; other words are split into more
tokens.
"""

from __future__ import annotations

import gzip
import re
from itertools import pairwise

from csdn.model.clip import VOCABULARY
from csdn.runtime.files import atomic_write
from tools.clip_small.captions import PATTERN_SCALE, PHRASES

TEMPLATE_WORDS = "a photo of a x person ."
OTHER_WORDS = "an infrared visible image the man woman wearing carrying walking and in with"


def caption_words() -> list[str]:
    """The distinct words of captions, phrases and usual prompts."""
    texts = [phrase for phrases in PHRASES.values() for phrase in phrases]
    texts += [*PATTERN_SCALE, TEMPLATE_WORDS, OTHER_WORDS]
    return sorted(set(re.findall(r"[a-z]+|\.", " ".join(texts))))


def needed_merges(words: list[str]) -> list[tuple[str, str]]:
    """The merges that CLIP's tokenizer applies to `words`, in CLIP's order of rank."""
    from open_clip.tokenizer import SimpleTokenizer  # slow to import

    full = SimpleTokenizer()
    needed: set[tuple[str, str]] = set()
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while pairs := [pair for pair in pairwise(parts) if pair in full.bpe_ranks]:
            best = min(pairs, key=full.bpe_ranks.__getitem__)
            needed.add(best)
            parts = _merged(parts, best)
    return sorted(needed, key=full.bpe_ranks.__getitem__)


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def vocabulary_bytes() -> bytes:
    """The gzip file: a header that the tokenizer skips, then a merge on each line, without a final
    newline.
    """
    lines = ["#version: csdn-small", *(" ".join(merge) for merge in needed_merges(caption_words()))]
    return gzip.compress("\n".join(lines).encode(), mtime=0)


if __name__ == "__main__":
    with atomic_write(VOCABULARY) as temporary:
        temporary.write_bytes(vocabulary_bytes())
    print(f"{VOCABULARY}: {VOCABULARY.stat().st_size} bytes from open_clip's vocabulary")
