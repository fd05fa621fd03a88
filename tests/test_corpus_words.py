"""Counts of words and runs of characters, read from bytes, against regular expressions over strings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from distindex.config import TextConfig
from distindex.corpus.words import WordCounter

# Letters of all lengths in UTF-8, some longer in lower case; marks, digits that are none in ASCII, signs, ideographs.
ALPHABET = (
    "abAB_09 .,-'\n\t\u00e9\u00c9\u00df\u03a3\u03c3\u03c2\u0130\u0131\u0416\u023a\u2c65\u212a\u0301\u0663\u00b2\u216b"
    "\u2019\u2014\u6f22\U0001f389\U0001d538\U0001d7d9\U00010400\U00020001\U0003ffff"
)
TEXTS = st.lists(
    st.text(st.sampled_from(ALPHABET) | st.characters(exclude_categories=["Cs"]), max_size=40), max_size=12
)


def tokens_of(text: str, config: TextConfig) -> list[str]:
    words = re.findall(rf"\b[^\W\d]\w{{{config.minimum_length - 1},}}\b", text.lower())
    return [word for word in words if config.stop_words != "english" or word not in ENGLISH_STOP_WORDS]


def grams_of(text: str, config: TextConfig) -> list[str]:
    marked, length = [f" {word} " for word in tokens_of(text, config)], config.character_ngrams
    return [word[i : i + length] for word in marked for i in range(max(1, len(word) - length + 1))]


def expected(
    texts: list[str], terms: list[str], found: Callable[[str, TextConfig], list[str]], config: Any
) -> np.ndarray:
    rows = [Counter(found(text, config)) for text in texts]
    return np.array([[row[term] for term in terms] for row in rows], np.float32).reshape(len(texts), len(terms))


@settings(max_examples=200, deadline=None)
@given(
    TEXTS, st.integers(1, 3), st.integers(2, 5), st.booleans(), st.integers(0, 3), st.randoms(use_true_random=False)
)
def test_counts_are_those_of_the_words_of_any_text(
    texts: list[str], shortest: int, length: int, stop: bool, cut: int, random: Any
) -> None:
    config = TextConfig(minimum_length=shortest, character_ngrams=length, stop_words="english" if stop else "none")
    words = sorted({word for text in texts for word in tokens_of(text, config)} | {"unseen"})
    grams = sorted({gram for text in texts for gram in grams_of(text, config)})
    words, grams = ([term for term in terms if random.random() < 0.8] or ["other"] for terms in (words, grams))
    counter = WordCounter(words, grams, config)
    columns = [
        pa.array(texts, pa.string()),
        pa.array(["cut off", *texts], pa.large_string()).slice(1),
        pa.chunked_array([texts[:cut], texts[cut:]], pa.string()),
    ]
    for column in columns:
        word_NW, gram_NG = counter.count(column)
        np.testing.assert_array_equal(word_NW.toarray(), expected(texts, words, tokens_of, config))
        np.testing.assert_array_equal(gram_NG.toarray(), expected(texts, grams, grams_of, config))
        for matrix in (word_NW, gram_NG):
            assert matrix.dtype == np.float32
            assert matrix.has_canonical_format


def test_every_character_is_lower_case_and_part_of_a_word_as_python_has_it() -> None:
    characters = [chr(number) for number in range(0x22000) if not 0xD800 <= number < 0xE000]
    texts = [f"x{character}y {character}z" for character in characters]
    config = TextConfig(minimum_length=1)
    words = sorted({word for text in texts for word in tokens_of(text, config)})
    counter = WordCounter(words, [], config)
    found = counter.count(pa.array(texts))[0]
    place = {word: number for number, word in enumerate(words)}
    pairs = [(row, place[word]) for row, text in enumerate(texts) for word in tokens_of(text, config)]
    assert sorted(zip(*found.nonzero(), strict=True)) == sorted(set(pairs))


def test_tokens_and_terms_of_several_words_are_counted_too() -> None:
    config = TextConfig(ngrams=2)
    word_NW, gram_NG = WordCounter(["new", "new york"], [], config).count(pa.array(["New York is new", ""]))
    assert word_NW.toarray().tolist() == [[2, 1], [0, 0]]
    assert gram_NG.shape == (2, 0)
    tokens = pa.array([["New York", "new"], []], pa.list_(pa.string()))
    assert WordCounter(["New York"], [], config).count(tokens)[0].toarray().tolist() == [[1], [0]]


@pytest.mark.parametrize("bad", [b"caf\xe9", b"caf\xc3", b"\x80x", b"\xc3(", b"\xff"])
def test_bytes_that_are_no_text_are_refused_not_read_past(bad: bytes) -> None:
    column = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 2, 2 + len(bad)], np.int32)), pa.py_buffer(b"ok" + bad)]
    )
    with pytest.raises(UnicodeDecodeError):
        WordCounter(["ok"], [], TextConfig()).count(column)
