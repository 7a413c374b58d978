#!/bin/bash
# Installs the package, logs in over TLS, and enables the unit of the drive.
. /usr/local/lib/checks.sh
export DEBIAN_FRONTEND=noninteractive
login() { echo secret | pdsfs login drive --endpoint https://drive.test:8443 --token; }
strange() { ! login 2>/tmp/login && grep -qi certificate /tmp/login; }
saved() { mounted /mnt/drive && cp "/root/$1" "/mnt/drive/$1"; }

systemctl start drive
s install apt-get -qq -y -o Dpkg::Use-Pty=0 install /pdsfs-1.deb
s fuse3_is_installed_too fusermount3 --version
s ca_certificates_are_installed_too test -s /etc/ssl/certs/ca-certificates.crt
# The hook of ca-certificates has taken the local authority by now; without it, the endpoint is refused.
mv /usr/local/share/ca-certificates/authority.crt /root/ && update-ca-certificates --fresh >/dev/null 2>&1
s unknown_authority_is_refused strange
mv /root/authority.crt /usr/local/share/ca-certificates/ && update-ca-certificates >/dev/null 2>&1
s login_over_tls login
s enable systemctl enable --now pdsfs@drive
s mounted mounted /mnt/drive
head -c 3000000 /dev/urandom >/root/bytes
s a_file_is_saved saved bytes
s stop stop drive
finish INSTALLED
