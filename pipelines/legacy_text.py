"""Which of the encodings before Unicode a text is in."""

from __future__ import annotations

import re

# Of each: what letters look like, lead and second byte of the common ones. Cyrillic letters are single bytes.
_COMMON = {
    "cp932": rb"[\x82\x83\x88-\x97][\x40-\x7e\x80-\xfc]",  # kana, kanji of level 1
    "gb18030": rb"[\xb0-\xd7][\xa1-\xfe]",  # hanzi of level 1
    "euc-kr": rb"[\xb0-\xc8][\xa1-\xfe]",  # hangul
    "cp1251": rb"[\xc0-\xff\xa8\xb8]{2}",
}
MIN_COMMON = 0.7  # of the bytes beyond ASCII
MIN_RUNS = 0.5  # of these bytes stand in runs of three or more: accents of Western languages stand alone


def legacy_encoding(raw: bytes) -> str:
    """The likeliest encoding of text that is no UTF-8: Western (Windows-1252), unless letters beyond ASCII follow each
    other and most of them are common in an encoding of Japanese, Chinese, Korean or Russian.
    """
    if re.search(rb"\d\x94\x4e\d{1,2}\x8c\x8e", raw):  # year and month of a Japanese date
        return "cp932"
    high = len(re.findall(rb"[\x80-\x9f\xa1-\xff]", raw))  # a blank of fixed width is no letter
    runs = b" ".join(re.findall(rb"(?:[\x80-\x9f\xa1-\xff][\x40-\xff]?){2,}", raw))
    if not high or len(re.findall(rb"[\x80-\xff]", runs)) < MIN_RUNS * high:
        return "cp1252"
    shares = {}
    for encoding, common in _COMMON.items():
        try:
            raw.decode(encoding)
        except UnicodeDecodeError as error:
            if error.start < len(raw) - 4:  # other than a letter cut off by the end
                continue
        covered = b"".join(re.findall(common, runs))
        shares[encoding] = len(re.findall(rb"[\x80-\xff]", covered)) / high
    # Hangul lie within the range of hanzi: the narrower range is the surer sign.
    best = max(shares, key=lambda name: shares[name] + 0.05 * (name == "euc-kr"), default="cp1252")
    return best if shares.get(best, 0) >= MIN_COMMON else "cp1252"
