"""Client of the control sockets: HTTP over a unix socket, one socket per mount."""

import http.client
import json
import os
import socket
import stat
import tempfile

from . import mounts

# A silent stream has an empty line every 10 s.
SILENCE_MAX_S = 30
ANSWER_MAX_S = 5
SOCKETS_MAX = 256
LINE_BYTES_MAX = 1 << 20
STATUS_BYTES_MAX = 8 << 20


class _Connection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def socket_dirs(uid=None, environ=os.environ):
    """Directories that may hold sockets of this user. See `src/control/socket_dirs.rs`."""
    uid = os.geteuid() if uid is None else uid
    if uid == 0:
        first = "/run/pdsfs"
    else:
        first = os.path.join(environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}", "pdsfs")
    return [first, os.path.join(tempfile.gettempdir(), f"pdsfs-{uid}")]


def _is_private(directory):
    try:
        found = os.lstat(directory)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def sockets():
    """Sockets of the running mounts of this user, and of dead ones."""
    paths = []
    for directory in filter(_is_private, socket_dirs()):
        names = sorted(name for name in os.listdir(directory) if name.endswith(".sock"))
        paths += [os.path.join(directory, name) for name in names]
    return paths[:SOCKETS_MAX]


def _get(path, request, timeout):
    connection = _Connection(path, timeout)
    connection.request("GET", request)
    answer = connection.getresponse()
    if answer.status != 200:
        connection.close()
        raise OSError(f"{request}: status {answer.status}")
    return connection, answer


def status(path):
    """The answer of `GET /v1/status`. Raises OSError or ValueError."""
    try:
        connection, answer = _get(path, "/v1/status", ANSWER_MAX_S)
        try:
            return json.loads(answer.read(STATUS_BYTES_MAX))
        finally:
            connection.close()
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error


def find(mountpoint):
    """The socket of a mount and its status, or None."""
    for path in sockets():
        try:
            answer = status(path)
        except (OSError, ValueError):
            continue
        if answer.get("mountpoint") == mountpoint:
            return path, answer
    return None


def events(path, since):
    """Yields the events after `since` as they come, and None for each heartbeat. Ends with the mount."""
    try:
        connection, answer = _get(path, f"/v1/events?since={since}&follow=true", SILENCE_MAX_S)
        try:
            while line := answer.readline(LINE_BYTES_MAX):
                yield json.loads(line) if line.strip() else None
        finally:
            connection.close()
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error


def own_mountpoints():
    """Mountpoints of this user whose daemon answers."""
    found = []
    for path in sockets():
        try:
            mountpoint = status(path).get("mountpoint")
        except (OSError, ValueError):
            continue
        found.append(mountpoint)
    with open(mounts.MOUNTINFO, "rb") as mountinfo:
        mounted = mounts.parse(mountinfo.read())
    return [mountpoint for mountpoint in found if mountpoint in mounted]
