"""A word is found at the boundaries of its script, and nowhere inside another word."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.core.occurrence import bare_word, word_span

LETTERS = {
    "Latin": "abcdeé",
    "Devanagari": "कखगघ",
    "Arabic": "بتثج",
    "Cyrillic": "абвг",
    "Hangul": "은행에서",
    "Greek": "αβγδ",
}
MARKS = {"Devanagari": "ािीु्ं", "Arabic": "\u064e\u0650\u0651", "Latin": "\u0301\u0308"}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("यह कला है", "कल"),
        ("हिन्दी", "हिन"),
        ("ক্ষমা", "ক"),
        ("தமிழ்", "தமிழ"),
        ("כָּל", "כ"),
        ("cafe\u0301 noir", "cafe"),
        ("می\u200cخواهم", "می"),
        ("می\u200cخواهم", "خواهم"),
        ("co\u00adoperate", "operate"),
        ("क्\u200dष", "क्"),
        ("\U0001f469\u200d\U0001f4bb", "\U0001f469"),
        ("\U0001f44d\U0001f3fd", "\U0001f44d"),
        ("party", "art"),
        ("snake_case", "case"),
        ("x1", "x"),
        ("은행에서", "은행"),
        ("ปี่", "ป"),  # Thai: a consonant is not parted from its vowel and tone
        ("กำ", "ก"),
        ("ខ្មែរ", "ខ"),  # Khmer: nor from the consonant below it
        ("ខ្មែរ", "មែរ"),
        ("ｶﾞｽ", "ｶ"),
        ("๑๒", "๑"),
    ],
)
def test_a_part_of_a_word_is_not_the_word(text, word):
    assert word in text
    with pytest.raises(ValueError, match=r"the word .* is not in"):
        word_span(text, word)
    with pytest.raises(ValueError, match=r"the word .* is not in"):
        word_span(text, word, fold=True)


@pytest.mark.parametrize(
    ("text", "word", "start"),
    [
        ("यह कल है, कला नहीं", "कल", 3),
        ("यह कला है", "कला", 3),
        ("the bank's", "bank", 4),
        ("the bank's", "'s", 8),
        ("don't", "don", 0),
        ("x-ray", "ray", 2),
        ("“bank”", "bank", 1),
        ("bank\u200b", "bank", 0),
        ("in C++.", "C++", 3),
        ("我在银行工作", "银行", 2),
        ("我的iPhone手机", "iPhone", 2),
        ("2024年", "2024", 0),
        ("東京タワー", "タワー", 2),
        ("ฉันไปธนาคาร", "ธนาคาร", 5),
        ("ຂ້ອຍໄປທະນາຄານ", "ທະນາຄານ", 6),
        ("ខ្ញុំទៅធនាគារ", "ធនាគារ", 7),
        ("ဘဏ်မှာ", "ဘဏ်", 0),
        ("銀行에서", "銀行", 0),
        ("New York!", "New York", 0),
        ("cafe\u0301 noir", "cafe\u0301", 0),
    ],
)
def test_a_word_is_found_in_its_script(text, word, start):
    assert word_span(text, word) == (start, start + len(word))


def test_places_are_counted():
    assert word_span("银行旁的银行", "银行#2") == (4, 6)
    with pytest.raises(ValueError, match="'哈哈' is there 2 times; write 哈哈#1 or 哈哈#2"):
        word_span("哈哈哈", "哈哈")
    with pytest.raises(ValueError, match="'银行#3', but '银行' is there 2 times"):
        word_span("银行旁的银行", "银行#3")
    assert word_span("कला कल कला", "कला#2") == (7, 10)
    assert bare_word("银行#2") == "银行" and bare_word("C#") == "C#"


def test_case_is_folded_where_it_is_asked_for():
    assert word_span("ÉCOLE, Straße", "école", fold=True) == (0, 5)
    with pytest.raises(ValueError, match="is not in"):
        word_span("École", "école")


def test_the_other_way_of_writing_accents_is_named():
    composed, parted = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    with pytest.raises(ValueError, match="it is there as NFD"):
        word_span(f"the {parted}", composed)
    with pytest.raises(ValueError, match="it is there as NFC"):
        word_span(f"the {composed}", parted)


@pytest.mark.parametrize("script", LETTERS)
@given(data=st.data())
def test_words_parted_by_spaces_are_found_as_if_split_there(script, data):
    """A second route: str.split, over random words with marks."""
    units = st.builds(
        lambda letter, marks: letter + marks,
        st.sampled_from(LETTERS[script]),
        st.text(MARKS.get(script, "\u200d"), max_size=2),
    )
    words = data.draw(st.lists(st.lists(units, min_size=1, max_size=3).map("".join), min_size=1))
    text = " ".join(words)
    word = data.draw(st.lists(units, min_size=1, max_size=2).map("".join))
    places = [i for i, one in enumerate(words) if one == word]
    if not places:
        with pytest.raises(ValueError, match="is not in"):
            word_span(text, word)
    for nth, i in enumerate(places, 1):
        start = len(" ".join(words[:i])) + bool(i)
        assert word_span(text, f"{word}#{nth}" if nth < 100 else word) == (start, start + len(word))
