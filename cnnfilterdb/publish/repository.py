"""A data set repository on the Hugging Face Hub, accessed through huggingface_hub.

huggingface_hub sends large files, by Xet if hf_xet is installed, and repeats most of its requests itself if they fail
for a passing reason: five times, over 23 seconds, or as long as the server asks. The others are repeated here.

Its errors contain requests with their headers, including the token. So none of them becomes the cause or the context of
an error raised here, and the token is removed from every message.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cnnfilterdb.core.errors import PublishError
from cnnfilterdb.core.reports import printable
from cnnfilterdb.core.version import package_version
from cnnfilterdb.release.remote import ANSWER_BYTES, SLOWEST, RequestBudget

__all__ = ["AGAIN", "DatasetRepository", "Refused", "StoredFile", "check_repository", "hub_endpoint", "without_bars"]

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

#: The remedy after an interruption.
AGAIN = "run it again: nothing is sent twice"

_DATASET = "dataset"
# How often a request that fails for a passing reason is repeated, and the longest wait that a server may ask for
_PATIENCE = 5
_LONGEST = 300.0
# Seconds that a request may take besides the time that its bytes need, with all repetitions by huggingface_hub
REQUEST_SECONDS = 900.0
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_CONFLICT = 409
_STALE = 412
_CLIENT = frozenset({"httpx", "httpx2", "httpcore", "httpcore2"})


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in a repository.

    Attributes:
        size: Its size in bytes.
        digest: SHA-256 of the content of a large file, else the git object id.
        large: Whether it is stored as a large file (LFS, Xet).
    """

    size: int
    digest: str
    large: bool


class Refused(PublishError):
    """A request that failed, and what the caller needs to know to continue.

    Attributes:
        status: Status of the answer; None if there was none.
        passing: It may succeed later.
        wait: Seconds that the server asks to wait; None if it does not say.
        missing: The repository does not exist, or the token may not see it.
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        *,
        passing: bool = False,
        wait: float | None = None,
        missing: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.passing, self.wait, self.missing = status, passing, wait, missing


class DatasetRepository:
    """A data set repository. Every method raises :class:`PublishError` if it is refused.

    Args:
        name: ``owner/name``.
        token: Token; None for ``HF_TOKEN`` or that of ``hf auth login``.
        endpoint: Address of the Hub; None for the value of ``HF_ENDPOINT``, else the public one.

    Raises:
        PublishError: One of them is not valid.
    """

    def __init__(self, name: str, token: str | None = None, endpoint: str | None = None) -> None:
        from huggingface_hub import HfApi, get_token

        check_repository(name)
        self.name = name
        self.endpoint = hub_endpoint(endpoint)
        if not re.match(r"https?://[^/]", self.endpoint):
            raise PublishError(
                f"{self.endpoint!r} is not the address of a Hub; expected https://...; check HF_ENDPOINT"
            )
        self.url = f"{self.endpoint}/datasets/{name}"
        self._token = (token or get_token() or "").strip()
        # For any other character, the client's error message would quote the token
        if self._token and not re.fullmatch(r"[!-~]+", self._token):
            raise PublishError(
                "the token contains characters that no token has; copy it again, without spaces or quotes"
            )
        self._api = HfApi(
            endpoint=self.endpoint,
            token=self._token or False,
            library_name="cnnfilterdb",
            library_version=package_version(),
        )

    def other(self, name: str) -> DatasetRepository:
        """Another repository of the same Hub, reached by the same token."""
        return DatasetRepository(name, self._token, self.endpoint)

    def need_token(self) -> None:
        """Raise an error if there is no token at all; sends no request."""
        if not self._token:
            raise PublishError(
                f"{self.name}: publishing needs a token with write access; create one at "
                f"{self.endpoint}/settings/tokens, then set HF_TOKEN or run `hf auth login`"
            )

    def check_token(self) -> None:
        """Ask the server whose token it is, and whether it may write."""
        known = self._ask(lambda: self._api.whoami())
        if known.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise PublishError(
                f"{self.name}: the token may only read; create one with write access at {self.endpoint}/settings/tokens"
            )

    def refs(self) -> tuple[dict[str, str], dict[str, str]]:
        """Commits by branch and by tag."""
        refs = self._ask(lambda: self._api.list_repo_refs(self.name, repo_type=_DATASET))
        branches, tags = ({ref.name: ref.target_commit for ref in kind} for kind in (refs.branches, refs.tags))
        return branches, tags

    def create(self, private: bool) -> None:
        """Create the repository, unless it exists."""
        self._ask(lambda: self._api.create_repo(self.name, repo_type=_DATASET, private=private, exist_ok=True))

    def is_private(self) -> bool:
        """Whether only its owner can see it."""
        return bool(self._ask(lambda: self._api.dataset_info(self.name)).private)

    def tree(self, revision: str) -> dict[str, StoredFile]:
        """Files of a branch, a tag or a commit by path."""
        from huggingface_hub.hf_api import RepoFile

        def ask() -> list[Any]:
            return list(self._api.list_repo_tree(self.name, recursive=True, revision=revision, repo_type=_DATASET))

        return {
            entry.path: StoredFile(
                size=entry.lfs.size if entry.lfs else entry.size,
                digest=entry.lfs.sha256 if entry.lfs else entry.blob_id,
                large=entry.lfs is not None,
            )
            for entry in self._ask(ask, patience=0)
            if isinstance(entry, RepoFile)
        }

    def check_card(self, path: Path) -> None:
        """Have the server check the metadata of a card before anything is sent, as it does with every commit."""
        from huggingface_hub import get_session
        from huggingface_hub.utils import hf_raise_for_status

        asked = {"content": path.read_text(encoding="utf-8"), "repoType": _DATASET}

        def ask() -> None:
            hf_raise_for_status(get_session().post(f"{self.endpoint}/api/validate-yaml", json=asked))

        refused = None
        try:
            self._ask(ask)
        except Refused as error:
            refused = error
        if refused is not None:
            raise PublishError(f"{path}: {refused}; correct it and run again") if refused.status == 400 else refused

    def create_branch(self, branch: str, revision: str) -> None:
        """Create a branch at a commit, unless it exists."""
        self._ask(
            lambda: self._api.create_branch(
                self.name, branch=branch, revision=revision, repo_type=_DATASET, exist_ok=True
            )
        )

    def send(self, files: Mapping[str, Path], branch: str) -> list[Any]:
        """Send the content of large files that the server does not have. Small files go with the commit.

        Args:
            files: Path in the repository -> local file.
            branch: The branch to commit them to.

        Returns:
            An operation per file, for :meth:`commit`.
        """
        from huggingface_hub import CommitOperationAdd

        additions = [CommitOperationAdd(path, source) for path, source in files.items()]

        def ask() -> None:
            self._api.preupload_lfs_files(self.name, additions, repo_type=_DATASET, revision=branch, free_memory=False)

        self._ask(ask, patience=0, size=sum(source.stat().st_size for source in files.values()))
        return additions

    def commit(
        self,
        operations: Sequence[Any],
        branch: str,
        parent: str,
        title: str,
        done: Callable[[Mapping[str, StoredFile]], bool],
    ) -> str:
        """One commit on top of a certain other one; none without operations.

        A commit may have been made although its answer was lost, so the branch is checked before it is repeated.

        Args:
            operations: The changes.
            branch: The branch.
            parent: The commit that the branch must be at.
            title: Message of the commit.
            done: Whether the files of a commit are those of this one.

        Returns:
            The new commit, 40 hexadecimal digits.

        Raises:
            PublishError: It is refused, or another client changed the branch.
        """
        if not operations:
            return parent

        def ask() -> str:
            made = self._api.create_commit(
                self.name, operations, commit_message=title, revision=branch, parent_commit=parent, repo_type=_DATASET
            )
            return str(made.oid)

        attempt = 0
        while isinstance(answer := self._attempt(ask), Refused):
            if answer.status != _STALE and not answer.passing:
                raise answer
            head = self.refs()[0].get(branch, "")
            if head != parent:
                if head and done(self.tree(head)):
                    return head
                raise PublishError(
                    f"{self.name}: another client changed {branch} meanwhile, and nothing of this release is visible; "
                    "run it again to publish on top of that change"
                )
            if attempt == _PATIENCE:
                raise answer
            _wait(answer, attempt)
            attempt += 1
        return answer

    def tag(self, tag: str, commit: str) -> None:
        """Tag a commit."""
        conflict = False
        try:
            self._ask(lambda: self._api.create_tag(self.name, tag=tag, revision=commit, repo_type=_DATASET))
        except Refused as refused:
            if refused.status != _CONFLICT:
                raise
            conflict = True
        # The first of two requests may have succeeded
        if conflict and self.refs()[1].get(tag) != commit:
            raise PublishError(f"{self.name}: another client tagged {tag} meanwhile; run it again with another version")

    def forget_branch(self, branch: str) -> None:
        """Delete a branch. A leftover branch does no harm, so this never fails."""
        try:
            self._ask(lambda: self._api.delete_branch(self.name, branch=branch, repo_type=_DATASET))
        except Refused as refused:
            if refused.status != 404:
                _log.warning("%s: the branch %s is left over: %s", self.name, branch, refused)

    # ------------------------------------------------------------------------------------------------------ privately

    def _ask(self, request: Callable[[], _T], patience: int = _PATIENCE, size: int = 0) -> _T:
        """Answer to a request, repeated if it fails for a passing reason.

        Args:
            request: The request.
            patience: How often it is repeated; 0 where huggingface_hub does that itself: for large files and listings.
            size: Bytes that it sends.
        """
        attempt = 0
        while isinstance(answer := self._attempt(request, size), Refused):
            if not answer.passing or attempt == patience:
                raise answer
            _wait(answer, attempt)
            attempt += 1
        return answer

    def _attempt(self, request: Callable[[], _T], size: int = 0) -> _T | Refused:
        """Answer to a request, or why there is none. It is returned: what is raised here would have a context."""
        try:
            return RequestBudget(ANSWER_BYTES, REQUEST_SECONDS + size / SLOWEST).spend(request)
        except Exception as error:
            refused = self._refused(error)
            if refused is None:
                raise
            return refused

    def _refused(self, error: BaseException) -> Refused | None:
        """Convert an error of huggingface_hub, without the token; None for an error of the program."""
        from huggingface_hub import errors

        while isinstance(error, RuntimeError) and error.__cause__ is not None:
            error = error.__cause__  # of a thread that sent a file
        if isinstance(error, errors.HfHubHTTPError):
            return self._answered(error)
        reason = self._clean(str(error)) or type(error).__name__
        if type(error).__name__ in ("ConnectError", "ConnectTimeout"):
            what = f"{self.endpoint} cannot be reached ({reason}); check the network and HF_ENDPOINT"
            return Refused(f"{self.name}: {what}", passing=True)
        if type(error).__module__.partition(".")[0] in _CLIENT:
            return Refused(f"{self.name}: the connection to {self.endpoint} broke ({reason}); {AGAIN}", passing=True)
        if type(error).__name__ == "FileDuplicationError":
            return Refused(f"{self.name}: {reason}")
        if isinstance(error, OSError | ValueError | RuntimeError):
            # Errors of hf_xet state the answer in their text only
            remedy = "check what the token may do" if re.search(r"\b40[13]\b", reason) else AGAIN
            return Refused(f"{self.name}: the request failed ({reason}); {remedy}")
        if isinstance(error, LookupError | TypeError):
            return Refused(f"{self.name}: {self.endpoint} does not answer as a Hub does ({reason}); check HF_ENDPOINT")
        return None

    def _answered(self, error: Any) -> Refused:
        from huggingface_hub import errors

        status, headers = error.response.status_code, error.response.headers
        said = self._clean(error.server_message or "")
        said = f": {said}" if said else ""
        missing = False
        if isinstance(error, errors.GatedRepoError):
            text = f"its owner grants access on request; accept the conditions at {self.url}"
        elif status == 401 and headers.get("X-Error-Code") != "RepoNotFound":
            text = (
                f"the token is refused{said}; it is expired, revoked or wrong: "
                f"create another at {self.endpoint}/settings/tokens"
            )
        elif isinstance(error, errors.RepositoryNotFoundError):
            text, missing = f"no such data set at {self.endpoint}, or a private one; check name and token", True
        elif status == 403:
            text = f"the token may not do this{said}; use one with write access to this repository"
        elif status in _PASSING:
            text = f"{self.endpoint} answered {status}{said}; wait a while, then {AGAIN}"
        else:
            text = f"{self.endpoint} answered {status}{said or ': ' + self._clean(str(error))}"
        asked = re.search(r"\bt=(\d+)", headers.get("RateLimit", "")) if status == 429 else None
        asked = re.fullmatch(r"(\d+)", headers.get("Retry-After", "")) or asked
        wait = float(asked[1]) if asked else None
        return Refused(f"{self.name}: {text}", status, passing=status in _PASSING, wait=wait, missing=missing)

    def _clean(self, text: str) -> str:
        """Text from elsewhere as one short line, without the token."""
        text = text.replace(self._token, "***") if self._token else text
        return printable(text)[:300]


def _wait(refused: Refused, attempt: int) -> None:
    time.sleep(min(2.0**attempt, 8.0) if refused.wait is None else min(refused.wait, _LONGEST))


def hub_endpoint(endpoint: str | None) -> str:
    """The address of the Hub: a given one, else the value of ``HF_ENDPOINT`` now, else the public one."""
    # Not what huggingface_hub read when something else imported it
    return (endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def check_repository(name: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        PublishError: It is not ``owner/name``.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        valid = False
    else:
        valid = name.count("/") == 1
    if not valid:
        raise PublishError(f"{name!r} is not a repository; expected owner/name, of letters, digits, '-', '_' and '.'")


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep huggingface_hub from drawing progress bars."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    if shown:
        disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()
