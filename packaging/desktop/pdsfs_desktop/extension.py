"""What the adapters of Nautilus, Nemo and Caja share: emblems and the context menu. Nothing here waits."""

import collections
from urllib.parse import quote, unquote

from gi.repository import GLib, GObject

from . import commands, mounts, windows, words, worker_link

EMBLEMS = {state: f"emblem-pdsfs-{state}" for state in ("saved", "uploading", "failed", "offline")}
FILES_MAX = 20_000


def local_path(file):
    """Path of a file of the file manager, or None."""
    uri = file.get_uri()
    return unquote(uri[len("file://"):], errors="surrogateescape") if uri.startswith("file:///") else None


class Shared:
    """One object in each file manager. `library` is its GObject library: Nautilus, Nemo or Caja."""

    def __init__(self, library):
        self._library = library
        self._table = mounts.MountTable()
        self._worker = worker_link.WorkerLink(self._receive)
        self._commands = ()
        self._known = collections.OrderedDict()
        # Files that are drawn again because of a new state, which needs no reading.
        self._announced = set()
        GLib.io_add_watch(self._table.fileno(), GLib.IO_PRI | GLib.IO_ERR, lambda *_: self._reload())

    def _reload(self):
        self._table.reload()
        return GLib.SOURCE_CONTINUE

    def update_file_info(self, file):
        """Adds the emblem. Called for every file that is shown."""
        # On a machine without a mount, this comparison is the whole cost.
        if not self._table.all():
            return
        path = local_path(file)
        if path is None or self._table.find(path) is None or file.is_directory():
            return
        if path in self._announced:
            self._announced.discard(path)
        else:
            self._worker.send(read=path)
        state = self._known.get(path)
        if state in EMBLEMS:
            file.add_emblem(EMBLEMS[state])

    def _receive(self, message):
        """A message of the worker."""
        if "path" in message:
            self._note(message["path"], message.get("state"))
        elif "commands" in message:
            self._commands = message["commands"]
        elif "copy" in message:
            is_copied = self._try_window(windows.copy, message["copy"])
            self._worker.send(notify=words.text("copied" if is_copied else "share"), text=message["copy"])
        elif "text" in message and not self._try_window(windows.show_text, message["title"], message["text"]):
            self._worker.send(notify=message["title"], text=message["text"])

    def _try_window(self, function, *arguments):
        """Returns whether the library for windows is installed. Without it, a notification has the text."""
        try:
            function(self._library, *arguments)
        except (ImportError, ValueError):
            return False
        return True

    def _note(self, path, state):
        if self._known.get(path) == state:
            return
        self._known[path] = state
        self._known.move_to_end(path)
        if len(self._known) > FILES_MAX:
            old, _ = self._known.popitem(last=False)
            self._announced.discard(old)
        file = self._library.FileInfo.lookup_for_uri("file://" + quote(path.encode("utf-8", "surrogateescape")))
        if file is not None:
            self._announced.add(path)
            file.invalidate_extension_info()

    def menu_items(self, files):
        """Items for one selected object of a mount."""
        path = local_path(files[0]) if len(files) == 1 else None
        if path is None or self._table.find(path) is None:
            return []
        offered = commands.offered(self._commands, self._known.get(path), files[0].is_directory())
        return [self._item(name, path) for name in offered]

    def _item(self, name, path):
        item = self._library.MenuItem(name=f"Pdsfs::{name}", label=words.text(name), tip="", icon="pdsfs")
        item.connect("activate", lambda _: self._worker.send(run=name, path=path))
        return item


def adapter(library):
    """The class that a file manager loads."""

    class Extension(GObject.GObject, library.InfoProvider, library.MenuProvider):
        __gtype_name__ = f"Pdsfs{library._namespace}"

        def __init__(self):
            super().__init__()
            self._shared = Shared(library)

        def update_file_info(self, file):
            self._shared.update_file_info(file)

        # Version 4 of the API of Nautilus passes the files, the others a window and the files.
        def get_file_items(self, *arguments):
            return self._shared.menu_items(arguments[-1])

        def get_background_items(self, *_):
            return []

    return Extension
