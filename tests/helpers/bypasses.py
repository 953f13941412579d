# ruff: noqa: E501
"""Ways by which a page may try to reach a host that is not listed: every way of asking times every way of writing it.

`python tests/helpers/bypasses.py --json docs/web_bypasses.json` runs the whole sweep, with the guard on and off; tests run a sample of it. A case
counts only if it reaches the canary with the guard off: a check that cannot fail shows nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import html
import ipaddress
import json
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treewright.agent.runs.figures import write_result
from treewright.envs.web import browser
from treewright.envs.web.browser import close_browser
from treewright.envs.web.guard import AllowList
from treewright.envs.web.tab import Tab

# How an address is written: A = the allowed host:port, P = the canary's port, T = the path that names the case.
SPELLINGS = {
    "plain": "http://127.0.0.1:{P}{T}",
    "trailing dot": "http://127.0.0.1.:{P}{T}",
    "name": "http://localhost:{P}{T}",
    "name in capitals": "HTTP://LOCALHOST:{P}{T}",
    "name with a dot": "http://localhost.:{P}{T}",
    "name below a name": "http://allowed.localhost:{P}{T}",
    "one number": "http://2130706433:{P}{T}",
    "hexadecimal": "http://0x7f000001:{P}{T}",
    "octal": "http://0177.0.0.1:{P}{T}",
    "short": "http://127.1:{P}{T}",
    "another loopback address": "http://127.0.0.2:{P}{T}",
    "IPv6": "http://[::1]:{P}{T}",
    "IPv4 in IPv6": "http://[::ffff:127.0.0.1]:{P}{T}",
    "percent signs": "http://%31%32%37.0.0.1:{P}{T}",
    "full-width digits": "http://１２７.0.0.1:{P}{T}",
    "allowed host as the user": "http://{A}@127.0.0.1:{P}{T}",
    "allowed host as user and password": "http://{A}:{A}@127.0.0.1:{P}{T}",
    "allowed host in the fragment": "http://127.0.0.1:{P}{T}#http://{A}/",
    "without a scheme": "//127.0.0.1:{P}{T}",
    "backslashes": "http:\\\\127.0.0.1:{P}{T}",
    "tab in the scheme": "ht\ttp://127.0.0.1:{P}{T}",
    "blanks around": "  http://127.0.0.1:{P}{T} ",
    "many slashes": "http:////127.0.0.1:{P}{T}",
    "redirect": "http://{A}/redirect/302?to={P}{T}",
    "redirect that keeps the method": "http://{A}/redirect/307?to={P}{T}",
    "two redirects": "http://{A}/redirect/twice?to={P}{T}",
}

# How it is asked for: {a} = the address for an HTML attribute, {j} = for JavaScript, {w} = as a WebSocket's.
WAYS = {
    "image": "<img src={a}>",
    "image set": "<img srcset={a}>",
    "picture": "<picture><source srcset={a}><img></picture>",
    "script": "<script src={a}></script>",
    "module": "<script type=module src={a}></script>",
    "style sheet": "<link rel=stylesheet href={a}>",
    "style import": "<style>@import url({j});</style>",
    "style background": "<style>p {{ background: url({j}) }}</style><p>x</p>",
    "font": "<style>@font-face {{ font-family: f; src: url({j}) }} p {{ font-family: f }}</style><p>x</p>",
    "frame": "<iframe src={a}></iframe>",
    "frame in a frame": "<iframe srcdoc='<img src={aa}>'></iframe>",
    "object": "<object data={a}></object>",
    "embed": "<embed src={a}>",
    "video": "<video src={a} autoplay muted></video>",
    "poster": "<video poster={a}></video>",
    "audio": "<audio src={a} autoplay></audio>",
    "input": "<input type=image src={a}>",
    "drawing": "<svg><image href={a} width=9 height=9 /></svg>",
    "body": "<body background={a}>",
    "prefetch": "<link rel=prefetch href={a}>",
    "preload": "<link rel=preload as=image href={a}>",
    "module preload": "<link rel=modulepreload href={a}>",
    "refresh": "<meta http-equiv=refresh content={r}>",
    "link": "<a id=x href={a}>x</a><script>x.click()</script>",
    "link to a window": "<a id=x target=_blank href={a}>x</a><script>x.click()</script>",
    "download": "<a id=x download href={a}>x</a><script>x.click()</script>",
    "form": "<form id=x action={a}><input name=q value=secret></form><script>x.submit()</script>",
    "form by POST": "<form id=x method=post action={a}><input name=q></form><script>x.submit()</script>",
    "base": "<base href={a}><img src='?base'>",
    "location": "<script>location.href = {j}</script>",
    "location replaced": "<script>location.replace({j})</script>",
    "window": "<script>open({j})</script>",
    "new image": "<script>new Image().src = {j}</script>",
    "fetch": "<script>fetch({j}, {{mode: 'no-cors'}}).catch(() => 0)</script>",
    "fetch kept alive": "<script>fetch({j}, {{mode: 'no-cors', keepalive: true, method: 'POST', body: 'x'}}).catch(() => 0)</script>",
    "fetch at the end": "<script>onpagehide = () => fetch({j}, {{mode: 'no-cors', keepalive: true}}); setTimeout(() => location.reload === 0 || (location.href = 'about:blank'), 20)</script>",
    "XMLHttpRequest": "<script>var r = new XMLHttpRequest(); r.open('POST', {j}); r.send('x')</script>",
    "beacon": "<script>navigator.sendBeacon({j}, 'x')</script>",
    "beacon at the end": "<script>onpagehide = () => navigator.sendBeacon({j}, 'x'); setTimeout(() => location.href = 'about:blank', 20)</script>",
    "events": "<script>new EventSource({j})</script>",
    "web socket": "<script>new WebSocket({w})</script>",
    "worker": "<script>new Worker(URL.createObjectURL(new Blob(['fetch(' + {js} + ', {{mode: \"no-cors\"}})'])))</script>",
    "worker's import": "<script>new Worker(URL.createObjectURL(new Blob(['importScripts(' + {js} + ')'])))</script>",
    "import": "<script>import({j}).catch(() => 0)</script>",
    "data frame": "<script>var f = document.createElement('iframe'); f.src = 'data:text/html,<img src=' + encodeURIComponent({js}) + '>'; document.documentElement.append(f)</script>",
    "blob frame": "<script>var f = document.createElement('iframe'); f.src = URL.createObjectURL(new Blob(['<img src=' + {js} + '>'], {{type: 'text/html'}})); document.documentElement.append(f)</script>",
    "font face": "<script>new FontFace('f', 'url(' + {js} + ')').load().catch(() => 0)</script>",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One page that tries to reach the canary; `mark` is the path that the canary would see."""

    number: int
    way: str
    spelling: str

    @property
    def mark(self) -> str:
        return f"/c{self.number}"


CASES = [Case(i, way, spelling) for i, (way, spelling) in enumerate((w, s) for w in WAYS for s in SPELLINGS)]


class Everything(AllowList):
    """The guard switched off: every host and every address."""

    def allows(self, host: str, port: int) -> bool:
        return True

    def allows_url(self, url: str) -> bool:
        return True

    async def resolve(self, host: str, port: int) -> str | None:
        if host.rstrip(".").endswith("localhost"):
            return "127.0.0.1"
        try:
            return str(ipaddress.ip_address(host))
        except ValueError:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return str(found[0][4][0])


class Canary:
    """Counts connections on every loopback address, and remembers the marks that were asked for."""

    def __init__(self) -> None:
        self.connections = 0
        self.marks: set[Any] = set()
        self.servers: list[Any] = []

    async def start(self) -> Canary:
        self.servers.append(await asyncio.start_server(self.seen, "0.0.0.0", 0))
        self.port = self.servers[0].sockets[0].getsockname()[1]
        with contextlib.suppress(OSError):  # a machine without IPv6: those spellings reach nobody, guarded or not
            self.servers.append(await asyncio.start_server(self.seen, "::1", self.port))
        return self

    async def seen(self, reader: Any, writer: Any) -> None:
        self.connections += 1
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            for word in head.split(b" ", 2)[1].decode("latin-1").replace("?", "/").replace("#", "/").split("/"):
                if word[:1] == "c" and word[1:].isdigit():
                    self.marks.add(int(word[1:]))
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nAccess-Control-Allow-Origin: *\r\nConnection: close\r\n\r\n"
            )
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            pass
        finally:
            writer.close()

    async def stop(self) -> None:
        for server in self.servers:
            server.close()


class Attacker:
    """An allowed site whose pages hold the cases, a number of them in frames of one page."""

    def __init__(self, canary: Canary) -> None:
        self.canary = canary

    async def start(self) -> Attacker:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.host = f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def stop(self) -> None:
        self.server.close()

    async def serve(self, reader: Any, writer: Any) -> None:
        try:
            head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode("latin-1")
            path = head.split(" ", 2)[1]
            status, more, body = self.answer(path)
            raw = body.encode()
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\n{more}Content-Length: {len(raw)}\r\n"
                "Access-Control-Allow-Origin: *\r\nConnection: close\r\n\r\n".encode()
                + raw
            )
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            pass
        finally:
            writer.close()

    def answer(self, path: Any) -> tuple[str, str, str]:
        if path.startswith("/redirect/"):
            kind, _, to = path.removeprefix("/redirect/").partition("?to=")
            port, _, rest = to.partition("/")
            there = f"http://127.0.0.1:{port}/{rest}"
            if kind == "twice":
                there = f"http://{self.host}/redirect/302?to={to}"
            return f"{kind if kind.isdigit() else 302} Found", f"Location: {there}\r\n", ""
        if path.startswith("/batch/"):
            numbers = path.removeprefix("/batch/").split(",")
            return "200 OK", "", "<title>batch</title>" + "".join(f"<iframe src=/case/{n}></iframe>" for n in numbers)
        number = path.removeprefix("/case/").partition("?")[0]
        if path.startswith("/case/") and number.isdigit():
            return "200 OK", "", self.page(CASES[int(number)])
        return "404 Not Found", "", ""

    def page(self, case: Case) -> str:
        url = SPELLINGS[case.spelling].format(A=self.host, P=self.canary.port, T=case.mark)
        socket_url = url.replace("HTTP://", "ws://").replace("http:", "ws:") if "redirect" not in case.spelling else url
        if socket_url.startswith("//"):
            socket_url = f"ws:{socket_url}"
        attribute = f'"{html.escape(url)}"'
        # Inside of a worker, a blob or a data document nothing is relative: the scheme is written out there.
        absolute = f"http:{url}" if url.startswith("//") else url
        return WAYS[case.way].format(
            a=attribute,
            aa=html.escape(f'"{url}"'),
            r='"' + html.escape(f"0; url={url.strip()}") + '"',
            j=json.dumps(url),
            js="JSON.stringify(" + json.dumps(absolute) + ")",
            w=json.dumps(socket_url),
        )


async def run(
    cases: list[Case], *, guarded: bool, batch: int = 24, seconds: float = 1.0, stay: float = 0.0
) -> tuple[Any, Any, int]:
    """Opens every case; returns (marks that reached the canary, connections it saw, what the gate denied).

    stay  seconds at most for which a page is given time until the gate has denied one thing for two of its cases
    """
    canary = await Canary().start()
    attacker = await Attacker(canary).start()
    allow = AllowList.of([attacker.host]) if guarded else Everything(frozenset())
    denied = 0
    try:
        for start in range(0, len(cases), batch):
            numbers = ",".join(str(case.number) for case in cases[start : start + batch])
            tab = await Tab.open(allow, {}, (800, 600))
            try:
                tab.watcher.begin()
                await tab.navigate(f"http://{attacker.host}/batch/{numbers}")
                await tab.watcher.settled(seconds, 0.2)
                until = asyncio.get_running_loop().time() + stay
                while 2 * len(tab.gate.denied) < len(cases[start : start + batch]):
                    if asyncio.get_running_loop().time() >= until:
                        break
                    await asyncio.sleep(0.1)
                # Leaving is part of it: some ways only begin then.
                tab.watcher.begin()
                await tab.navigate("about:blank")
                await tab.watcher.settled(seconds / 2, 0.1)
                denied += len(tab.gate.denied)
            finally:
                await tab.close()
    finally:
        await attacker.stop()
        await canary.stop()
    return canary.marks, canary.connections, denied


class Packets(asyncio.DatagramProtocol):
    """Counts the packets that come in."""

    def __init__(self) -> None:
        self.count = 0

    def datagram_received(self, data: bytes, address: tuple[Any, ...]) -> None:
        self.count += 1


async def over_udp(*, guarded: bool, seconds: float = 3.0) -> int:
    """Packets that WebRTC sends to a canary; without the guard the browser lacks the flags that stop it."""
    flags, waits = browser._FLAGS, asyncio.get_running_loop().time() + seconds
    await close_browser()
    if not guarded:
        browser._FLAGS = tuple(flag for flag in flags if "webrtc" not in flag)
    transport, canary = await asyncio.get_running_loop().create_datagram_endpoint(Packets, ("127.0.0.1", 0))
    urls = [f"{kind}:127.0.0.1:{transport.get_extra_info('sockname')[1]}" for kind in ("stun", "turn")]
    servers = json.dumps([{"urls": url, "username": "x", "credential": "y"} for url in urls])
    try:
        tab = await Tab.open(AllowList.of([]) if guarded else Everything(frozenset()), {}, (800, 600))
        try:
            await tab.page.evaluate(
                f"""async () => {{ const peer = new RTCPeerConnection({{iceServers: {servers}}});
                peer.createDataChannel('x'); await peer.setLocalDescription(await peer.createOffer());
                if (peer.iceGatheringState !== 'complete') await Promise.race([
                    new Promise(done => peer.onicegatheringstatechange = () => peer.iceGatheringState === 'complete' && done()),
                    new Promise(done => setTimeout(done, 1000 * {seconds}))]) }}"""
            )
            while not guarded and not canary.count and asyncio.get_running_loop().time() < waits:
                await tab.page.evaluate("() => new Promise(done => setTimeout(done, 50))")
        finally:
            await tab.close()
    finally:
        browser._FLAGS = flags
        await close_browser()
        transport.close()
    return canary.count


async def sweep(cases: list[Case], least: int, to: Path | None) -> int:
    """The cases; 1 where the guard lets one through, or where fewer than `least` of them mean anything."""
    try:
        _, through, denied = await run(cases, guarded=True)
        reached, _, _ = await run(cases, guarded=False)
        packets = {guarded: await over_udp(guarded=guarded) for guarded in (True, False)}
    finally:
        await close_browser()
    silent = {way for way in WAYS if not any(c.number in reached for c in cases if c.way == way)}
    mute = {s for s in SPELLINGS if not any(c.number in reached for c in cases if c.spelling == s)}
    result = {
        "cases": len(cases),
        "reach_the_canary_without_the_guard": len(reached),
        "connections_with_the_guard": through,
        "denied_by_the_guard": denied,
        "webrtc_packets_with_the_guard": packets[True],
        "webrtc_packets_without_the_guard": packets[False],
        "ways_that_never_reach": sorted(silent),
        "spellings_that_never_reach": sorted(mute),
        "figures": {
            "web_bypasses_that_work_without_the_guard": {"value": len(reached), "unit": "ways"},
            "web_bypasses_past_the_guard": {"value": through + packets[True], "unit": "connections"},
        },
    }
    print(json.dumps(result, indent=1, ensure_ascii=False))
    if to is not None:
        write_result(to, result)
    return 0 if through == packets[True] == 0 and len(reached) >= least and packets[False] else 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Ways past the guard, all of them or every 25th.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    cases, least = (CASES[::25], 20) if asked.quick else (CASES, 500)
    return asyncio.run(sweep(cases, least, asked.json))


if __name__ == "__main__":
    sys.exit(main())
