"""Text as a statement's PDF can show it: western letters, East Asian ones, and of all others the nearest.

No font is embedded, so a document stays small and its bytes the same everywhere: the western fonts are those that every
reader of PDF has, the East Asian ones those that PDF names for this and that readers bring or replace. The JSON has
every text exactly.
"""

import re
import unicodedata
from functools import cache
from itertools import groupby
from xml.sax.saxutils import escape

from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfbase.pdfmetrics import registerFont, stringWidth
from reportlab.pdfgen.canvas import Canvas

SMALLEST_HEADLINE = 8
KOREAN, JAPANESE, CHINESE = "HYGothic-Medium", "HeiseiKakuGo-W5", "STSong-Light"
_PLAIN = str.maketrans({"Ł": "L", "ł": "l", "Đ": "D", "đ": "d", "ı": "i", "ħ": "h", "Ħ": "H", "\u2212": "-"})
_HANGUL = re.compile("[\uac00-\ud7a3]")
_KANA = re.compile("[\u3040-\u30ff]")
_EAST_ASIAN = re.compile("[\u3001-\u301f\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3\uff01-\uff5e]")


def printable(text: str) -> str:
    """Return text in letters that a reader of PDF can show: where it must, the nearest."""
    return "".join(letter if _is_shown(letter) else _nearest(letter) for letter in text)


def marked(text: str) -> str:
    """Return text as a paragraph's markup."""
    pieces = (
        (f'<font name="{own}">{escape(piece)}</font>' if own else escape(piece)) for own, piece in _runs(text)
    )
    return "".join(pieces)


def draw(canvas: Canvas, x: float, y: float, text: str, font: str, size: int) -> None:
    """Draw a line of text from x on."""
    for own, piece in _runs(text):
        canvas.setFont(own or font, size)
        canvas.drawString(x, y, piece)
        x += stringWidth(piece, own or font, size)


def width_of(text: str, font: str, size: int) -> float:
    return float(sum(stringWidth(piece, own or font, size) for own, piece in _runs(text)))


def fitted(text: str, font: str, size: int, width: float) -> tuple[str, int]:
    """Return text and a size in which it fits a width: smaller where it is long, and cut where it is longer still."""
    while size > SMALLEST_HEADLINE and width_of(text, font, size) > width:
        size -= 1
    if width_of(text, font, size) > width:
        while width_of(text + "…", font, size) > width:
            text = text[:-1]
        text += "…"
    return text, size


def _runs(text: str) -> list[tuple[str | None, str]]:
    """Return printable text in pieces, each with its East Asian font, or None for one that western fonts have."""
    text = printable(text)
    east_asian = JAPANESE if _KANA.search(text) else CHINESE

    def font_of(letter: str) -> str | None:
        if _is_western(letter):
            return None
        return _registered(KOREAN if _HANGUL.match(letter) else east_asian)

    return [(own, "".join(letters)) for own, letters in groupby(text, font_of)]


@cache
def _registered(font: str) -> str:
    registerFont(UnicodeCIDFont(font))
    return font


def _is_shown(letter: str) -> bool:
    return _is_western(letter) or _EAST_ASIAN.match(letter) is not None


def _is_western(letter: str) -> bool:
    try:
        letter.encode("cp1252")
    except UnicodeEncodeError:
        return False
    return letter.isprintable()


def _nearest(letter: str) -> str:
    plain = unicodedata.normalize("NFKD", letter.translate(_PLAIN))
    kept = "".join(part for part in plain if _is_western(part) and not unicodedata.combining(part))
    return kept or "?"
