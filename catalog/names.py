"""Selects names of models by shell-style patterns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cnnfilterdb.core.errors import UnknownModelError

__all__ = ["match", "near"]


def match(names: Sequence[str], patterns: str | Iterable[str]) -> list[str]:
    """The names that match at least one pattern, in the order of the names.

    Args:
        names: Names to choose from.
        patterns: Names, or shell-style patterns as in :mod:`fnmatch`; ``*`` matches slashes too, and
            case does not matter. A single string is one pattern.

    Raises:
        UnknownModelError: A pattern matches nothing; the message gives the nearest names.

    >>> match(["a/one", "a/two", "b/one"], ["*/one"])
    ['a/one', 'b/one']
    """
    from fnmatch import fnmatchcase

    def fits(name: str, pattern: str) -> bool:
        return fnmatchcase(name.lower(), pattern.lower())

    chosen: set[str] = set()
    known = set(names)
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        # A name is taken literally: it may contain a bracket, or differ from another one only in case.
        found = {pattern} if pattern in known else {name for name in names if fits(name, pattern)}
        if not found:
            nearest = ", ".join(near(pattern, names))
            hint = (
                f"nearest: {nearest}" if nearest else "no name is similar; `cnnfilterdb models --available` lists all"
            )
            raise UnknownModelError(f"no model matches {pattern!r}; {hint}")
        chosen |= found
    return [name for name in dict.fromkeys(names) if name in chosen]


def near(wanted: str, names: Iterable[str]) -> list[str]:
    """Up to three names that may have been meant, or groups of names when a whole group was requested."""
    from difflib import get_close_matches

    names = list(names)
    text = wanted.strip("*?").lower()
    alike = get_close_matches(text, names, 3) or [name for name in names if text and text in name.lower()][:3]
    groups = list(dict.fromkeys(name[:at] for name in names for at, letter in enumerate(name) if letter == "/"))
    group = text.rpartition("/")[0] or text
    near_groups = [f"{near}/*" for near in get_close_matches(group, groups, 3)]
    return near_groups or alike if wanted.endswith("*") else alike or near_groups
