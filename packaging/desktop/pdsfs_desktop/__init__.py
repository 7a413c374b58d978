"""Shows the state of files on pdsfs mounts in Nautilus, Nemo and Caja.

A file manager runs Python in its main loop only: threads stand still there. So all that may wait is done by
`worker.py` in a process of its own, and `extension.py` exchanges lines of JSON with it. `extension.py`, `windows.py`
and `worker_link.py` run in the file manager and import GObject libraries; the others need the standard library alone.
"""
