"""Loads the extension of pdsfs in Caja."""

import os
import sys

from gi.repository import Caja

# The file is a symlink in the directory of the extensions.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
from pdsfs_desktop import extension  # noqa: E402

PdsfsCaja = extension.adapter(Caja)
