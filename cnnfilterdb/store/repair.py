"""Repair: rebuild what is derived, set aside what is damaged, and say which models must be imported again."""

from __future__ import annotations

from contextlib import suppress

from cnnfilterdb.core import paths
from cnnfilterdb.core.errors import CorruptError, LockedError
from cnnfilterdb.core.reports import Problem, Progress
from cnnfilterdb.store import annotations as notes
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.index import Index
from cnnfilterdb.store.verify import FOREIGN, UNREAD, verify_models

__all__ = ["repair"]

_ROWS = ("models", "layers", "filters")


def repair(store: Store, index: Index, progress: Progress | None = None) -> list[Problem]:
    """Repair a database. Nothing is deleted: what is damaged is moved to ``.quarantine/``.

    Changes of killed processes are completed; files that belong to no model are set aside; models with a damaged row,
    layers or filters are set aside with all their files; the index, the marker and the files without rows are rebuilt;
    edited annotations are accepted, and set aside if they cannot be read.

    Args:
        store: The database.
        index: Its index.
        progress: Called with what is being done, how much is done and how much there is.

    Returns:
        What could not be repaired: the models that must be imported again, with the reason and where their files are,
        and files that are not of the database, though SQL reads them.
    """
    store.recover()
    store.quarantine_strays()
    store.restore()
    left: list[Problem] = []
    slugs: dict[str, Problem] = {}
    for problem in store.verify(progress=progress):
        if problem.message in (FOREIGN, UNREAD):  # of the user, perhaps
            left.append(problem)
        if _is_of_rows(store, problem) and paths.is_slug(problem.path.stem):
            slugs.setdefault(problem.path.stem, problem)
    urls = _urls(store, set(slugs))
    for slug, problem in sorted(slugs.items()):
        try:
            with store.locked(slug):
                # Again, now that it cannot change: another process may have replaced it while it was read, and an error
                # of the disk may have passed.
                found = verify_models(store.path, [slug], store.files, store.resources)
                damage = [one for one in found if _is_of_rows(store, one)]
                if not damage:
                    continue
                problem = damage[0]
                name = problem.model_id or slug
                moved = store.quarantine(store.files(slug), f"{name} is damaged")
        except LockedError as error:
            left.append(Problem(problem.model_id, problem.path, str(error)))
            continue
        where = "/".join(moved[0].split("/")[:2]) if moved else paths.QUARANTINE
        source = f" from {urls[slug]}" if urls.get(slug) else ""
        message = f"{problem.message}; its files are in {where}: import {name} again{source}"
        left.append(Problem(problem.model_id, problem.path, message))
    store.restore()
    with suppress(LockedError):
        index.build(progress=progress)
    if notes.annotation_problems(store) and (refusal := _refused(store)):
        (where,) = store.quarantine([paths.ANNOTATIONS], refusal)
        notes.accept(store)
        path = store.path / paths.ANNOTATIONS
        reason = refusal.removeprefix(f"{path}: ")
        left.append(Problem(None, path, f"{reason}; it is in {where}: correct it and annotate again"))
    return left


def _is_of_rows(store: Store, problem: Problem) -> bool:
    """Whether a problem is of a file that cannot be computed again."""
    return problem.path.relative_to(store.path).parts[0] in _ROWS


def _refused(store: Store) -> str | None:
    """Accept annotations that were edited; why not, if they cannot be read."""
    message = None
    for _ in range(2):  # an error of the disk may pass
        try:
            notes.accept(store)
        except CorruptError as error:
            message = str(error)
        else:
            return None
    return message


def _urls(store: Store, slugs: set[str]) -> dict[str, str]:
    """Where damaged models came from, as far as their rows can be read."""
    found: dict[str, str] = {}
    with suppress(CorruptError):
        table = store.models(columns=["model_id", "url"])
        for model_id, url in zip(table["model_id"].to_pylist(), table["url"].to_pylist(), strict=True):
            if url and (slug := store.slug(model_id)) in slugs:
                found[slug] = str(url)
    return found
