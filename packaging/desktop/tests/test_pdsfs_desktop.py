"""Unit tests of the modules that need no display. Run by `cargo test --test mount desktop_extensions`."""

import importlib.machinery
import importlib.util
import os
import re
import tempfile
import unittest
from unittest import mock

from pdsfs_desktop import commands, control, mounts, states, words

MOUNTINFO = rb"""22 1 8:1 / / rw - ext4 /dev/sda1 rw
40 22 0:50 / /home/ann/Drive rw,nosuid - fuse.pdsfs pds:1 rw
41 22 0:51 / /home/ann/Drive/inner\040one rw shared:7 master:2 - fuse.pdsfs pds:2 rw
42 22 0:52 / /home/ann/other rw - fuse.sshfs pds:2 rw
"""


class Mounts(unittest.TestCase):
    def setUp(self):
        self.table = mounts.MountTable()
        self.table._mountpoints = mounts.parse(MOUNTINFO)

    def test_only_pdsfs_mounts_are_found(self):
        self.assertEqual(self.table.all(), ["/home/ann/Drive/inner one", "/home/ann/Drive"])
        self.assertIsNone(self.table.find("/home/ann/other/f"))

    def test_longest_mountpoint_and_whole_names_count(self):
        self.assertEqual(self.table.find("/home/ann/Drive/a/b"), "/home/ann/Drive")
        self.assertEqual(self.table.find("/home/ann/Drive/inner one/b"), "/home/ann/Drive/inner one")
        self.assertIsNone(self.table.find("/home/ann/Drives/a"))


class Menu(unittest.TestCase):
    def test_entries_follow_the_state(self):
        every = commands.NAMES
        self.assertEqual(commands.offered(every, "saved", False), ["share", "versions", "open"])
        self.assertEqual(commands.offered(every, "failed", False), ["versions", "retry"])
        self.assertEqual(commands.offered(every, None, True), ["share", "open"])
        self.assertEqual(commands.offered(("open",), "saved", False), ["open"])

    def test_link_is_found_in_the_output(self):
        self.assertEqual(commands.link_in("Link: https://a.test/s/1 (7 d)"), "https://a.test/s/1")
        self.assertIsNone(commands.link_in("nothing was shared"))


class Emblems(unittest.TestCase):
    def test_pause_turns_uploading_into_offline(self):
        shown = {state: states.shown(state, True) for state in ("writing", "committing", "saved", "failed")}
        self.assertEqual(shown, {"writing": "offline", "committing": "offline", "saved": "saved", "failed": "failed"})
        self.assertEqual(states.shown("staged", False), "uploading")

    def test_other_files_have_no_emblem(self):
        self.assertIsNone(states.shown("local", False))
        self.assertIsNone(states.shown("a state of a later version", False))
        self.assertIsNone(states.shown(states.read("/nonexistent"), False))

    def test_each_state_has_an_icon_of_the_package(self):
        icons = os.path.join(os.path.dirname(__file__), "..", "icons", "emblems")
        expected = [f"emblem-pdsfs-{state}.svg" for state in ("failed", "offline", "saved", "uploading")]
        self.assertEqual(sorted(os.listdir(icons)), expected)


class Sockets(unittest.TestCase):
    def test_directories_are_those_of_the_daemon(self):
        self.assertEqual(control.socket_dirs(0, {})[0], "/run/pdsfs")
        self.assertEqual(control.socket_dirs(7, {})[0], "/run/user/7/pdsfs")
        self.assertEqual(control.socket_dirs(7, {"XDG_RUNTIME_DIR": "/x"})[0], "/x/pdsfs")

    def test_directory_open_to_others_is_not_used(self):
        with tempfile.TemporaryDirectory() as directory:
            open(os.path.join(directory, "1.sock"), "w").close()
            with mock.patch.object(control, "socket_dirs", lambda: [directory]):
                self.assertEqual(len(control.sockets()), 1)
                os.chmod(directory, 0o750)
                self.assertEqual(control.sockets(), [])


class DolphinAction(unittest.TestCase):
    """Fake programs record their arguments."""

    SOURCE = os.path.join(os.path.dirname(__file__), "..", "file-action")

    def run_main(self, mountpoints, *arguments):
        loader = importlib.machinery.SourceFileLoader("file_action", self.SOURCE)
        action = importlib.util.module_from_spec(importlib.util.spec_from_loader("file_action", loader))
        with tempfile.TemporaryDirectory() as directory:
            calls = os.path.join(directory, "calls")
            for name in ("notify-send", "dbus-send"):
                self.script(directory, name, f'echo {name} "$@" >>{calls}')
            self.script(directory, "pdsfs", '[ "$2" = --help ] || echo "https://drive.test/s/1"')
            found = mock.patch.object(mounts, "parse", lambda _: mountpoints)
            with mock.patch.dict(os.environ, {"PATH": f"{directory}:{os.environ['PATH']}", "LC_ALL": "C"}), found:
                os.environ.pop("PDSFS", None)
                loader.exec_module(action)
                code = action.main(*arguments)
            with open(calls) as file:
                return code, file.read()

    @staticmethod
    def script(directory, name, text):
        path = os.path.join(directory, name)
        with open(path, "w") as file:
            file.write(f"#!/bin/sh\n{text}\n")
        os.chmod(path, 0o755)

    def test_link_goes_to_the_clipboard(self):
        code, calls = self.run_main(["/mnt/drive"], "share", "/mnt/drive/f")
        self.assertEqual(code, 0)
        self.assertIn("setClipboardContents string:https://drive.test/s/1", calls)
        self.assertIn("The link is in the clipboard", calls)

    def test_file_elsewhere_is_refused(self):
        code, calls = self.run_main(["/mnt/drive"], "share", "/mnt/other/f")
        self.assertEqual(code, 1)
        self.assertIn("The file is not on a PDS drive", calls)
        self.assertNotIn("string:", calls)


class Words(unittest.TestCase):
    def test_locale_selects_the_language(self):
        self.assertTrue(words.is_chinese({"LANG": "zh_CN.UTF-8"}))
        self.assertFalse(words.is_chinese({"LC_ALL": "C", "LANG": "zh_CN.UTF-8"}))
        self.assertFalse(words.is_chinese({}))

    def test_languages_have_the_same_placeholders(self):
        for english, chinese in words.TEXTS.values():
            self.assertEqual(re.findall(r"{\w+}", english), re.findall(r"{\w+}", chinese))
            self.assertRegex(chinese, "[\u4e00-\u9fff]")


if __name__ == "__main__":
    unittest.main()
