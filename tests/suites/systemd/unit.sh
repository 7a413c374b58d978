#!/bin/bash
# Tests of the system unit beyond those of every FUSE unit: status, watchdog, exit codes, extended stop timeout, and no
# sleep during an upload.
. /usr/local/lib/checks.sh
status_has() { prop "$1" StatusText | grep -q "$2"; }
is_restarted() { [ "$(prop cloud ActiveState)" = active ] && [ "$(prop cloud MainPID)" != "$1" ] && mountpoint -q /mnt/cloud && ls /mnt/cloud >/dev/null; }
s verify systemd-analyze verify --man=no pdsfs@cloud.service pdsfs-broker.socket pdsfs-broker@.service
s start start cloud
[ "$(prop cloud MainPID)" != 0 ] || { finish PDSFS; exit 1; }
s status soon status_has cloud 'nothing to save'
s mount_is_in_host_namespace grep -q ' /mnt/cloud .*user_id=0,group_id=0' /proc/1/mountinfo
daemon() { grep -qE "$1" "/proc/$(prop cloud MainPID)/status"; }
s no_new_privileges daemon '^NoNewPrivs:.*1'
s daemon_is_no_root daemon "^Uid:.$(id -u pdsfs).$(id -u pdsfs).$(id -u pdsfs)"
for set in Inh Prm Eff Bnd Amb; do s "daemon_has_no_capability_$set" daemon "^Cap$set:.0000000000000000"; done
s daemon_has_a_system_call_filter daemon '^Seccomp:.2'
exposure() { systemd-analyze security --no-pager "$1" | grep -i 'overall exposure' | grep -oE '[0-9]+\.[0-9]+'; }
s "exposure ($(exposure pdsfs@cloud.service))" test "$(exposure pdsfs@cloud.service | tr -d .)" -le 25
p=$(prop cloud MainPID)
kill -STOP "$p"
s watchdog soon is_restarted "$p"
s watchdog_is_logged grep -q 'Watchdog timeout' <(journalctl -u pdsfs@cloud --no-pager)
p=$(prop cloud MainPID)
kill -KILL "$p"
s killed_daemon_is_restarted soon is_restarted "$p"
s one_mount test "$(grep -c ' /mnt/cloud ' /proc/mounts)" = 1
brokers() { pgrep -fc '/usr/bin/pdsfs broker'; }
s one_broker test "$(brokers)" = 1
p=$(prop cloud MainPID)
pkill -KILL -f '/usr/bin/pdsfs broker'
s daemon_without_broker_is_restarted soon is_restarted "$p"
s one_mount_again test "$(grep -c ' /mnt/cloud ' /proc/mounts) $(brokers)" = "1 1"
outside() {
    runuser -u pdsfs -- env CACHE_DIRECTORY=/tmp pdsfs mount --config /etc/pdsfs/config.toml --broker /run/pdsfs-broker/socket \
        cloud 2>/tmp/outside
    grep -q 'only a process of pdsfs@cloud.service' /tmp/outside || { cat /tmp/outside; return 1; }
}
s broker_serves_units_only outside
systemctl start pdsfs@none 2>/dev/null
s unknown_name_is_not_retried soon ended none failed exit-code
s unknown_name_exits_with_2 test "$(prop none ExecMainStatus) $(prop none NRestarts)" = "2 0"
s slow_start start slow
s two_mounts_at_once mounted /mnt/cloud
exec 9>/mnt/slow/f
head -c 6000000 /dev/urandom >/tmp/f && cat /tmp/f >&9
s status_shows_bytes_left soon status_has slow 'saving: 1 file, .* left'
inhibits() { systemd-inhibit --list --no-legend --no-pager | grep -q 'pdsfs.*shutdown:sleep.*left'; }
s sleep_is_inhibited soon inhibits
a=$(date +%s)
systemctl stop pdsfs@slow
s "stop_exceeds_base_timeout ($(($(date +%s) - a)) s)" test $(($(date +%s) - a)) -gt 6
s slow_stop_is_clean ended slow inactive success
s inhibitor_is_released soon not inhibits
exec 9>&-
s slow_starts_again start slow
s file_is_saved cmp /tmp/f /mnt/slow/f
exec 9>/mnt/cloud/precious
head -c 3000000 /tmp/f >&9
systemctl stop pdsfs-drive
systemctl stop pdsfs@cloud
s lost_file_is_a_failure soon ended cloud failed exit-code
s lost_file_is_named grep -q 'NOT SAVED /precious' <(journalctl -u pdsfs@cloud --no-pager)
s nothing_left_mounted bash -c '! grep -q " /mnt/cloud " /proc/mounts'
systemctl stop 'pdsfs@*'
s no_broker_is_left soon test "$(brokers)" = 0
systemd-analyze security --no-pager pdsfs@cloud.service | grep -i 'overall exposure'
systemd-analyze security --no-pager pdsfs-broker@1.service | grep -i 'overall exposure'
finish PDSFS
