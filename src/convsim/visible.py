"""Text from elsewhere, such as a layer's name, made fit to be shown."""

from __future__ import annotations

# Printable by Unicode's categories, and yet nothing to see: fillers, joiners, variation selectors.
_UNSEEN = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0}
_UNSEEN |= {*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}


def visible(text: str) -> str:
    r"""Escape, as Python does, what a terminal or a page would obey or not show at all.

    Escape sequences, line breaks, marks that turn or hide other text, and lone surrogates; all
    else stays as it is.

    Example:
        >>> print(visible("conv1\x1b[2K\n\u202e"))
        conv1\x1b[2K\n\u202e
    """
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable() and ord(character) not in _UNSEEN:
        return character
    return character.encode("unicode_escape").decode()
