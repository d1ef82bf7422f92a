"""
Who computes what, between any number of processes that share a directory, also on several hosts.

A process that wants a part creates ``NAME.claim`` exclusively, touches it every few seconds while it is at work, and
deletes it when the part is on disk. A claim that hasn't been touched for a while, or whose process is seen to be dead
on this host, is taken over. Claims only save work: parts are written atomically, so that at the worst a part is
computed twice, to the same bytes.
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
from ..processes import host_id, started

#: Seconds between two touches of a claim.
HEARTBEAT = 10.0

#: Seconds without a touch after which a claim counts as abandoned.
TIMEOUT = 60.0


class Claims:
    """
    The claims of this process in a directory.

    :param folder: where the claims lie; it is made.
    :param timeout: seconds without a heartbeat after which another's claim is taken over.
    :param heartbeat: seconds between heartbeats.
    """

    def __init__(self, folder: Path, timeout: float = TIMEOUT, heartbeat: float = HEARTBEAT) -> None:
        self._folder = folder
        self._timeout = timeout
        self._heartbeat = heartbeat
        self._me = {"host": host_id(), "pid": os.getpid(), "started": started(os.getpid()), "token": uuid.uuid4().hex}
        self._held: set[str] = set()
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} can't be made ({error}): choose another --path.") from error
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def take(self, name: str) -> bool:
        """Claim a part; False where another process is at work on it."""
        if not self._create(name):
            owner = self._owner(name)
            if owner is not None and not self._abandoned(name, owner):
                return False
            self._remove_abandoned(name)
            if not self._create(name):
                return False
        with self._lock:
            self._held.add(name)
        return True

    def release(self, name: str) -> None:
        """Give a claim back, unless another process took it over meanwhile."""
        with self._lock:
            self._held.discard(name)
        owner = self._owner(name)
        if owner is not None and owner.get("token") == self._me["token"]:
            with contextlib.suppress(FileNotFoundError):
                self._path(name).unlink()

    def release_all(self) -> None:
        """Give all claims of this process back."""
        with self._lock:
            held = list(self._held)
        for name in held:
            self.release(name)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.claim"

    def _create(self, name: str) -> bool:
        try:
            handle = os.open(self._path(name), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w") as file:
            file.write(json.dumps(self._me))
        return True

    def _owner(self, name: str) -> dict[str, Any] | None:
        """Who holds a claim: None where there is none, {} where it is being written, or was cut short."""
        try:
            return json.loads(self._path(name).read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return {}

    def _abandoned(self, name: str, owner: dict[str, Any]) -> bool:
        if owner.get("host") == self._me["host"] and owner.get("started") != started(owner["pid"]):
            return True
        return self._older_than_timeout(self._path(name))

    def _older_than_timeout(self, path: Path) -> bool:
        try:
            return self._now() - path.stat().st_mtime > self._timeout
        except FileNotFoundError:
            return False

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
        """
        guard = self._folder / f"{name}.takeover"
        try:
            os.close(os.open(guard, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            # Somebody else is at it, or died at it.
            if self._older_than_timeout(guard):
                guard.unlink(missing_ok=True)
            return
        try:
            owner = self._owner(name)
            if owner is not None and self._abandoned(name, owner):
                self._path(name).unlink(missing_ok=True)
        finally:
            guard.unlink(missing_ok=True)

    def _beat(self) -> None:
        while True:
            time.sleep(self._heartbeat)
            with self._lock:
                held = list(self._held)
            for name in held:
                # A file system that is away for a moment is no reason to stop.
                with contextlib.suppress(OSError):
                    os.utime(self._path(name))


def claimed(folder: Path) -> dict[str, str]:
    """Which parts are claimed, and by whom ("process PID on HOST, heartbeat N s ago"): for people."""
    result = {}
    for path in sorted(folder.glob("*.claim")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            owner = json.loads(path.read_text())
            age = max(0.0, time.time() - path.stat().st_mtime)
            host = owner["host"].split("/")[0]
            result[path.stem] = f"process {owner['pid']} on {host}, heartbeat {age:.0f} s ago"
    return result
