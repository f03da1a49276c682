r"""The plain spelling of an answer: what is done to the content of a box before math-verify reads
it.

Before `verifier`, which spells both sides so. Each rule is one that a careful reader would not
stop at: marks around the answer, signs of other keyboards, words around a number. Works on texts
alone.
"""

import re
import unicodedata

# Marks of mathematics around the whole answer.
_DELIMITERS = (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_SIGNS = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "⁄": "/",
    "∞": r"\infty ", "²": "^{2}", "³": "^{3}", "°": r"^{\circ}", "€": "", "£": "", "¥": "",
    "\u00a0": " ", "\u2009": r"\,", "\u202f": r"\,",
}  # fmt: skip
_ABOUT = re.compile(r"(?:\\approx|\\sim|≈|~)\s*")
_STOP_OR_QUESTION = re.compile(r"(?<![.?])[.?]$")
# 10\,080 and its like; a plain space may also stand between two numbers.
_THIN_SPACE = re.compile(r"(?<=\d)(?:\\[,;:! ]|~)(?=\d{3}(?!\d))")
_SPACED_THOUSANDS = re.compile(r"-?\d{1,3}(?: \d{3})+")
_MIXED_NUMBER = re.compile(r"(-?)(\d+)\s+(\d+)/(\d+)")
_OPEN_INTERVAL = re.compile(r"([\[\]])([^\[\]]*,[^\[\]]*)([\[\]])")

_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_SPACE = re.compile(r"(?:\\[,;:! ]|\\q?quad\b|~|\s)+")
_NUMBER = r"-?(?:\\?\$)?(?:\d[\d,]*(?:\.\d+)?|\.\d+|\d+/\d+|\\[dt]?frac\{\d+\}\{\d+\})(?:\\?%)?"
_UNIT = r"(?:cm|mm|km|m|ft|in|yd|mi|kg|mg|g|lb|oz|s|h|hr|min|ml|L|units?)"
_UNIT_OR_WORD = rf"(?:(?:{_UNIT}|[A-Za-z]{{3,}}(?:-[A-Za-z]+)*)(?:\s*\^\{{?\d\}}?)?(?![A-Za-z\d^]))"
_AROUND = rf"(?:{_UNIT_OR_WORD}|\b(?i:is|of|in|a|an|to|we|he|it|at|i)\b|[\s:,=().])*"
_NUMBER_IN_WORDS = re.compile(rf"({_AROUND})(?<![\d.,A-Za-z])({_NUMBER})(?=[\s(]|$)({_AROUND})")
# Words that say another number than the one beside them.
# fmt: off
_TELLING = frozenset([
    "not", "no", "never", "nor", "minus", "negative", "plus", "times", "over", "more", "less",
    "fewer", "than", "least", "most", "above", "below", "under", "between", "almost", "nearly",
    "half", "double", "twice", "triple", "dozen", "hundred", "thousand", "million", "billion",
    "trillion", "percent", "cent", "squared", "cubed", "factorial", "root", "mod", "modulo",
    "choose", "sqrt", "frac", "sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "lim",
    "max", "min", "gcd", "lcm", "pi", "infinity", "infinite", "base",
])
# fmt: on
_LABEL = r"\(?([A-J])\)?"
_CHOICE = re.compile(r"(?:\(([A-J])\)\s+|([A-J])\s*[:.)]\s*)(?![+*/^_=]|-\s)(\S.*)", re.DOTALL)


def plain(text: str) -> str:
    r"""The plain spelling of what stands in a box.

    In this order: delimiters of mathematics around it go; full-width digits, other minus signs,
    degrees, vulgar fractions and currencies become those of LaTeX; "about" before it and a full
    stop or question mark behind it go; thin spaces within thousands go; 3 1/2 is a mixed number
    and ]0, 1[ an open interval; of words around one number the number is left, unless they change
    it ("more than 42", "3 dozen"); words alone become one \text{}.
    """
    text = _without_delimiters("".join(map(_sign, text)).strip())
    text = _without_delimiters(_ABOUT.sub("", text, count=1) if _ABOUT.match(text) else text)
    text = _without_delimiters(_STOP_OR_QUESTION.sub("", text).strip())
    text = _THIN_SPACE.sub("", text)
    if _SPACED_THOUSANDS.fullmatch(text):
        return text.replace(" ", "")
    if mixed := _MIXED_NUMBER.fullmatch(text):
        return "{}{}\\frac{{{}}}{{{}}}".format(*mixed.groups())
    if interval := _OPEN_INTERVAL.fullmatch(text):
        left, ends, right = interval.groups()
        return {"]": "(", "[": "["}[left] + ends + {"[": ")", "]": "]"}[right]
    if (number := _number_in_words(text)) is not None:
        return number
    return f"\\text{{{words(text)}}}" if is_prose(text) else text


def words(text: str) -> str:
    r"""The text without its \text{} and the spaces of LaTeX."""
    return _SPACE.sub(" ", _TEXT.sub(r" \1 ", text)).strip()


def is_prose(text: str) -> bool:
    r"""Whether an answer is words, which math-verify would read as a product of letters: no digit
    or sign of mathematics, and a \text{} or a word of four letters. Single letters are labels."""
    spoken = words(text)
    if not re.fullmatch(r"[A-Za-z][A-Za-z\s.,;:'’-]*", spoken):
        return False
    found = set(re.findall(r"[A-Za-z]+", spoken)) - {"and", "or"}
    longest = max(map(len, found), default=0)
    return longest > 3 or (longest > 1 and bool(_TEXT.search(text)))


def label(text: str) -> str | None:
    """The letter of a choice, where the answer is a letter alone: C or (C)."""
    match = re.fullmatch(_LABEL, words(text))
    return match[1] if match else None


def labelled_choice(text: str) -> tuple[str, str] | None:
    """(letter, what it stands for) of a choice such as (E) 13 or "E: a score", else None."""
    match = _CHOICE.fullmatch(words(text))
    return (match[1] or match[2], match[3]) if match else None


def _sign(letter: str) -> str:
    if letter in _SIGNS:
        return _SIGNS[letter]
    if unicodedata.decomposition(letter).startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", letter).replace("⁄", "/")
    # Full-width forms, which have the code points from FF01 on.
    return unicodedata.normalize("NFKC", letter) if "\uff01" <= letter <= "\uff5e" else letter


def _without_delimiters(text: str) -> str:
    for opening, closing in _DELIMITERS:
        inner = text[len(opening) : -len(closing)]
        is_around = text.startswith(opening) and text.endswith(closing) and inner
        if is_around and opening not in inner and closing not in inner:
            return inner.strip()
    return text


def _number_in_words(text: str) -> str | None:
    """The one number in an answer with words around it; None where there are none, where there are
    two numbers, or where a word changes it."""
    match = _NUMBER_IN_WORDS.fullmatch(words(text))
    if match is None:
        return None
    before, number, after = match.groups()
    around = re.findall(r"[A-Za-z]+", before + " " + after)
    return None if not around or _TELLING & {word.lower() for word in around} else number
