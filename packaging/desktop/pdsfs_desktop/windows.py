"""The clipboard and a window with text, with GTK 3 or 4. Called in the main loop."""

import gi


def _gtk(library):
    """The libraries that the file manager uses. Only Nautilus since version 43 has GTK 4."""
    is_gtk3 = (library._namespace, library._version) != ("Nautilus", "4.0")
    for name in ("Gdk", "Gtk"):
        gi.require_version(name, "3.0" if is_gtk3 else "4.0")
    from gi.repository import Gdk, Gtk

    return Gdk, Gtk, is_gtk3


def copy(library, text):
    """Puts a text into the clipboard."""
    Gdk, Gtk, is_gtk3 = _gtk(library)
    if is_gtk3:
        Gtk.Clipboard.get(Gdk.SELECTION_CLIPBOARD).set_text(text, -1)
    else:
        Gdk.Display.get_default().get_clipboard().set_content(Gdk.ContentProvider.new_for_value(text))


def show_text(library, title, text):
    """Shows the output of a command."""
    _, Gtk, is_gtk3 = _gtk(library)
    view = Gtk.TextView(editable=False, monospace=True, left_margin=12, right_margin=12, top_margin=12)
    view.get_buffer().set_text(text)
    scrolled = Gtk.ScrolledWindow()
    window = Gtk.Window(title=title, default_width=720, default_height=360, icon_name="pdsfs")
    if is_gtk3:
        scrolled.add(view)
        window.add(scrolled)
        window.show_all()
    else:
        scrolled.set_child(view)
        window.set_child(scrolled)
    window.present()
