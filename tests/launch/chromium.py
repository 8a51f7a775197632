"""A headless Chromium, spoken to by its DevTools protocol over a pipe: no driver, no open port, no package."""

import base64
import fcntl
import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any

ANSWER_SECONDS = 30
_FLAGS = [
    "--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    # nothing but this machine is found by any name
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip


class Browser:
    """One tab. `requests` are the addresses it asked for, `complaints` the console's errors and warnings."""

    def __init__(self, program: str, folder: Path) -> None:
        """`folder` takes the browser's profile."""
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._rest, self._calls, self._session = b"", 0, ""
        ours, theirs = os.pipe(), os.pipe()
        # bash gives it 3 to read from and 4 to write to; what it is given must lie above these
        read, write = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (ours[0], theirs[1]))
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        command = [program, *_FLAGS, *sandbox, f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "bash", *command],
            pass_fds=(read, write), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for fd in (ours[0], theirs[1], read, write):
            os.close(fd)
        self._out, self._in = ours[1], theirs[0]
        (tab,) = [each for each in self._targets() if each["type"] == "page"]
        found = self.call("Target.attachToTarget", targetId=tab["targetId"], flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _targets(self) -> list[dict[str, Any]]:
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            found: list[dict[str, Any]] = self.call("Target.getTargets")["targetInfos"]
            if any(each["type"] == "page" for each in found):
                return found
        raise TimeoutError("Chromium opens no tab")

    def close(self) -> None:
        """End it."""
        os.close(self._out)
        os.close(self._in)
        self._process.terminate()
        self._process.wait(ANSWER_SECONDS)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command of the protocol; what happened meanwhile is noted."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            for text in self._messages(deadline):
                if text.get("id") == self._calls:
                    if "error" in text:
                        raise RuntimeError(f"{method}: {text['error']}")
                    result: dict[str, Any] = text["result"]
                    return result
                self._note(text.get("method"), text.get("params", {}))

    def _messages(self, deadline: float) -> list[dict[str, Any]]:
        if not select.select([self._in], [], [], max(0, deadline - time.monotonic()))[0]:
            raise TimeoutError("Chromium does not answer")
        data = os.read(self._in, 1 << 20)
        if not data:
            raise RuntimeError("Chromium ended")
        *whole, self._rest = (self._rest + data).split(b"\0")
        return [json.loads(each) for each in whole]

    def _note(self, method: str | None, said: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(said["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(said["args"]))
        elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.complaints.append(said["entry"]["text"])

    def open(self, address: str) -> None:
        """Go to an address, until it is loaded."""
        loaded = self.call("Page.navigate", url=address)
        assert "errorText" not in loaded, loaded
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, script: str) -> Any:
        """What an expression gives in the page; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 15) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while not self.value(f"!!({script})"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{script}; the page: {self.value('document.body.innerText'):.2000}")

    def press(self, key: str) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            code = {"windowsVirtualKeyCode": {"Tab": 9, "Enter": 13, "ArrowLeft": 37}[key]}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, **code, **text)

    def resize(self, width: int, height: int = 900, dark: bool = False) -> None:
        """The size of the window in CSS pixels, and the colours that its user likes."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, whole: bool = True) -> bytes:
        """PNG of the whole page, or of what the window shows."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"])
