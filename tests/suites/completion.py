"""Presses Tab in a shell behind a terminal. Called by completion.sh."""

import os
import pty
import re
import select
import sys
import time

WORK = sys.argv[1]
# What is typed before Tab, and what Tab must add.
CASES = [
    ("pdsfs umou", "nt"),
    ("pdsfs mount --part-s", "ize"),
    ("pdsfs mount holi", "day"),
    ("pdsfs mount back", "up"),
    ("pdsfs mount --account back", "up"),
    ("pdsfs login back", "up"),
    ("pdsfs doctor holi", "day"),
    (f"pdsfs mount holiday {WORK}/Pict", "ures"),
]
SHELLS = {
    "bash": (["bash", "--norc", "-i"], f"PS1='> '; source {WORK}/bash"),
    "zsh": (["zsh", "-f", "-i"], f"PS1='> '; fpath=({WORK}/zsh $fpath); autoload -U compinit; compinit -u -D"),
    "fish": (["fish", "--no-config", "-i"], f"source {WORK}/pdsfs.fish"),
}
# Escape sequences of the line editors.
NOISE = re.compile(rb"\x1b(\[[0-9;?<>=]*[a-zA-Z]|\][^\x07\x1b]*(\x07|\x1b\\)|[()=>].?)|\x07|\r")
ANSWER_MAX_S = 20


class Shell:
    """A shell whose terminal this process holds."""

    def __init__(self, command):
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            os.execvp(command[0], command)

    def send(self, text):
        os.write(self.terminal, text.encode())

    def read_until(self, found):
        """The output up to a match, or all of it after the limit."""
        seen, end = b"", time.monotonic() + ANSWER_MAX_S
        while time.monotonic() < end:
            if select.select([self.terminal], [], [], 0.2)[0]:
                try:
                    part = os.read(self.terminal, 4096)
                except OSError:
                    break
                # fish asks what the terminal can do, and waits for the answer.
                if b"\x1b[c" in part or b"\x1b[0c" in part:
                    self.send("\x1b[?1;2c")
                seen += part
            if found in NOISE.sub(b"", seen):
                return True, seen
        return False, NOISE.sub(b"", seen)

    def end(self):
        os.close(self.terminal)
        os.waitpid(self.pid, 0)


failures = 0
for name, (command, prepare) in SHELLS.items():
    for typed, added in CASES:
        shell = Shell(command)
        shell.send(prepare + "; echo rea''dy\n")
        is_ready, seen = shell.read_until(b"ready")
        shell.send(typed + "\t")
        # The shell echoes what is typed; only Tab can add the rest of the word.
        last = typed.split(" ")[-1]
        is_completed, seen = shell.read_until((last + added).encode())
        print(f"{'ok  ' if is_ready and is_completed else 'FAIL'} {name}: {typed}<Tab>")
        if not is_completed:
            print(f"     no {last + added} in {seen!r}")
            failures += 1
        shell.end()
sys.exit(1 if failures else 0)
