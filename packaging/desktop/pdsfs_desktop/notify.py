"""Desktop notifications by `notify-send`. Without that program they are dropped."""

import subprocess

WAIT_MAX_S = 10


def show(title, body="", icon="pdsfs"):
    # The service may read the body as markup.
    for char, escape in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        body = body.replace(char, escape)
    command = ["notify-send", f"--icon={icon}", "--app-name=pdsfs", "--", title, body]
    try:
        subprocess.run(command, check=False, timeout=WAIT_MAX_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        pass
