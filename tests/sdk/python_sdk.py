#!/usr/bin/env python3
"""Tests a running server with the official Python SDK. Fails at the first difference.

    pip install alibabacloud_pds20220301==5.1.4
    python3 tests/sdk/python_sdk.py 127.0.0.1:8080 TOKEN

The SDK makes all API calls. It has no calls for bytes: parts are sent to the upload URLs of the server, and content is
read from its download URLs.
"""
import hashlib
import random
import struct
import sys
import urllib.error
import urllib.request

from alibabacloud_credentials.client import Client as Credential
from alibabacloud_credentials.models import Config as CredentialConfig
from alibabacloud_pds20220301 import models as m
from alibabacloud_pds20220301.client import Client
from alibabacloud_tea_openapi.models import Config

DRIVE = '1'
PART = 64 * 1024


def chaining_value(data):
    """The SHA-1 chaining value after a whole number of blocks."""
    h = [0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0]
    rol = lambda x, n: ((x << n) | (x >> (32 - n))) & 0xFFFFFFFF
    for at in range(0, len(data), 64):
        w = list(struct.unpack('>16I', data[at:at + 64]))
        for t in range(16, 80):
            w.append(rol(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1))
        a, b, c, d, e = h
        for t in range(80):
            if t < 20:
                f, k = (b & c) | (~b & d), 0x5A827999
            elif t < 40:
                f, k = b ^ c ^ d, 0x6ED9EBA1
            elif t < 60:
                f, k = (b & c) | (b & d) | (c & d), 0x8F1BBCDC
            else:
                f, k = b ^ c ^ d, 0xCA62C1D6
            a, b, c, d, e = (rol(a, 5) + f + e + k + w[t]) & 0xFFFFFFFF, a, rol(b, 30), c, d
        h = [(x + y) & 0xFFFFFFFF for x, y in zip(h, (a, b, c, d, e))]
    return h


def http(method, url, body=None, headers=None):
    request = urllib.request.Request(url, data=body, method=method, headers={'Content-Type': '', **(headers or {})})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.status, answer.headers, answer.read()


def same(what, got, want):
    if got != want:
        raise SystemExit(f'{what}: {got!r}, not {want!r}')


def refused(what, call, code):
    try:
        call()
    except Exception as error:  # the SDK has several classes for it
        same(what, getattr(error, 'code', str(error)), code)
        return
    raise SystemExit(f'{what}: not refused')


class Script:
    def __init__(self, endpoint, token):
        credential = Credential(CredentialConfig(type='bearer', bearer_token=token))
        self.client = Client(Config(endpoint=endpoint, protocol='http', credential=credential))

    def parts(self, content):
        parts = []
        for number, at in enumerate(range(0, len(content), PART), 1):
            state = chaining_value(content[:at]) if at else []
            ctx = m.CreateFileRequestPartInfoListParallelSha1Ctx(h=state, part_offset=at)
            parts.append(m.CreateFileRequestPartInfoList(part_number=number, parallel_sha_1ctx=ctx))
        return parts

    def upload(self, parent, name, content, mode='refuse', file_id=None):
        """Creates or overwrites a file; sends the parts in random order, one of them twice."""
        begun = self.client.create_file(m.CreateFileRequest(
            drive_id=DRIVE, parent_file_id=parent, name=name, type='file', check_name_mode=mode, file_id=file_id,
            size=len(content), parallel_upload=True, part_info_list=self.parts(content),
            local_modified_at='2026-01-02T03:04:05Z',
            user_tags=[m.UserTag(key='k', value='v')]))
        same('create: status', begun.status_code, 201)
        urls = [part.upload_url for part in begun.body.part_info_list]
        order = list(range(len(urls)))
        random.shuffle(order)
        for index in order + order[:1]:
            status, headers, _ = http('PUT', urls[index], content[index * PART:(index + 1) * PART])
            same('PUT: status', status, 200)
            if not headers.get('ETag', '').startswith('"'):
                raise SystemExit(f'PUT: no etag in {headers}')
        listed = self.client.list_uploaded_parts(m.ListUploadedPartsRequest(
            drive_id=DRIVE, file_id=begun.body.file_id, upload_id=begun.body.upload_id, limit=100)).body
        same('list_uploaded_parts', [part.part_number for part in listed.uploaded_parts],
             list(range(1, len(urls) + 1)))
        done = self.client.complete_file(m.CompleteFileRequest(
            drive_id=DRIVE, file_id=begun.body.file_id, upload_id=begun.body.upload_id)).body
        same('complete: hash', done.content_hash, hashlib.sha1(content).hexdigest().upper())
        same('complete: size', done.size, len(content))
        same('complete: user_tags', done.user_tags, {'k': 'v'})
        same('complete: local_modified_at', done.local_modified_at, '2026-01-02T03:04:05Z')
        return done

    def get(self, file_id):
        return self.client.get_file(m.GetFileRequest(drive_id=DRIVE, file_id=file_id)).body

    def names(self, parent):
        names, marker = [], ''
        while True:
            page = self.client.list_file(m.ListFileRequest(
                drive_id=DRIVE, parent_file_id=parent, limit=1, marker=marker, order_by='name',
                order_direction='ASC')).body
            names += [item.name for item in page.items]
            marker = page.next_marker
            if not marker:
                return names

    def read(self, file_id, start=None, end=None):
        url = self.client.get_download_url(m.GetDownloadUrlRequest(
            drive_id=DRIVE, file_id=file_id, expire_sec=900)).body.url
        if start is None:
            return http('GET', url)[2]
        status, headers, body = http('GET', url, headers={'Range': f'bytes={start}-{end}'})
        same('ranged GET: status', status, 206)
        return body

    def run(self):
        folder = self.client.create_file(m.CreateFileRequest(
            drive_id=DRIVE, parent_file_id='root', name=f'sdk-{random.getrandbits(64):x}', type='folder',
            check_name_mode='refuse')).body.file_id
        try:
            self.files(folder)
            self.feed_and_batch(folder)
        finally:
            self.client.delete_file(m.DeleteFileRequest(drive_id=DRIVE, file_id=folder))
        refused('get of a deleted folder', lambda: self.get(folder), 'NotFound.File')

    def files(self, folder):
        first, second = random.randbytes(3 * PART + 17), random.randbytes(2 * PART)
        file = self.upload(folder, 'a.bin', first)
        same('read', self.read(file.file_id), first)
        same('ranged read', self.read(file.file_id, 100, PART + 99), first[100:PART + 100])
        existing = self.client.create_file(m.CreateFileRequest(
            drive_id=DRIVE, parent_file_id=folder, name='a.bin', type='file', check_name_mode='refuse')).body
        same('refuse', (existing.exist, existing.file_id), (True, file.file_id))
        over = self.upload(folder, 'a.bin', second, file_id=file.file_id)
        same('overwrite: id', over.file_id, file.file_id)
        if over.revision_id == file.revision_id:
            raise SystemExit('overwrite: the same revision')
        same('read after the overwrite', self.read(file.file_id), second)
        instant = self.client.create_file(m.CreateFileRequest(
            drive_id=DRIVE, parent_file_id=folder, name='b.bin', type='file', size=len(second),
            content_hash=hashlib.sha1(second).hexdigest().upper(), content_hash_name='sha1')).body
        same('instant upload', instant.rapid_upload, True)
        renamed = self.client.update_file(m.UpdateFileRequest(
            drive_id=DRIVE, file_id=file.file_id, name='c.bin', check_name_mode='refuse')).body
        same('rename', renamed.name, 'c.bin')
        same('listing', self.names(folder), ['b.bin', 'c.bin'])
        sub = self.client.create_file(m.CreateFileRequest(
            drive_id=DRIVE, parent_file_id=folder, name='sub', type='folder')).body.file_id
        self.client.move_file(m.MoveFileRequest(drive_id=DRIVE, file_id=file.file_id, to_parent_file_id=sub))
        same('moved', (self.names(folder), self.names(sub)), (['b.bin', 'sub'], ['c.bin']))
        copy = self.client.copy_file(m.CopyFileRequest(
            drive_id=DRIVE, file_id=file.file_id, to_parent_file_id=folder)).body.file_id
        same('copy', self.read(copy), second)
        self.client.trash_file(m.TrashFileRequest(drive_id=DRIVE, file_id=copy))
        refused('get of a trashed file', lambda: self.get(copy), 'NotFound.File')
        self.client.restore_file(m.RestoreFileRequest(drive_id=DRIVE, file_id=copy))
        same('restored', self.get(copy).name, 'c.bin')
        refused('a bad name', lambda: self.client.create_file(m.CreateFileRequest(
            drive_id=DRIVE, parent_file_id=folder, name='a/b', type='file')), 'InvalidParameter.Name')

    def feed_and_batch(self, folder):
        cursor = self.client.delta_get_last_cursor(m.DeltaGetLastCursorRequest(drive_id=DRIVE)).body.cursor
        made = self.client.create_file(m.CreateFileRequest(
            drive_id=DRIVE, parent_file_id=folder, name='fed', type='folder')).body.file_id
        delta = self.client.list_delta(m.ListDeltaRequest(drive_id=DRIVE, cursor=cursor)).body
        same('feed', [(item.op, item.file_id) for item in delta.items], [('create', made)])
        batch = self.client.batch(m.BatchRequest(resource='file', requests=[m.BatchRequestRequests(
            id='1', method='POST', url='/file/get', headers={'Content-Type': 'application/json'}, body={'drive_id': DRIVE, 'file_id': made})])).body
        same('batch', [(answer.id, answer.status) for answer in batch.responses], [('1', 200)])
        drive = self.client.get_drive(m.GetDriveRequest(drive_id=DRIVE)).body
        same('drive', drive.drive_id, DRIVE)


if __name__ == '__main__':
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    Script(sys.argv[1], sys.argv[2]).run()
    print('the SDK and the server agree')
