"""A page of runs on this machine alone: the standard library's server, read-only, no other host and no other file."""

from __future__ import annotations

import base64
import hashlib
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from opmix.errors import OpMixError
from opmix.view.pages import SCRIPT, compared, failed, history, index, listing
from opmix.view.runs import find_runs

HOST = "127.0.0.1"
_OWN_PAGES = "; ".join(
    [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
_REPORTS = (
    "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
)
"""Beside a report's own policy, which somebody who wrote the run folder may have left out: its scripts see no other page and no network."""


class RunServer(ThreadingHTTPServer):
    """Serves the runs below a folder on 127.0.0.1.

    Args:
        root: The folder.
        port: 0: any that is free; `address` says which.

    Raises:
        OpMixError: No folder, or the port is taken.
    """

    daemon_threads = True

    def __init__(self, root: Path, port: int = 0) -> None:
        self.root = root.resolve()
        find_runs(self.root)
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise OpMixError(f"--port: {port} cannot be had ({error}); give another, or 0 for any") from error

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: RunServer
    server_version, sys_version = "opmix", ""

    def do_GET(self) -> None:
        """Answer; nothing that a request says is ever written or run."""
        if self.headers.get("Host", "").rpartition(":")[0] not in (HOST, "localhost"):
            # A page of another site whose name points here would otherwise read it through the browser.
            self._answer(failed("This page answers to 127.0.0.1 alone."), HTTPStatus.FORBIDDEN)
            return
        parts = urlsplit(self.path)
        try:
            self._answer(
                self._page(parts.path, parse_qs(parts.query).get("run", [])), report=parts.path.startswith("/report/")
            )
        except (OpMixError, OSError, RuntimeError, ValueError) as error:  # RuntimeError: a circle of links
            self._answer(failed(str(error)), HTTPStatus.NOT_FOUND)

    def _page(self, path: str, names: list[str]) -> str:
        root = self.server.root
        if path == "/":
            return index(root, find_runs(root))
        if path == "/list":
            return listing(find_runs(root))
        if path == "/compare":
            return compared(root, [self._inside(n).relative_to(root).as_posix() for n in names])
        if path == "/history" and len(names) == 1:
            return history(root, self._inside(names[0]).relative_to(root).as_posix())
        if path.startswith("/report/") and path.endswith("/report.html"):
            name = unquote(path).removeprefix("/report/").removesuffix("/report.html")
            return self._inside(f"{name}/report.html", file=True).read_text(encoding="utf-8")
        raise OpMixError(f"{path}: no such page")

    def _inside(self, name: str, *, file: bool = False) -> Path:
        """A folder below the root, or a file, wherever links lead."""
        place = (self.server.root / name).resolve()
        if not place.is_relative_to(self.server.root) or not (place.is_file() if file else place.is_dir()):
            raise OpMixError(f"{name}: no run below {self.server.root}")
        return place

    def _answer(self, text: str, status: HTTPStatus = HTTPStatus.OK, *, report: bool = False) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", _REPORTS if report else _OWN_PAGES)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal shows where the page is."""
