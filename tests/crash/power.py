"""Power loss: what a disk may hold when the power fails after any of the writes, flushes and renames of a verb.

By hand: ``make crash N=500``. A verb runs once, while its system calls are recorded. A state of the disk is then built
for a prefix of them:

- of a file, the content at its last fsync is there; later writes are there, are missing, or the file is empty;
- of a folder, the names at its last fsync are there; of later changes (something was made, renamed, removed)
  none, any, or all are there. A rename happens whole, and a change of a name implies the earlier ones of the same name
  and those that made its folder, as on the file systems in use.

The checks are those after a kill; and once the verb has returned, its result must be there without running it again.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import rounds
import shim


@dataclass(frozen=True)
class Call:
    """One recorded call: its kind (the letters of shim.c), paths relative to the world, offset and data."""

    kind: str
    path: str
    other: str
    offset: int
    data: bytes


def recorded(log: Path, root: Path) -> list[Call]:
    """The calls in a log."""
    content, place, calls = log.read_bytes(), 0, []

    def relative(text: bytes) -> str:
        return os.path.relpath(os.fsdecode(text).removesuffix(" (deleted)"), root)

    while place < len(content):
        kind = chr(content[place])
        offset, *lengths = struct.unpack_from("4q", content, place + 1)
        place += 33
        texts = []
        for length in lengths:
            texts.append(content[place : place + length])
            place += length
        other = relative(texts[1]) if texts[1] else ""
        calls.append(Call(kind, relative(texts[0]), other, offset, texts[2]))
    return calls


@dataclass(eq=False)
class Node:
    """A file, or a folder with its entries.

    Attributes:
        entries: Of a folder, as the process sees it.
        content: Of a file, as the process sees it.
        flushed: Content at the last fsync; None if there was none.
    """

    entries: dict[str, Node] | None = None
    content: bytearray = field(default_factory=bytearray)
    flushed: bytes | None = None


@dataclass(eq=False)
class Change:
    """A change of names: in each folder, a name and what it stands for afterwards."""

    parts: list[tuple[Node, str, Node | None]]
    needs: list[Change]
    durable: bool = False


class Disk:
    """A file system that remembers what was flushed.

    Args:
        root: The folder at the beginning, all of which is on the disk.
    """

    def __init__(self, root: Path) -> None:
        self.root = self._loaded(root)
        self._start: dict[Node, dict[str, Node]] = {}
        self._remember(self.root)
        self.changes: list[Change] = []
        self._last: dict[tuple[Node, str], Change] = {}  # of a name
        self._made: dict[Node, Change] = {}  # of a node, the change that put it where it is

    def _loaded(self, path: Path) -> Node:
        if path.is_dir():
            return Node({child.name: self._loaded(child) for child in path.iterdir()})
        content = path.read_bytes()
        return Node(None, bytearray(content), content)

    def _remember(self, node: Node) -> None:
        if node.entries is not None:
            self._start[node] = dict(node.entries)
            for child in node.entries.values():
                self._remember(child)

    def _find(self, path: str) -> tuple[Node, str]:
        node = self.root
        *folders, name = path.split("/")
        for part in folders:
            assert node.entries is not None
            node = node.entries[part]
        return node, name

    def _node(self, path: str) -> Node | None:
        if path == ".":
            return self.root
        try:
            folder, name = self._find(path)
        except KeyError:  # of a file that was removed while it was open
            return None
        return (folder.entries or {}).get(name)

    def _change(self, *parts: tuple[str, Node | None]) -> None:
        found = [(*self._find(path), node) for path, node in parts]
        needs = [self._last[folder, name] for folder, name, _ in found if (folder, name) in self._last]
        needs += [self._made[folder] for folder, _, _ in found if folder in self._made]
        change = Change(found, needs)
        for folder, name, node in found:
            assert folder.entries is not None
            self._last[folder, name] = change
            if node is None:
                folder.entries.pop(name, None)
            else:
                folder.entries[name] = node
                self._made[node] = change
        self.changes.append(change)

    def apply(self, call: Call) -> None:
        """What the process sees after a call, and what is on the disk for certain."""
        if call.kind == "C":
            self._change((call.path, Node()))
        elif call.kind == "M":
            node = Node({})
            self._start[node] = {}
            self._change((call.path, node))
        elif call.kind in "UD":
            self._change((call.path, None))
        elif call.kind == "R":
            self._change((call.path, None), (call.other, self._node(call.path)))
        elif (node := self._node(call.path)) is not None:
            if call.kind == "W":
                node.content.extend(bytes(max(0, call.offset - len(node.content))))
                node.content[call.offset : call.offset + len(call.data)] = call.data
            elif call.kind == "T":
                node.content = node.content[: call.offset].ljust(call.offset, b"\0")
            elif call.kind == "F" and node.entries is None:
                node.flushed = bytes(node.content)
            elif call.kind == "F":
                for change in self.changes:
                    change.durable |= any(folder is node for folder, _, _ in change.parts)

    def after_power_loss(self, target: Path, choose: random.Random, keep: float) -> None:
        """Write what the disk may hold to a new folder.

        Args:
            target: The folder.
            choose: Decides about what is not on the disk for certain.
            keep: How probable it is that such a change, or such a content, is there.
        """
        there: set[Change] = set()

        def require(change: Change) -> None:
            if change not in there:
                there.add(change)
                for one in change.needs:
                    require(one)

        for change in self.changes:
            if change.durable or choose.random() < keep:
                require(change)
        entries = {folder: dict(names) for folder, names in self._start.items()}
        for change in self.changes:
            if change in there:
                for folder, name, node in change.parts:
                    if node is None:
                        entries[folder].pop(name, None)
                    else:
                        entries[folder][name] = node

        def write(node: Node, path: Path) -> None:
            if node.entries is not None:
                path.mkdir()
                for name, child in entries[node].items():
                    write(child, path / name)
            elif choose.random() < keep:
                path.write_bytes(node.content)
            else:
                path.write_bytes(node.flushed or b"")

        write(self.root, target)


def run(
    states: int, *, seed: int = 0, seconds: float | None = None, verbs: Sequence[str] = (), keep_going: bool = False
) -> Counter[str]:
    """Record each verb, build states of the disk, check them, and count.

    Args:
        states: Number of states.
        seed: Of their choice.
        seconds: Stop after this time, which begins when the worlds are made; one round is always tried.
        verbs: Names of verbs; all by default.
        keep_going: Print failures and go on.
    """
    from world import VERBS, Worlds, forked

    chooser, tried = random.Random(seed), Counter[str]()
    chosen = list(verbs or VERBS)
    with tempfile.TemporaryDirectory() as folder:
        worlds = Worlds(Path(folder))
        end = time.monotonic() + (seconds or 1e9)
        logs: dict[str, list[Call]] = {}

        def record(verb: str, world: Path) -> None:
            log = os.open(worlds.root / "log", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            shim.arm(world, shim.RECORD, log=log)
            worlds.run(verb, world)
            shim.disarm()

        def moments() -> Iterator[tuple[str, int]]:
            """The end of each verb first."""
            yield from ((verb, -1) for verb in chosen)
            while True:
                for verb in chosen:
                    yield verb, chooser.randrange(len(logs[verb]))

        for number, (verb, moment) in enumerate(moments()):
            if number >= states or time.monotonic() > end:
                break
            if verb not in logs:
                worlds.after(verb)
                world = worlds.world(verb)
                assert forked(partial(record, verb, world)) == 0
                logs[verb] = recorded(worlds.root / "log", world)
            calls = logs[verb]
            disk = Disk(worlds.start(verb))
            for call in calls if moment < 0 else calls[: moment + 1]:
                disk.apply(call)
            lost = worlds.root / "after power loss"
            shutil.rmtree(lost, ignore_errors=True)
            keep = 0.0 if moment < 0 else chooser.choice((0.0, 0.0, 0.5, 0.8))
            disk.after_power_loss(lost, chooser, keep)
            kind = "had returned" if moment < 0 else "was at work"
            if forked(partial(worlds.check, verb, lost, lasting=moment < 0)) != 0:
                text = f"{verb} {kind}: after call {moment} of {len(calls)}, seed {seed}, {keep} kept"
                assert keep_going, text
                sys.stdout.write(f"FAILED: {text}\n")
                sys.stdout.flush()
                kind += " FAILED"
            tried[f"{verb} {kind}"] += 1
    return tried


if __name__ == "__main__":
    shim.loaded()
    rounds.main("Lose power while verbs write and check what is left.", run, keep_going=True)
