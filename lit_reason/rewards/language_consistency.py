"""`language_consistency`: does the completion stay in one writing system?"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from lit_reason.answer import TAGS
from lit_reason.reward import Reward
from lit_reason.types import Rollout, UserError

_LANGUAGES = {
    "ARABIC": "ar fa ur",
    "ARMENIAN": "hy",
    "BENGALI": "bn",
    "BOPOMOFO": "zh",
    "CJK": "ja ko zh",
    "CYRILLIC": "be bg kk ky mk mn ru uk",
    "DEVANAGARI": "hi mr ne",
    "ETHIOPIC": "am",
    "GEORGIAN": "ka",
    "GREEK": "el",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "HANGUL": "ko",
    "HEBREW": "he",
    "HIRAGANA": "ja",
    "KANNADA": "kn",
    "KATAKANA": "ja",
    "KHMER": "km",
    "LAO": "lo",
    "LATIN": "af ca cs cy da de en es et eu fi fr ga gl hr hu id is it lt lv ms nl no pl pt ro sk sl sq sv sw tl tr vi",
    "MALAYALAM": "ml",
    "MYANMAR": "my",
    "SINHALA": "si",
    "TAMIL": "ta",
    "TELUGU": "te",
    "THAI": "th",
}
"""The languages (ISO 639-1) that are written in each script."""

_MARKUP = re.compile("|".join([*map(re.escape, TAGS), r"\\[A-Za-z]++"]))
"""The format's tags and LaTeX commands: Latin letters in every language."""


class LanguageConsistency(Reward):
    """The share of a completion's letters that belong to the script of the prompt, or of a given language.

    1 for a completion without letters. Digits, signs, the format's tags and LaTeX commands are no letters; names of
    variables are. Scripts are told apart by the Unicode names of characters, and nothing else is known: a completion
    that slips from English into French keeps its 1, one that slips into Chinese does not. Han letters alone are taken
    for Chinese; with kana they are Japanese, with Hangul Korean. None for a prompt without letters, where no language
    is given. Source: the language consistency reward of DeepSeek-R1 (arXiv 2501.12948), which counts words of the
    target language in the thought.

    Args:
        language: the two-letter code of what completions should be written in, such as en, ru or zh. None takes the
            script that most letters of the prompt's last message have; give the language where instructions
            in English surround questions in another one.

    Raises:
        UserError: the language is unknown.
    """

    def __init__(self, *, language: str | None = None) -> None:
        self.scripts = None if language is None else _scripts_of(language)
        if self.scripts is not None and not self.scripts:
            known = ", ".join(sorted(set(" ".join(_LANGUAGES.values()).split())))
            raise UserError(f"reward 'language_consistency': language must be one of {known}, got '{language}'")

    def score(self, rollout: Rollout) -> float | None:
        wanted = self.scripts or _scripts_like(rollout.problem.prompt[-1]["content"])
        if not wanted:
            return None
        letters = _letters(rollout.text)
        inside = sum(count for script, count in letters.items() if script in wanted)
        return inside / letters.total() if letters else 1.0


def _scripts_of(language: str) -> frozenset[str]:
    return frozenset(script for script, languages in _LANGUAGES.items() if language in languages.split())


def _scripts_like(text: str) -> frozenset[str]:
    """The scripts that go with the one most letters of a text have; none for a text without letters."""
    letters = _letters(text)
    if not letters:
        return frozenset()
    most = max(letters, key=lambda script: letters[script])
    if _scripts_of("ja") | _scripts_of("ko") >= {most}:
        kana = letters["HIRAGANA"] + letters["KATAKANA"]
        return _scripts_of("ja" if kana > letters["HANGUL"] else "ko" if letters["HANGUL"] else "zh")
    return frozenset({most})


def _letters(text: str) -> Counter[str]:
    """How many letters of each script a text has."""
    letters: Counter[str] = Counter()
    for character, count in Counter(_MARKUP.sub(" ", text)).items():
        if character.isalpha() and (script := _script(character)):
            letters[script] += count
    return letters


def _script(character: str) -> str | None:
    """The script of a letter, None for a modifier that goes with any."""
    plain = unicodedata.normalize("NFKC", character)[-1]  # full-width and mathematical letters are those they depict
    first = re.split("[ -]", unicodedata.name(plain, "MODIFIER"), maxsplit=1)[0]
    return {"MODIFIER": None, "IDEOGRAPHIC": "CJK"}.get(first, first)
