"""How a count is said."""


def counted(count: int, noun: str) -> str:
    """`1 image`, `2 images`; the noun stands in the singular, and its last word takes the s."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
