"""Names of tensors, for people."""

from collections.abc import Sequence


def listed(names: Sequence[str]) -> str:
    """Return the first four names, and how many more there are."""
    if not names:
        return "nothing"
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
