"""The clipboard and a window with text, with GTK 3 or 4. Called in the main loop.

The library is imported at the first use: the file manager has chosen the version by then.
"""


def _gtk():
    from gi.repository import Gdk, Gtk

    return Gdk, Gtk, Gtk.get_major_version() == 3


def copy(text):
    """Puts a text into the clipboard."""
    Gdk, Gtk, is_gtk3 = _gtk()
    if is_gtk3:
        Gtk.Clipboard.get(Gdk.SELECTION_CLIPBOARD).set_text(text, -1)
    else:
        Gdk.Display.get_default().get_clipboard().set_content(Gdk.ContentProvider.new_for_value(text))


def show_text(title, text):
    """Shows the output of a command."""
    _, Gtk, is_gtk3 = _gtk()
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
