#!/bin/bash
# Presses Tab in real shells: bash, zsh and fish complete commands, flags, drives, accounts and directories of pdsfs.
# Exits with 0 if every shell completes everything.
#
#   tests/suites/completion.sh
#
# Needs bash with bash-completion's loader or none, zsh, fish and python3 (Debian: zsh fish). Builds nothing: run
# `cargo build` first, or set PDSFS to a binary.
set -u
here=$(dirname "$(readlink -f "$0")")
pdsfs=$(readlink -f "${PDSFS:-$here/../../target/debug/pdsfs}")
for tool in bash zsh fish python3 "$pdsfs"; do
    command -v "$tool" >/dev/null || { echo "$tool is missing" >&2; exit 2; }
done
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/bin" "$work/state/accounts" "$work/zsh" "$work/Pictures" "$work/home"
ln -s "$pdsfs" "$work/bin/pdsfs"
printf '[drives.holiday]\nmountpoint = "/mnt/holiday"\n' >"$work/config.toml"
: >"$work/state/accounts/backup.json"
export PATH="$work/bin:$PATH" PDSFS_CONFIG="$work/config.toml" STATE_DIRECTORY="$work/state" HOME="$work/home"
pdsfs completions bash >"$work/bash"
pdsfs completions fish >"$work/pdsfs.fish"
# As a package installs it: zsh reads the file at the first Tab.
pdsfs completions zsh >"$work/zsh/_pdsfs"
python3 "$here/completion.py" "$work"
