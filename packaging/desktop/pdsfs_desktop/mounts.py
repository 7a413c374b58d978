"""The pdsfs mounts of this machine, from /proc/self/mountinfo."""

import os
import re
import select

FS_TYPE = "fuse.pdsfs"
MOUNTINFO = "/proc/self/mountinfo"


def unescape(field):
    """Decodes the octal escapes of a mountinfo field."""
    return re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m.group(1), 8)]), field)


def parse(text):
    """Mountpoints of pdsfs in the bytes of mountinfo, longest first."""
    found = set()
    for line in text.splitlines():
        head, separator, tail = line.partition(b" - ")
        fields = head.split(b" ")
        if separator and len(fields) > 4 and tail.split(b" ")[0].decode("ascii", "replace") == FS_TYPE:
            found.add(os.fsdecode(unescape(fields[4])))
    return sorted(found, key=len, reverse=True)


class MountTable:
    """Answers without a system call to which mount a path belongs."""

    def __init__(self):
        self._file = open(MOUNTINFO, "rb", buffering=0)
        self._mountpoints = []
        self.reload()

    def fileno(self):
        """A descriptor with an exceptional condition whenever the mount table has changed."""
        return self._file.fileno()

    def all(self):
        return self._mountpoints

    def find(self, path):
        """The mountpoint above `path`, or None."""
        for mountpoint in self._mountpoints:
            if path.startswith(mountpoint) and path[len(mountpoint):len(mountpoint) + 1] in ("", "/"):
                return mountpoint
        return None

    def reload(self):
        """Reads the table of the kernel, which never waits for a mount. Returns whether a pdsfs mount came or went."""
        self._file.seek(0)
        chunks = []
        while chunk := self._file.read(1 << 16):
            chunks.append(chunk)
        before, self._mountpoints = self._mountpoints, parse(b"".join(chunks))
        return before != self._mountpoints

    def follow(self):
        """Keeps the table up to date. Never returns."""
        poll = select.poll()
        poll.register(self, select.POLLERR | select.POLLPRI)
        while True:
            poll.poll()
            self.reload()
