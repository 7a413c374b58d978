"""The states of the files that a file manager shows."""

import collections
import errno
import os
import threading
import time

from . import control

ATTRIBUTE = "user.pdsfs.state"
FILES_MAX = 20_000
# A mount without a socket belongs to another user, or its daemon has died.
SOCKET_RETRY_S = 10
STATUS_INTERVAL_S = 1
UNSAVED = ("writing", "staged", "committing")
# The file has no state: it is a directory, or it is gone.
STATELESS = (errno.ENODATA, errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENOTSUP, errno.ELOOP)


def read(path):
    """The state of a file: a word of the attribute, `offline` if the daemon does not answer, or None."""
    try:
        return os.getxattr(path, ATTRIBUTE).decode("ascii", "replace")
    except OSError as error:
        return None if error.errno in STATELESS else "offline"


def shown(state, is_paused):
    """What a person sees: `saved`, `uploading`, `offline`, `failed`, or None."""
    if state in UNSAVED:
        return "offline" if is_paused else "uploading"
    return state if state in ("saved", "failed", "offline") else None


class States:
    """Reads states in a thread of its own, which calls `report(path, state)` after each reading.

    A thread per mount follows the events of its control socket, and files that were read before are read again when
    their state may have changed.
    """

    def __init__(self, table, report):
        self._table = table
        self._report = report
        self._lock = threading.Condition()
        # The states that were reported, oldest first.
        self._known = collections.OrderedDict()
        self._queue = collections.OrderedDict()
        self._paused = set()
        # Mountpoints, and the time from which a new follower may start.
        self._followed = {}
        threading.Thread(target=self._work, name="states", daemon=True).start()

    def request(self, path):
        """Reads the state of a file soon."""
        mountpoint = self._table.find(path)
        if mountpoint is None:
            return
        with self._lock:
            self._enqueue(path)
            self._follow(mountpoint)

    def _enqueue(self, path):
        self._queue[path] = None
        if len(self._queue) > FILES_MAX:
            self._queue.popitem(last=False)
        self._lock.notify()

    def _work(self):
        while True:
            with self._lock:
                while not self._queue:
                    self._lock.wait()
                path, _ = self._queue.popitem(last=False)
            mountpoint = self._table.find(path)
            state = shown(read(path), mountpoint in self._paused) if mountpoint else None
            with self._lock:
                self._known[path] = state
                self._known.move_to_end(path)
                if len(self._known) > FILES_MAX:
                    self._known.popitem(last=False)
            self._report(path, state)

    def _follow(self, mountpoint):
        """Starts the follower of a mount. One that found no socket is started again after a while."""
        now = time.monotonic()
        if now < self._followed.get(mountpoint, 0):
            return
        self._followed[mountpoint] = float("inf")
        threading.Thread(target=self._follow_events, args=(mountpoint,), name="events", daemon=True).start()

    def _follow_events(self, mountpoint):
        try:
            found = control.find(mountpoint)
            if found is not None:
                self._read_events(mountpoint, *found)
        except (OSError, ValueError):
            pass
        with self._lock:
            self._paused.discard(mountpoint)
            self._followed[mountpoint] = time.monotonic() + SOCKET_RETRY_S
            self._refresh(mountpoint, lambda _: True)

    def _read_events(self, mountpoint, path, status):
        self._note_status(mountpoint, status)
        asked = time.monotonic()
        for event in control.events(path, status.get("last_seq", 0)):
            if event and event.get("path"):
                with self._lock:
                    changed = mountpoint.rstrip("/") + event["path"]
                    if changed in self._known:
                        self._enqueue(changed)
            if event is None or time.monotonic() - asked >= STATUS_INTERVAL_S:
                asked = time.monotonic()
                self._note_status(mountpoint, control.status(path))

    def _note_status(self, mountpoint, status):
        """Reads unsaved files again, and all of them if a pause began or ended."""
        transfers = status.get("transfers", [])
        unsaved = {mountpoint.rstrip("/") + file.get("path", "") for file in transfers}
        with self._lock:
            (self._paused.add if status.get("paused") else self._paused.discard)(mountpoint)
            self._refresh(mountpoint, lambda path: path in unsaved or self._known[path] != "saved")

    def _refresh(self, mountpoint, is_due):
        for path in [path for path in self._known if self._table.find(path) == mountpoint and is_due(path)]:
            self._enqueue(path)
