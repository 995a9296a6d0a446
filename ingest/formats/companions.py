"""Files that belong to a weight file: the data, shards and descriptions that it names, located in its folder."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from cnnfilterdb.core.errors import WeightFileError

__all__ = ["companion", "leads_out"]


def leads_out(folder: Path, path: Path) -> bool:
    """Whether a path below a folder is, or goes through, a symbolic link to a place outside of it.

    The blobs of the Hugging Face Hub's cache, to which the files of a snapshot are links, count as inside.

    Args:
        folder: The folder that was given.
        path: A path below it.
    """
    home = folder.resolve()
    homes = [home]
    if "snapshots" in home.parts:
        place = len(home.parts) - 1 - home.parts[::-1].index("snapshots")
        homes.append(Path(*home.parts[:place]) / "blobs")
    try:
        target = path.resolve()
    except (OSError, RuntimeError):  # a circle of links
        return True
    return not any(target.is_relative_to(one) for one in homes)


def companion(model: Path, name: str) -> Path:
    """The file that a weight file names, in its own folder or below.

    Names written on Windows have backslashes between folders. A name, or a symbolic link, that leads out of the folder
    is refused: otherwise the content of any file on this machine could be read as weights. The cache of the Hugging
    Face Hub, where model and data are links into one folder, is allowed for.

    Args:
        model: The weight file.
        name: The name as written in the weight file.

    Returns:
        The path of an existing regular file.

    Raises:
        WeightFileError: It is outside of the folder, or missing.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    windows = PureWindowsPath(name)
    escapes = not parts or ".." in parts or windows.drive or windows.root or "\0" in name
    try:
        # The target of a link may have another name, in another folder, and its data may be there too
        homes = (model.parent.resolve(), model.resolve().parent)
        path = model if escapes else model.parent.joinpath(*parts)
        if escapes or not any(path.resolve().is_relative_to(home) for home in homes):
            raise WeightFileError(f"{model}: names the file {name[:200]!r}, which is outside of its folder; refused")
        if not path.is_file():
            raise WeightFileError(
                f"{model}: names the file {name[:200]!r}, which is missing; put it beside {model.name}"
            )
    except (OSError, ValueError) as error:
        raise WeightFileError(f"{model}: names the file {name[:200]!r}, which cannot be opened: {error}") from error
    return path
