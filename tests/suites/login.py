"""Presses the buttons of the login page in a real browser with WebDriver. Called by login.sh."""

import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.error
import urllib.request

PDSFS, ENDPOINT, DRIVER, WORK = sys.argv[1:5]
PATIENCE_S = 60
CHROMIUM = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]


class Browser:
    """A window of Chromium."""

    open_ones = []

    def __init__(self, name):
        arguments = CHROMIUM + [f"--user-data-dir={WORK}/browser-{name}"]
        options = {"args": arguments}
        wanted = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        self.session = f"/session/{self.ask('POST', '/session', {'capabilities': wanted})['sessionId']}"
        self.open_ones.append(self)

    @staticmethod
    def ask(method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(DRIVER + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.read().decode()}") from None

    def open(self, url):
        self.ask("POST", f"{self.session}/url", {"url": url})

    def find(self, selector):
        found = self.ask("POST", f"{self.session}/element", {"using": "css selector", "value": selector})
        return f"{self.session}/element/{next(iter(found.values()))}"

    def text(self, selector):
        return self.ask("GET", self.find(selector) + "/text")

    def click(self, selector):
        self.ask("POST", self.find(selector) + "/click", {})

    def url(self):
        return self.ask("GET", f"{self.session}/url")

    def close(self):
        self.open_ones.remove(self)
        self.ask("DELETE", self.session)


def check(holds, what, *seen):
    if not holds:
        raise AssertionError(f"{what}: {seen}")
    print(f"ok: {what}", flush=True)


def begin(name, *more):
    """Starts a login and returns the process and the printed URL."""
    arguments = [PDSFS, "login", name, "--endpoint", ENDPOINT, "--client-id", "app", "--no-browser", "--store", "file"]
    login = subprocess.Popen([*arguments, *more], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output = ""
    for line in login.stderr:
        output += line
        if "/v2/oauth/authorize?" in line:
            return login, line.strip()
    raise AssertionError(f"no URL was printed: {output}")


def end(login):
    _, output = login.communicate(timeout=PATIENCE_S)
    return login.returncode, output


def wait_for(look):
    """Polls, because the browser follows redirects without an event."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if found := look():
                return found
        except AssertionError:
            pass
        time.sleep(0.05)
    raise AssertionError("timed out")


def allow():
    browser = Browser("allow")
    login, page = begin("work", "--port", "0")
    browser.open(page)
    check(browser.text("#client") == "app", "the page names the app")
    browser.click("#allow")
    outcome = wait_for(lambda: browser.text("#outcome"))
    check("You are logged in as" in outcome, "the last page reports success", outcome)
    check(browser.url().startswith("http://127.0.0.1:"), "the browser is redirected to this machine")
    code, output = end(login)
    check(code == 0 and "logged in as owner" in output, "Allow logs in", code, output)
    account = pathlib.Path(WORK, "state", "accounts", "work.json")
    check(account.stat().st_mode & 0o777 == 0o600, "only the owner can read the account")
    drives = subprocess.run([PDSFS, "drives", "work", "--json"], capture_output=True, text=True, timeout=PATIENCE_S)
    check([d["drive_id"] for d in json.loads(drives.stdout)] == ["1", "2"], "the account works", drives)
    browser.close()


def deny():
    browser = Browser("deny")
    login, page = begin("denied", "--port", "0")
    browser.open(page)
    browser.click("#deny")
    outcome = wait_for(lambda: browser.text("#outcome"))
    check("login failed" in outcome, "the last page reports the denial", outcome)
    code, output = end(login)
    check(code == 1 and "denied" in output and "choose Allow" in output, "Deny is an error with a remedy", code, output)
    check(not os.path.exists(f"{WORK}/state/accounts/denied.json"), "nothing is stored after Deny")
    browser.close()


def paste():
    browser = Browser("paste")
    login, page = begin("pasted", "--paste", "--port", "9")
    browser.open(page)
    browser.click("#allow")
    url = wait_for(lambda: "code=" in (there := browser.url()) and there)
    login.stdin.write(url + "\n")
    login.stdin.flush()
    code, output = end(login)
    check(code == 0, "the URL of an unreachable page can be pasted", code, output)
    browser.close()


def unknown():
    browser = Browser("unknown")
    browser.open(f"{ENDPOINT}/v2/oauth/authorize?client_id=stranger&redirect_uri=http://127.0.0.1:9/&response_type=code")
    complaint = browser.text("#complaint")
    check("not known" in complaint, "the page for an unknown app has no buttons", complaint)
    browser.close()


try:
    for test in (allow, deny, paste, unknown):
        test()
finally:
    # chromedriver does not close its browsers.
    for browser in list(Browser.open_ones):
        browser.close()
print("all passed")
