"""Chromium without a window, driven through the pipe of its DevTools: nothing else is needed."""

from __future__ import annotations

import base64
import itertools
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SECONDS = 20
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--remote-debugging-pipe",
)
Json = dict[str, Any]


class Browser:
    """The process; calls and events are JSON with a zero byte after each."""

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM is not None
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()
        # Chromium reads from 3 and writes to 4, whatever they are called here.
        script = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", CHROMIUM, *FLAGS, f"--user-data-dir={folder}"],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._numbers = itertools.count(1)
        self._answers: dict[int, queue.Queue[Json]] = {}
        self.listeners: dict[str, Callable[[Json], None]] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def call(self, method: str, session: str = "", **params: Any) -> Json:
        number = next(self._numbers)
        answer: queue.Queue[Json] = queue.Queue()
        self._answers[number] = answer
        message = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        found = answer.get(timeout=SECONDS)
        assert "error" not in found, f"{method}: {found['error']}"
        result: Json = found["result"]
        return result

    def close(self) -> None:
        self.call("Browser.close")
        self._process.wait(SECONDS)
        self._reader.join(SECONDS)
        os.close(self._out)

    def _read(self) -> None:
        with os.fdopen(self._in, "rb") as stream:
            rest = b""
            while data := stream.read1(1 << 20):
                *messages, rest = (rest + data).split(b"\0")
                for text in messages:
                    message = json.loads(text)
                    if "id" in message:
                        self._answers.pop(message["id"]).put(message)
                    elif listener := self.listeners.get(message.get("sessionId", "")):
                        listener(message)


class Page:
    """A tab.

    Attributes:
        complaints: errors, and what its policy refused.
        requests: addresses that it asked for.
    """

    def __init__(self, browser: Browser, width: int = 1280, height: int = 900) -> None:
        self._browser = browser
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._dialogs: queue.Queue[str] = queue.Queue()
        self._target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=self._target, flatten=True)
        self._session: str = attached["sessionId"]
        browser.listeners[self._session] = self._note
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.call(f"{domain}.enable")
        self.size(width, height)

    def call(self, method: str, **params: Any) -> Json:
        return self._browser.call(method, self._session, **params)

    def size(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def scheme(self, name: str) -> None:
        """``dark`` or ``light``."""
        feature = {"name": "prefers-color-scheme", "value": name}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def close(self) -> None:
        """Close the tab."""
        self._browser.call("Target.closeTarget", targetId=self._target)
        del self._browser.listeners[self._session]

    def downloads_to(self, folder: Path) -> None:
        """Where files are saved."""
        self._browser.call(
            "Browser.setDownloadBehavior",
            behavior="allow",
            downloadPath=str(folder),
            eventsEnabled=True,
        )

    def downloaded(self, click: str) -> None:
        """Click on what saves a file, and wait until it is there."""
        saved = threading.Event()

        def note(event: Json) -> None:
            if event["params"].get("state") == "completed":
                saved.set()

        self._browser.listeners[""] = note
        self.click(click)
        assert saved.wait(SECONDS)

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, expression: str) -> Any:
        """The value of an expression, or of its promise."""
        found = self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until a condition holds in the page."""
        looks = f"""new Promise((resolve, reject) => {{
            const end = performance.now() + {SECONDS * 900};
            const look = () => {{
                if ({condition}) resolve(true);
                else if (performance.now() > end) resolve(false);
                else setTimeout(look, 20);
            }};
            look();
        }})"""
        text = "document.body.innerText"
        assert self.value(looks), f"never: {condition}; the page says: {self.value(text)}"

    def dialog(self, *, accept: bool) -> str:
        """Answer a question of the browser itself; returns its kind, such as ``beforeunload``."""
        kind = self._dialogs.get(timeout=SECONDS)
        self.call("Page.handleJavaScriptDialog", accept=accept)
        return kind

    def text(self, selector: str) -> str:
        return str(self.value(f"document.querySelector({selector!r}).innerText"))

    def click(self, selector: str) -> None:
        self.value(f"document.querySelector({selector!r}).click()")

    def choose(self, selector: str, *files: Path) -> None:
        """Choose files in an input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def drop(self, files: Mapping[str, bytes]) -> None:
        """Let files fall on the page."""
        named = [(name, base64.b64encode(data).decode()) for name, data in files.items()]
        self.value(f"""(() => {{
            const data = new DataTransfer();
            for (const [name, text] of {json.dumps(named)}) {{
                const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
                data.items.add(new File([bytes], name));
            }}
            document.dispatchEvent(new DragEvent('drop', {{dataTransfer: data, cancelable: true}}));
        }})()""")

    def key(
        self, key: str, kinds: Sequence[str] = ("keyDown", "keyUp"), modifiers: int = 0
    ) -> None:
        """Press a key; of ``modifiers`` 2 is Ctrl and 8 Shift."""
        for kind in kinds:
            is_text = kind == "keyDown" and len(key) == 1 and not modifiers
            text = {"text": key} if is_text else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, modifiers=modifiers, **text)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def drag(self, *places: tuple[float, float], **more: Any) -> None:
        """Draw a line with the left button."""
        kinds = ["mousePressed", *["mouseMoved"] * (len(places) - 1)]
        pressed = {"button": "left", "clickCount": 1, **more}
        for kind, (x, y) in zip(kinds, places, strict=True):
            self.mouse(kind, x, y, buttons=1, **pressed)
        self.mouse("mouseReleased", *places[-1], **pressed)

    def swipe(self, *places: tuple[float, float]) -> None:
        """Draw a line with a finger."""
        kinds = ["touchStart", *["touchMove"] * (len(places) - 1)]
        for kind, (x, y) in zip(kinds, places, strict=True):
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """A screenshot, of what is in view or of all."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _note(self, event: Json) -> None:
        method, params = event["method"], event["params"]
        if method == "Page.javascriptDialogOpening":
            self._dialogs.put(params["type"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")


@contextmanager
def browsing() -> Iterator[Browser]:
    """A browser with a profile of its own; it is closed at the end."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as folder:
        browser = Browser(Path(folder))
        try:
            yield browser
        finally:
            browser.close()
