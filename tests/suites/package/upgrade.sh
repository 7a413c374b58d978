#!/bin/bash
# The mount of the boot, an upgrade, a removal and a purge of the package while the drive is mounted.
. /usr/local/lib/checks.sh
export DEBIAN_FRONTEND=noninteractive
upgrade() { apt-get -qq -y -o Dpkg::Use-Pty=0 install /pdsfs-2.deb >/tmp/upgrade 2>&1; }
names_unit() { grep -qx "  systemctl restart pdsfs@drive.service" /tmp/upgrade || { cat /tmp/upgrade; return 1; }; }
program() { readlink "/proc/$(prop drive MainPID)/exe"; }
old_program() { [ "$(program)" = '/usr/bin/pdsfs (deleted)' ]; }
shows() { mounted /mnt/drive && cmp "/root/$1" "/mnt/drive/$1"; }
removed() { apt-get -qq -y -o Dpkg::Use-Pty=0 "$@" pdsfs; }
open_file() { mounted /mnt/drive && exec 9>/mnt/drive/open && cat /root/bytes >&9; }

s mounted_at_boot soon mounted /mnt/drive
s the_file_is_there shows bytes
s stop stop drive
s start start drive
s upgrade upgrade
s upgrade_names_the_old_mount names_unit
s upgrade_interrupts_no_mount shows bytes
s the_mount_runs_the_old_program old_program
s restart systemctl restart pdsfs@drive
s the_mount_runs_the_new_program test "$(program)" = /usr/bin/pdsfs
s install_again upgrade
s no_old_mount_is_named not names_unit
cp /root/bytes /root/open
s a_file_is_open open_file
s remove removed remove
exec 9>&-
s remove_unmounts not mounted /mnt/drive
s remove_ends_the_daemon not pgrep -f '/usr/bin/pdsfs mount'
s remove_ends_the_broker soon not pgrep -f '/usr/bin/pdsfs broker'
s account_is_kept test -d /var/lib/pdsfs
s install_after_remove upgrade
s start_after_remove start drive
s the_open_file_was_saved shows open
s purge removed purge
s purge_unmounts not mounted /mnt/drive
s purge_ends_the_daemon not pgrep -f '/usr/bin/pdsfs mount'
s purge_ends_the_broker soon not pgrep -f '/usr/bin/pdsfs broker'
s purge_removes_the_state test ! -e /var/lib/pdsfs -a ! -e /var/cache/pdsfs
s purge_removes_the_links test ! -L /etc/systemd/system/multi-user.target.wants/pdsfs@drive.service
s configuration_is_kept test -s /etc/pdsfs/config.toml
finish UPGRADED
