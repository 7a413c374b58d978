"""The file manager's end of the pipes to `worker.py`. Nothing here waits."""

import json
import os
import subprocess
import time

from gi.repository import GLib

PYTHON = "/usr/bin/python3"
RESTART_S = 10
READ_BYTES = 1 << 16
# Requests that a stuck worker has not taken. More are dropped.
UNSENT_BYTES_MAX = 16 << 20


class WorkerLink:
    """Starts the worker when the first request is sent, and again after it has ended."""

    def __init__(self, receive):
        self._receive = receive
        self._process = None
        self._start_after = 0
        self._unsent = bytearray()
        self._received = bytearray()

    def send(self, **request):
        """Sends a request if the worker lives."""
        if self._process is None and not self._start():
            return
        if len(self._unsent) < UNSENT_BYTES_MAX:
            was_empty = not self._unsent
            self._unsent += json.dumps(request).encode() + b"\n"
            if was_empty and self._write():
                GLib.io_add_watch(self._process.stdin.fileno(), GLib.IO_OUT, lambda *_: self._write())

    def _start(self):
        if time.monotonic() < self._start_after:
            return False
        self._start_after = time.monotonic() + RESTART_S
        worker = os.path.join(os.path.dirname(os.path.realpath(__file__)), "worker.py")
        try:
            self._process = subprocess.Popen(
                [PYTHON, worker], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=True
            )
        except OSError:
            return False
        self._unsent.clear()
        self._received.clear()
        for pipe in (self._process.stdin, self._process.stdout):
            os.set_blocking(pipe.fileno(), False)
        ready = GLib.IO_IN | GLib.IO_HUP | GLib.IO_ERR
        GLib.io_add_watch(self._process.stdout.fileno(), ready, lambda *_: self._read())
        return True

    def _write(self):
        """Returns whether something is left to send."""
        try:
            while self._unsent:
                del self._unsent[:os.write(self._process.stdin.fileno(), self._unsent[:READ_BYTES])]
        except BlockingIOError:
            return True
        except (OSError, AttributeError):
            # The worker has ended. `_read` sees the end of its output.
            self._unsent.clear()
        return False

    def _read(self):
        try:
            chunk = os.read(self._process.stdout.fileno(), READ_BYTES)
        except BlockingIOError:
            return GLib.SOURCE_CONTINUE
        except OSError:
            chunk = b""
        if not chunk:
            self._end()
            return GLib.SOURCE_REMOVE
        self._received += chunk
        *lines, rest = self._received.split(b"\n")
        self._received = bytearray(rest)
        for line in lines:
            self._receive(json.loads(line))
        return GLib.SOURCE_CONTINUE

    def _end(self):
        process, self._process = self._process, None
        process.stdin.close()
        process.stdout.close()
        # Its output has ended, so it ends too; a later `Popen` reaps it.
        process.poll()
