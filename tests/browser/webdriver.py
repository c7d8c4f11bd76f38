"""A small WebDriver client: chromedriver over plain HTTP, no selenium."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


class BrowserError(AssertionError):
    """The driver refused a command."""


def missing() -> str | None:
    """Why browser tests cannot run here; None if they can."""
    lost = [name for name in ("chromedriver", "chromium") if shutil.which(name) is None]
    return f"{' and '.join(lost)} not installed (Debian: chromium chromium-driver)" if lost else None


class Browser:
    """A headless Chromium; use as a context manager."""

    def __init__(self, profile: Path) -> None:
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0", "--log-level=SEVERE"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._driver.stdout is not None
        port = None
        for line in self._driver.stdout:
            if found := re.search(r"successfully on port (\d+)", line):
                port = found[1]
                break
        if port is None:
            raise BrowserError("chromedriver ended without naming its port")
        self._root = f"http://127.0.0.1:{port}"
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"]
        flags += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
        options = {
            "args": [*flags, f"--user-data-dir={profile}"],
            "binary": shutil.which("chromium"),
            "perfLoggingPrefs": {"enableNetwork": True, "enablePage": False},
        }
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        try:
            made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self._stop_driver()
            raise
        self._session = f"/session/{made['sessionId']}"
        self._call("POST", self._session + "/timeouts", {"script": 55_000})

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._call("DELETE", self._session)
        finally:
            self._stop_driver()

    def _stop_driver(self) -> None:
        self._driver.terminate()
        self._driver.wait(timeout=10)
        if self._driver.stdout is not None:
            self._driver.stdout.close()

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._root + path, content, {"Content-Type": "application/json"}, method=method
        )
        # A proxy set for the machine is not for the loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise BrowserError(json.load(error)["value"]["message"][:800]) from error

    def open(self, place: Path | str) -> None:
        """A file, or an address."""
        address = place if isinstance(place, str) else place.resolve().as_uri()
        self._call("POST", self._session + "/url", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a function body; returns what it returns."""
        return self._call("POST", self._session + "/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str, seconds: float = 5.0) -> Any:
        """Run `script` until it returns something true."""
        until = time.monotonic() + seconds
        while not (value := self.run(script)):
            if time.monotonic() > until:
                raise BrowserError(f"still false after {seconds} s: {script}")
            time.sleep(0.05)
        return value

    def command(self, name: str, **parameters: Any) -> Any:
        """A Chrome DevTools command."""
        return self._call("POST", self._session + "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def window(self, width: int, height: int, *, mobile: bool = False, scheme: str = "light") -> None:
        """Size of the page, and whether it asks for light or dark."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        made = self.command("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(made["data"]))

    def print_pdf(self) -> bytes:
        return base64.b64decode(self._call("POST", self._session + "/print", {}))

    def messages(self) -> list[str]:
        """Warnings and errors on the console since the last call."""
        found = self._call("POST", self._session + "/se/log", {"type": "browser"})
        return [entry["message"] for entry in found if entry["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """Addresses asked for since the last call."""
        found = self._call("POST", self._session + "/se/log", {"type": "performance"})
        events = [json.loads(entry["message"])["message"] for entry in found]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
