#!/bin/bash
# Checks that the enabled units and fstab lines are mounted after a boot, without a login.
. /usr/local/lib/checks.sh
s booted soon test "$(systemctl is-system-running --wait)" = running
s system_unit mounted /mnt/cloud
s fstab mounted /mnt/boot
s user_unit soon mounted /home/ann/Drive
s all_mounts_show_the_file cmp /mnt/cloud/tab /mnt/boot/tab
s user_mount_shows_the_file cmp <(runuser -u ann -- cat /home/ann/Drive/tab) /mnt/cloud/tab
s noauto not mounted /mnt/tab
finish BOOT
