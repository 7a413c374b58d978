"""Plays a user with a browser: presses Allow on the page of `pdsfs serve` and prints the redirect URL.

    consent.py PAGE
"""

import html
import http.client
import re
import sys
import urllib.parse

PAGE = urllib.parse.urlsplit(sys.argv[1])


def ask(method, path, body=None, headers={}):
    drive = http.client.HTTPConnection(PAGE.hostname, PAGE.port, timeout=30)
    drive.request(method, path, body, headers)
    answer = drive.getresponse()
    return answer, answer.read().decode()


answer, shown = ask("GET", f"{PAGE.path}?{PAGE.query}")
hidden = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', shown)
fields = [(name, html.unescape(value)) for name, value in hidden]
headers = {
    "Content-Type": "application/x-www-form-urlencoded",
    "Cookie": (answer.headers["Set-Cookie"] or "").split(";")[0],
    "Origin": f"{PAGE.scheme}://{PAGE.netloc}",
}
answer, text = ask("POST", PAGE.path, urllib.parse.urlencode([*fields, ("decision", "allow")]), headers)
if answer.status != 303:
    sys.exit(f"the page answers {answer.status}: {text}")
print(answer.headers["Location"])
