"""Names of tensors, for people."""

from collections.abc import Sequence


def listed(names: Sequence[str]) -> str:
    """Return the first four names, and how many more there are."""
    if not names:
        return "nothing"
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def difference(missing: Sequence[str], unexpected: Sequence[str], wrong: Sequence[str] = ()) -> str:
    """Return what is missing, unexpected and wrong; of what there is none goes unsaid."""
    parts = [f"missing {listed(missing)}"] if missing else []
    if unexpected:
        parts.append(f"unexpected {listed(unexpected)}")
    if wrong:
        parts.append(listed(wrong))
    # Whoever only has too much need not look for what is missing.
    return "; ".join(parts) + ("" if missing or wrong else "; everything else is there")
