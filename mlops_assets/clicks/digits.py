"""Numbers and times from and to decimal text, for whole columns at once."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlops_assets.clicks.schema import SECONDS_PER_DAY

PADDING: Final = 24
"""How many bytes must surround the fields in a text: they are read in words of 8 bytes that may begin before them."""

_ZEROS: Final = np.uint64(0x3030303030303030)
_LAST: Final = np.array([0] + [2**64 - 2 ** (64 - 8 * n) for n in range(1, 9)], dtype=np.uint64)  # the last n bytes
_MONTH_START: Final = np.arange("1970-01", "10000-02", dtype="M8[M]").astype("M8[D]").astype(np.int64)

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("the CSV parser reads 8 bytes at a time and needs a little-endian machine")


def times(
    text: NDArray[np.uint8], begin: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Epoch seconds of the fields `YYYY-MM-DD hh:mm:ss` since 1970, and which of them are such."""
    valid = end - begin == 19
    begin = np.where(valid, begin, 0)
    head, tail = _words(text)[begin], _words(text)[begin + 3]
    one_day = bool((head == head[:1]).all() and (tail == tail[:1]).all())  # most batches; worth a third of the time
    day, day_valid = _days(text, begin[:1] if one_day else begin)
    clock, clock_valid = _digits(text, begin + 11, b"dd:dd:dd")
    hour, minute, second = clock // 1_000_000, clock // 1_000 % 100, clock % 100
    valid &= day_valid & clock_valid & (hour < 24) & (minute < 60) & (second < 60)
    return day * SECONDS_PER_DAY + (hour * 3_600 + minute * 60 + second).view(np.int64), valid


def _days(text: NDArray[np.uint8], begin: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Days since 1970 of the texts `YYYY-MM-DD `, and which of them are such."""
    date, date_valid = _digits(text, begin, b"dddd-dd-")
    tail, tail_valid = _digits(text, begin + 3, b"d-dd-dd ")
    year, month, day = date // 10_000, date % 1_000 // 10, (tail % 1_000 // 10).astype(np.int64)
    valid = date_valid & tail_valid & (year >= 1970) & (month >= 1) & (month <= 12)
    index = np.where(valid, (year - 1970) * 12 + month - 1, 0)
    first = _MONTH_START[index]
    return first + day - 1, valid & (day >= 1) & (day <= _MONTH_START[index + 1] - first)


def number(
    text: NDArray[np.uint8], begin: NDArray[np.int64], end: NDArray[np.int64], digits: int
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Values of decimal fields, and which of them are 1 to `digits` (at most 18) digits."""
    length = end - begin
    valid = (length >= 1) & (length <= digits)
    value = np.zeros(len(length), dtype=np.uint64)
    words = _words(text)
    for known in range(0, min(digits, int(length.max(initial=1))), 8):
        keep = _LAST[np.clip(length - known, 0, 8)]
        part, part_valid = _eight_digits(words[end - known - 8] & keep | _ZEROS & ~keep)
        value += part * np.uint64(10**known)
        valid &= part_valid
    return value, valid


def _digits(
    text: NDArray[np.uint8], begin: NDArray[np.int64], pattern: bytes
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """The number that 8 bytes spell, with 0 for each separator of the pattern, and which bytes follow the pattern."""
    mask = np.frombuffer(bytes(0 if c == ord("d") else 255 for c in pattern), dtype=np.uint64)[0]
    separators = np.frombuffer(pattern, dtype=np.uint64)[0] & mask
    word = _words(text)[begin]
    value, valid = _eight_digits(word & ~mask | _ZEROS & mask)
    return value, valid & (word & mask == separators)


def _words(text: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The 8 bytes that begin at each position, as one little-endian number."""
    return np.ndarray((len(text) - 7,), dtype=np.uint64, buffer=text, strides=(1,))


def _eight_digits(word: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """The numbers that 8 ASCII digits spell, and which words are 8 digits.

    SIMD within a register: neighbouring digits, then pairs, then quads are joined (D. Lemire, "Quickly parsing eight
    digits", 2018). A digit's high nibble is 3, and still is after adding 6.
    """
    high = np.uint64(0xF0F0F0F0F0F0F0F0)
    valid = (word & high | (word + np.uint64(0x0606060606060606) & high) >> np.uint64(4)) == 0x3333333333333333
    word = (word & np.uint64(0x0F0F0F0F0F0F0F0F)) * np.uint64(2_561) >> np.uint64(8)
    word = (word & np.uint64(0x00FF00FF00FF00FF)) * np.uint64(6_553_601) >> np.uint64(16)
    return (word & np.uint64(0x0000FFFF0000FFFF)) * np.uint64(42_949_672_960_001) >> np.uint64(32), valid


@cache
def _numbers() -> tuple[NDArray[np.bytes_], NDArray[np.bytes_]]:
    """The text of every number below 100,000: plain, and filled with zeros to five digits."""
    plain = np.arange(100_000).astype("S5")
    return plain, np.char.zfill(plain, 5)


@cache
def _clock() -> NDArray[np.bytes_]:
    """The text of every second of a day."""
    return np.array([f" {s // 3600:02}:{s // 60 % 60:02}:{s % 60:02}" for s in range(SECONDS_PER_DAY)], dtype="S9")


def text_of_numbers(values: NDArray[Any]) -> list[NDArray[np.bytes_]]:
    """Unsigned numbers of at most 32 bits in decimal: arrays of byte strings, whose concatenation is the text."""
    plain, filled = _numbers()
    if values.dtype.itemsize < 4:
        return [plain[values]]
    high, low = values // 100_000, values % 100_000
    return [np.where(high > 0, plain[high], b""), np.where(high > 0, filled[low], plain[low])]


def text_of_times(seconds: NDArray[np.int64]) -> list[NDArray[np.bytes_]]:
    """Epoch seconds as `YYYY-MM-DD hh:mm:ss`, in two parts; -1 is the empty text."""
    days, where = np.unique(seconds // SECONDS_PER_DAY, return_inverse=True)
    dates = np.datetime_as_string(days.astype("M8[D]")).astype("S10")
    dates[days < 0] = b""
    return [dates[where], np.where(seconds < 0, b"", _clock()[seconds % SECONDS_PER_DAY])]
