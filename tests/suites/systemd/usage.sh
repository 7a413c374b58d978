#!/bin/bash
# Typical use of the units: accounts as systemd credentials, the unit of a user, lines of fstab. Also prepares the state
# that boot.sh checks after the next boot.
. /usr/local/lib/checks.sh
accounts=/var/lib/pdsfs/accounts
start cloud || echo "  FAIL the drive to compare with"

# Accounts as systemd credentials.
s token_alone start token
s token_works arrives /mnt/token/token /mnt/cloud/token
s access_key start key
s access_key_works arrives /mnt/key/key /mnt/cloud/key
s encrypt bash -c 'systemd-creds encrypt /root/sealed /etc/credstore.encrypted/pdsfs.sealed && rm /root/sealed'
s encrypted_service_app start sealed
s encrypted_service_app_works arrives /mnt/sealed/sealed /mnt/cloud/sealed
s refresh_token start rotated
s refresh_token_works arrives /mnt/rotated/rotated /mnt/cloud/rotated
s credentials_are_private not runuser -u ben -- ls /run/credentials/pdsfs@key.service
# Access tokens expire after 15 s here, and an idle mount refreshes none.
renewed() { ls "/mnt/$1" >/dev/null && journalctl -b -u "pdsfs@$1" --no-pager | grep -q 'access token refreshed'; }
s service_app_renews soon renewed sealed
s refresh_token_renews soon renewed rotated
s renewed_app_works arrives /mnt/sealed/sealed /mnt/cloud/sealed
# The encrypted credential is never stored in clear text; only the rotated token must be stored.
s nothing_stored test "$(ls $accounts)" = rotated.json
s rotated_is_private test "$(stat -c '%a %U' $accounts/rotated.json)" = "600 pdsfs"
s rotated_stops stop rotated
s rotated_goes_on start rotated
s rotated_works arrives /mnt/rotated/again /mnt/cloud/again
s new_credential cp /root/rotated-2 /etc/credstore/pdsfs.rotated
s new_credential_restart systemctl restart pdsfs@rotated
s new_credential_works arrives /mnt/rotated/new /mnt/cloud/new
rm $accounts/rotated.json
s spent_is_refused not systemctl start pdsfs@spent
s spent_token_error_has_remedy grep -q 'new credential pdsfs.spent' <(journalctl -u pdsfs@spent --no-pager)
systemctl stop pdsfs@spent
s no_secret_in_the_journal not grep -qFf /root/secrets <(journalctl --no-pager)
s no_secret_in_the_unit not grep -qFf /root/secrets <(systemctl show 'pdsfs@*')
for name in token key sealed rotated; do s "stop_$name" stop "$name"; done

# The unit of a user.
user() { runuser -u "$1" -- env "XDG_RUNTIME_DIR=/run/user/$(id -u "$1")" HOME="/home/$1" timeout 60 "${@:2}"; }
users() { user ann systemctl --user "$@"; }
drive=/home/ann/Drive
s linger loginctl enable-linger ann
s user_manager soon test -S /run/user/1000/systemd/private
s user_verify user ann systemd-analyze --user verify --man=no /usr/lib/systemd/user/pdsfs@.service
s user_start users enable --now pdsfs@home
s user_mounted mounted $drive
s user_writes user ann cp /tmp/bytes $drive/ann
s user_is_seen soon cmp -s /tmp/bytes /mnt/cloud/ann
s user_owns test "$(user ann stat -c %U $drive/ann)" = ann
s others_are_kept_out not user ben ls $drive
s root_is_kept_out not ls $drive
s status_of_user grep -q $drive <(user ann pdsfs status)
s status_of_other not grep -q $drive <(user ben pdsfs status)
socket=$(find /run/user/1000/pdsfs -type s)
s socket_is_private test "$(stat -c '%a %U' "$socket" "$(dirname "$socket")" | xargs)" = "600 ann 700 ann"
user_pid() { users show -p MainPID --value pdsfs@home; }
p=$(user_pid)
kill -KILL "$p"
back() { [ "$(user_pid)" != "$p" ] && [ "$(users is-active pdsfs@home)" = active ] && user ann ls $drive >/dev/null; }
s user_daemon_is_restarted soon back
s one_mount test "$(grep -c " $drive " /proc/mounts)" = 1
user ann bash -c "exec 9>$drive/open; cat /tmp/bytes >&9; sleep 60" &
sleep 1
s user_stop users stop pdsfs@home
s user_stop_is_clean test "$(users show -p Result --value pdsfs@home)" = success
s user_mount_is_gone not mounted $drive
s user_open_file_is_saved soon cmp -s /tmp/bytes /mnt/cloud/open

# Lines of fstab.
s fstab_start systemctl start mnt-tab.mount
s fstab_mounted mounted /mnt/tab
s fstab_writes arrives /mnt/tab/tab /mnt/cloud/tab
s fstab_allows_other_users user ben cmp /tmp/bytes /mnt/tab/tab
s fstab_stop systemctl stop mnt-tab.mount
s fstab_is_gone not mounted /mnt/tab
s fstab_is_clean test "$(systemctl show -p Result --value mnt-tab.mount)" = success
s fstab_leaves_no_process soon not pgrep -f 'pdsfs.*/mnt/tab'
s fstab_mount_8 bash -c 'mount /mnt/tab && cmp /tmp/bytes /mnt/tab/tab && umount /mnt/tab'
if [ -e /dev/autofs ]; then
    s automount_waits not mounted /mnt/auto
    s automount cmp /tmp/bytes /mnt/auto/tab
    s automount_mounted mounted /mnt/auto
    s automount_stop systemctl stop mnt-auto.mount
    s automount_again cmp /tmp/bytes /mnt/auto/tab
else
    echo "  -- automount: this container has no /dev/autofs"
fi
s enable systemctl enable pdsfs@cloud
finish USAGE
