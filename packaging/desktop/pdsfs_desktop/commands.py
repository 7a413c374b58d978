"""The pdsfs commands of the context menu. An installed pdsfs may have only some of them."""

import os
import subprocess

NAMES = ("share", "versions", "open", "retry")
HELP_MAX_S = 10
RUN_MAX_S = 120
OUTPUT_CHARS_MAX = 100_000


def program(environ=os.environ):
    """`PDSFS` names another program than that of the search path."""
    return environ.get("PDSFS") or "pdsfs"


def has(name):
    """Whether the installed pdsfs has this command."""
    command = [program(), name, "--help"]
    silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        return subprocess.run(command, check=False, timeout=HELP_MAX_S, **silent).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def offered(found, state, is_dir):
    """Those of the commands in `found` that make sense for an object, in the order of the menu."""
    fits = {
        "share": state == "saved" or is_dir,
        "versions": not is_dir,
        "open": state == "saved" or is_dir,
        "retry": state == "failed",
    }
    return [name for name in NAMES if fits[name] and name in found]


def run(name, path):
    """Runs a command. Returns whether it succeeded, and its output or error."""
    # A name must not be read as an option.
    command = [program(), name, "--", path]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, timeout=RUN_MAX_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    said = done.stdout if done.returncode == 0 else done.stderr
    return done.returncode == 0, said.decode("utf-8", "replace").strip()[:OUTPUT_CHARS_MAX]


def link_in(output):
    """The first URL in the output of `share`, or None."""
    return next((word for word in output.split() if word.startswith(("https://", "http://"))), None)
