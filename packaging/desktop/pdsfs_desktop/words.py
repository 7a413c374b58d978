"""Texts for a person, in English and Simplified Chinese."""

import os

TEXTS = {
    "share": ("Copy share link", "复制分享链接"),
    "versions": ("Versions", "历史版本"),
    "open": ("Open on the web", "在网页中打开"),
    "retry": ("Retry the upload", "重新上传"),
    "copied": ("The link is in the clipboard", "链接已复制到剪贴板"),
    "retried": ("The upload starts again", "已重新开始上传"),
    "failed": ("{action}: failed", "{action}：失败"),
    "no_mount": ("No drive is mounted", "没有已挂载的网盘"),
    "no_mount_remedy": ("In a terminal, run: pdsfs mount NAME", "请在终端中运行：pdsfs mount NAME"),
    "elsewhere": ("The file is not on a PDS drive", "该文件不在 PDS 网盘上"),
    "no_command": ("The installed pdsfs cannot do this", "已安装的 pdsfs 不支持此操作"),
}


def is_chinese(environ=os.environ):
    """Whether the locale of messages is Chinese. The first variable that is set decides, as in gettext."""
    values = (environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return next(filter(None, values), "").startswith("zh")


def text(key, **values):
    return TEXTS[key][is_chinese()].format(**values)
