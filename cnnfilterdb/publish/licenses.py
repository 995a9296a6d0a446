"""Which models may be published, decided from their licences and the catalog's entries for them.

A licence is an SPDX expression: identifiers joined by ``AND`` (all apply), ``OR`` (one may be chosen) and ``WITH`` (an
exception, which grants more than the licence). Identifiers of the Hugging Face Hub and full names of licences are
accepted too. Models whose licence cannot be decided are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from cnnfilterdb import catalog
from cnnfilterdb.catalog.entries import CONDITIONS, FORBIDDING, License

__all__ = ["UNKNOWN", "Verdict", "card_licenses", "decide", "known", "terms"]

#: Represents models whose licence is not stated.
UNKNOWN = "LicenseRef-Unknown"

_TOKEN = re.compile(r"[()]|[^\s()]+")
_JOINTS = frozenset({"AND", "OR", "WITH"})
#: Longer expressions are treated as plain text.
_MOST_TOKENS = 100
#: Characters of a name in a message: it may be the whole text of a licence.
_LONGEST = 60


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether models under a licence are published.

    Attributes:
        allowed: Whether they are.
        reason: Why, as one sentence without the full stop.
        conditions: Conditions of redistribution, in the order of
            :data:`cnnfilterdb.catalog.entries.CONDITIONS`.
        licenses: The licences that apply: of alternatives the one with the fewest conditions.
        named: Whether they are published only because a licence was named as an exception.
    """

    allowed: bool
    reason: str
    conditions: tuple[str, ...] = ()
    licenses: tuple[str, ...] = ()
    named: bool = False


def decide(license: str | None, include: Collection[str] = ()) -> Verdict:
    """Decide about a licence.

    Args:
        license: SPDX expression, or any other statement; None if there is none.
        include: Licences to accept regardless of their terms: identifiers, or the complete statement, in upper or lower
            case. ``unknown`` means models whose licence is not stated.

    >>> decide("MIT")
    Verdict(allowed=True, reason='MIT permits it', conditions=('attribution',), licenses=('MIT',), named=False)
    >>> decide("MIT AND CC-BY-ND-4.0").allowed, decide("MIT OR CC-BY-ND-4.0").allowed
    (False, True)
    >>> decide("My own 1.0").reason
    "the catalog does not know the licence 'My own 1.0'"
    >>> decide(None, include=["unknown"]).allowed
    True
    """
    stated = " ".join((license or "").split())
    let_in = frozenset(_key(name) for name in include)
    whole = _one(stated, let_in)
    if known(stated) or not stated:
        return whole
    if whole.named:
        let_in |= {_key(token) for token in _TOKEN.findall(stated)}
    return _parsed(stated, let_in) or whole


def terms(license: str | None) -> Verdict:
    """The terms of a published model: as :func:`decide`, and ``named`` if that would have left it out.

    >>> terms("LicenseRef-House AND CC-BY-SA-4.0").conditions
    ('attribution', 'share-alike')
    """
    verdict = decide(license)
    return verdict if verdict.allowed else decide(license, [license or UNKNOWN])


def card_licenses(licenses: Iterable[str | None], page: str = "MODELS.md") -> dict[str, Any]:
    """The licence entries of the metadata of a dataset card.

    Args:
        licenses: Licences of the models; repetitions are fine.
        page: Page that lists all of them, for licences without an identifier of the Hub.

    Returns:
        ``license``, an identifier of the Hub, or a list where there are several; with ``other`` among them also
        ``license_name`` and ``license_link``.

    >>> card_licenses(["MIT", "CC-BY-SA-4.0", "MIT"])
    {'license': ['cc-by-sa-4.0', 'mit']}
    >>> card_licenses(["LicenseRef-House"], "https://example.org")
    {'license': 'other', 'license_name': 'house', 'license_link': 'https://example.org'}
    """
    entries = {name: known(name) for stated in set(licenses) for name in terms(stated).licenses}
    hub = sorted({(entry.hub if entry else None) or "other" for entry in entries.values()} or {"unknown"})
    metadata: dict[str, Any] = {"license": hub[0] if len(hub) == 1 else hub}
    others = sorted(name for name, entry in entries.items() if not (entry and entry.hub))
    if len(others) == 1:
        entry = entries[others[0]]
        # The Hub wants a short name in lower case.
        slug = re.sub(r"[^a-z0-9.]+", "-", _key(others[0])).strip("-.")
        metadata |= {"license_name": slug or "other", "license_link": (entry.url if entry else None) or page}
    elif others:
        metadata |= {"license_name": "several", "license_link": page}
    return metadata


def known(name: str) -> License | None:
    """What the catalog knows of a licence, by its identifier, that of the Hub, or its name in full.

    ``GPL-2.0+`` is treated as ``GPL-2.0``: it permits nothing that ``GPL-2.0`` does not.

    >>> known("apache-2.0").title
    'Apache License 2.0'
    """
    index = _index()
    return index.get(_key(name)) or index.get(_key(name.removesuffix("+")))


# ----------------------------------------------------------------------------------------------------- one licence


def _key(name: str) -> str:
    """A name as it is compared: LicenseRef-Unknown and unknown are the same."""
    return " ".join(name.split()).casefold().removeprefix("licenseref-")


@cache
def _index() -> dict[str, License]:
    """The catalog by identifier, by that of the Hub, and by full name; the first of several with the same terms."""
    rows = list(catalog.licenses().values())
    index: dict[str, License] = {}
    for names in ([one.name for one in rows], [one.hub for one in rows], [one.title for one in rows]):
        for name, one in zip(names, rows, strict=True):
            if name:
                index.setdefault(_key(name), one)
    return index


def _one(name: str, let_in: frozenset[str]) -> Verdict:
    """Decide about one identifier, or about a text as a whole."""
    entry = known(name or UNKNOWN)
    # For a family of licences, name the stated one, not the entry that it was found by.
    shown = entry.name if entry and _key(name or UNKNOWN) in (_key(entry.name), _key(entry.title)) else name
    conditions = entry.conditions if entry else ()
    if entry and entry.redistribution == "yes":
        return Verdict(True, f"{shown} permits it", conditions, (shown,))
    if {_key(shown), _key(name)} & let_in or (entry and entry.hub and _key(entry.hub) in let_in):
        return Verdict(True, f"{shown} was named as an exception", conditions, (shown,), named=True)
    if entry is None:
        short = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
        return Verdict(False, f"the catalog does not know the licence {short!r}", (), (shown,))
    if entry.name == UNKNOWN:
        return Verdict(False, "no licence is stated", (), (shown,))
    if entry.redistribution == "unknown":
        return Verdict(False, f"it is not known whether {shown} permits redistribution", conditions, (shown,))
    because = "; ".join(CONDITIONS[condition] for condition in conditions if condition in FORBIDDING)
    return Verdict(False, f"{shown} does not permit it{because and ': '}{because}", conditions, (shown,))


# ---------------------------------------------------------------------------------------------------- expressions


def _both(first: Verdict, second: Verdict) -> Verdict:
    if first.allowed != second.allowed:
        return second if first.allowed else first
    return Verdict(
        first.allowed,
        "; ".join(dict.fromkeys((first.reason, second.reason))),
        tuple(name for name in CONDITIONS if name in first.conditions + second.conditions),
        tuple(dict.fromkeys(first.licenses + second.licenses)),
        first.named or second.named,
    )


def _either(first: Verdict, second: Verdict) -> Verdict:
    if first.allowed and second.allowed:
        return min(first, second, key=lambda verdict: (verdict.named, len(verdict.conditions)))
    if first.allowed or second.allowed:
        return first if first.allowed else second
    return _both(first, second)


class _Unparsable(Exception):
    """Not an SPDX expression."""


def _parsed(text: str, let_in: frozenset[str]) -> Verdict | None:
    """Decide about an expression; None if the text is not one."""
    tokens = _TOKEN.findall(text)
    if not 1 < len(tokens) <= _MOST_TOKENS:
        return None
    try:
        verdict = _joined(tokens, let_in, "OR", _either)
    except _Unparsable:
        return None
    return None if tokens else verdict


def _joined(
    tokens: list[str], let_in: frozenset[str], joint: str, join: Callable[[Verdict, Verdict], Verdict]
) -> Verdict:
    """Operands of one operator; AND binds more tightly than OR. Removes its tokens from the list."""

    def part() -> Verdict:
        return _joined(tokens, let_in, "AND", _both) if joint == "OR" else _simple(tokens, let_in)

    verdict = part()
    while tokens and tokens[0].upper() == joint:
        tokens.pop(0)
        verdict = join(verdict, part())
    return verdict


def _simple(tokens: list[str], let_in: frozenset[str]) -> Verdict:
    """A licence, with or without an exception, or an expression in parentheses."""
    token = _next(tokens)
    if token == "(":
        verdict = _joined(tokens, let_in, "OR", _either)
        if _next(tokens) != ")":
            raise _Unparsable
        return verdict
    if token == ")" or token.upper() in _JOINTS:
        raise _Unparsable
    if tokens and tokens[0].upper() == "WITH":
        tokens.pop(0)
        if _next(tokens).upper() in {"(", ")", *_JOINTS}:
            raise _Unparsable
    return _one(token, let_in)


def _next(tokens: list[str]) -> str:
    if not tokens:
        raise _Unparsable
    return tokens.pop(0)
