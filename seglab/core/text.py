"""Text from untrusted files, made safe to print."""


def sanitize_text(text: str) -> str:
    """Returns text for one line of a message, without control characters and cut if long."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 300 else f"{text[:300]}..."


def printable(text: str) -> str:
    """Returns text with '?' for characters that are not printable, such as a terminal's codes."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
