"""The process that waits for mounts, sockets and commands on behalf of a file manager.

Reads requests, one JSON object a line: `{"read": PATH}`, `{"run": COMMAND, "path": PATH}`,
`{"notify": TITLE, "text": ...}`. Writes `{"path": PATH, "state": STATE}`, once `{"commands": [...]}`, and
`{"copy": TEXT}` or `{"title": ..., "text": ...}` for what needs a display. Ends with its input.
"""

import json
import os
import sys
import threading

if __package__ in (None, ""):
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
from pdsfs_desktop import commands, mounts, notify, states, words  # noqa: E402


class Output:
    """Writes whole lines from several threads."""

    def __init__(self, stream):
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, **message):
        with self._lock:
            try:
                self._stream.write(json.dumps(message) + "\n")
                self._stream.flush()
            except OSError:
                # The file manager has ended.
                os._exit(0)


def run(output, name, path):
    """Runs a command of the menu and shows what came of it."""
    is_done, said = commands.run(name, path)
    label, file_name = words.text(name), os.path.basename(path).encode("utf-8", "replace").decode()
    if not is_done:
        notify.show(words.text("failed", action=label), said, "dialog-error")
    elif name == "share" and (link := commands.link_in(said)):
        output.send(copy=link)
    elif name == "versions":
        output.send(title=f"{label}: {file_name}", text=said)
    elif name == "retry":
        notify.show(words.text("retried"), file_name)


def start(target, *arguments):
    threading.Thread(target=target, args=arguments, daemon=True).start()


def main():
    output = Output(sys.stdout)
    table = mounts.MountTable()
    start(table.follow)
    reader = states.States(table, lambda path, state: output.send(path=path, state=state))
    start(lambda: output.send(commands=list(filter(commands.has, commands.NAMES))))
    for line in sys.stdin:
        request = json.loads(line)
        if "read" in request:
            reader.request(request["read"])
        elif request.get("run") in commands.NAMES:
            start(run, output, request["run"], request["path"])
        elif "notify" in request:
            start(notify.show, request["notify"], request["text"])


if __name__ == "__main__":
    main()
