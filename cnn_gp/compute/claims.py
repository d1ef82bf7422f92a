"""
Claims: which process computes which part, between any number of them that share a directory, also on several hosts.

A process that wants a part creates ``NAME.claim`` exclusively, gives it a heartbeat (sets the file's time to now) every
few seconds while it is at work, and deletes it when the part is on disk. A claim without a heartbeat for a while, or
whose process is seen to be dead on this host, is taken over. Claims only save work: parts are written atomically, so
that at the worst a part is computed twice, to the same bytes.
"""

import contextlib
import json
import os
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..processes import host_id, is_same_process, started
from ..store.atomic import create_exclusively

#: Seconds between two heartbeats of a claim.
HEARTBEAT = 10.0

#: Seconds without a heartbeat after which a claim counts as abandoned.
TIMEOUT = 60.0


class Claims:
    """
    The claims of this process in a directory.

    :param folder: where the claims lie; it is made for the first of them.
    :param timeout: seconds without a heartbeat after which another's claim is taken over.
    :param heartbeat: seconds between heartbeats.
    """

    def __init__(self, folder: Path, timeout: float = TIMEOUT, heartbeat: float = HEARTBEAT) -> None:
        self._folder = folder
        self._timeout = timeout
        self._heartbeat = heartbeat
        self._me = {"host": host_id(), "pid": os.getpid(), "started": started(os.getpid()), "token": uuid.uuid4().hex}
        self._held: set[str] = set()
        self._is_beating = False
        self._watched: dict[Path, tuple[float | None, float]] = {}
        """The last heartbeat of a file that is waited for, and since when this process has seen none after it."""
        self._lock = threading.Lock()

    def take(self, name: str) -> bool:
        """
        Claim a part; False where another process is at work on it.

        :raises UserError: where no claim can be made.
        """
        path = self._path(name)
        if not self._create(path):
            if not self._abandoned(path):
                return False
            self._remove_abandoned(name)
            if not self._create(path):
                return False
        with self._lock:
            self._held.add(name)
            if not self._is_beating:
                self._is_beating = True
                threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return True

    def release(self, name: str) -> None:
        """Give a claim back, unless another process took it over meanwhile. It raises nothing: a claim times out."""
        with self._lock:
            self._held.discard(name)
        if _read(self._path(name)).get("token") == self._me["token"]:
            with contextlib.suppress(OSError):
                self._path(name).unlink()

    def release_all(self) -> None:
        """Give all claims of this process back."""
        with self._lock:
            held = list(self._held)
        for name in held:
            self.release(name)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.claim"

    def _create(self, path: Path) -> bool:
        """Make a claim. It appears with its content, so that a killed process leaves no claim without an owner."""
        return create_exclusively(path, json.dumps(self._me))

    def _abandoned(self, path: Path) -> bool:
        owner = _read(path)
        if owner.get("host") == self._me["host"] and not is_same_process(owner["pid"], owner.get("started")):
            return True
        return self._is_silent(path)

    def _is_silent(self, path: Path) -> bool:
        """
        Whether a file had no heartbeat for the timeout, by the file system's clock or by this process's own.

        The second is for files whose time is in the future, where a clock was set back.
        """
        try:
            touched = path.lstat().st_mtime
        except OSError:
            return False
        now = time.monotonic()
        last, since = self._watched.get(path, (None, now))
        if last != touched:
            self._watched[path] = touched, now
            since = now
        return self._now() - touched > self._timeout or now - since > self._timeout

    def _now(self) -> float:
        """The file system's time: the clocks of two hosts can differ by more than the timeout."""
        probe = self._folder / f".{self._me['token']}.now"
        try:
            probe.touch()
            return probe.stat().st_mtime
        except OSError:
            return time.time()
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()

    def _remove_abandoned(self, name: str) -> None:
        """
        Remove a claim if it is abandoned, at a time when no other process does.

        A process that looked earlier would otherwise remove the claim of one that has just taken over.

        :raises UserError: where it can't be removed.
        """
        path, guard = self._path(name), self._folder / f"{name}.takeover"
        if not self._create(guard):
            # Somebody else is at it, or died at it.
            if self._abandoned(guard):
                _remove(guard)
            return
        try:
            if self._abandoned(path):
                _remove(path)
        finally:
            with contextlib.suppress(OSError):
                guard.unlink()

    def _beat(self) -> None:
        """Touch the claims that are held, until there are none."""
        while True:
            time.sleep(self._heartbeat)
            with self._lock:
                held = list(self._held)
                self._is_beating = bool(held)
            if not held:
                return
            for name in held:
                # A file system that is away for a moment is no reason to stop.
                with contextlib.suppress(OSError):
                    os.utime(self._path(name))


def claimed(folder: Path) -> dict[str, str]:
    """Which parts are claimed, and by whom ("process PID on HOST, heartbeat N s ago"): for people."""
    result = {}
    for path in sorted(folder.glob("*.claim")):
        owner = _read(path)
        with contextlib.suppress(OSError):
            age = max(0.0, time.time() - path.lstat().st_mtime)
            who = f"process {owner['pid']} on {owner['host'].split('/')[0]}" if owner else "an unreadable claim"
            result[path.stem] = f"{who}, heartbeat {age:.0f} s ago"
    return result


def _read(path: Path) -> dict[str, Any]:
    """Who holds a claim: {} where there is none, and where it is being written, was cut short or isn't one."""
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(owner, dict) or not isinstance(owner.get("host"), str) or not isinstance(owner.get("pid"), int):
        return {}
    return owner


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path} is abandoned and can't be removed ({error.strerror}): check the permissions of its "
            "folder, or remove it."
        ) from error
