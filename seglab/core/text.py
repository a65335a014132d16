"""Text from files of others, made safe to print."""

from __future__ import annotations


def sanitize_text(text: str) -> str:
    """A stranger's text as a part of one line, without what a terminal would obey."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 300 else f"{text[:300]}..."
