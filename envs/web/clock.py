"""A clock that stands still until it is told how far to go: pages then do the same at every visit.

`FROZEN` replaces, before a page's own scripts run, what tells a page the time, what calls it back later, and chance:
Date, performance.now, setTimeout, setInterval, requestAnimationFrame, requestIdleCallback and Math.random (seeded by
the number after `seed=` in the address). CSS transitions and animations, which no script can hold, are switched off.
`__treewright.run(ms)` lets that much time pass, callbacks in order, and returns how many were called;
`__treewright.ready` is a promise that is kept once the page has loaded.

Not covered: timers in workers and in frames without scripts, video, and the compositor's own smooth scrolling.
"""

from __future__ import annotations

__all__ = ["FROZEN"]

FROZEN = """(() => {
  if (window.__treewright) return;
  const EPOCH = 1893456000000, MOST = 20000, due = new Map(), RealDate = Date;
  let now = 0, serial = 0, state = (Number(new URLSearchParams(location.search).get('seed')) || 1) >>> 0;
  Math.random = () => {  // mulberry32
    state = (state + 0x6D2B79F5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const later = (call, delay, every, args) => {
    const id = ++serial, wait = Math.max(every ? 4 : 0, Math.min(Number(delay) || 0, 2 ** 31));
    due.set(id, {at: now + wait, id, call, every: every ? wait : 0, args});
    return id;
  };
  const forget = id => { due.delete(id) };
  const run = ms => {
    const end = now + ms;
    for (let called = 0; called < MOST; called++) {
      let next = null;
      for (const job of due.values()) if (!next || job.at < next.at || (job.at === next.at && job.id < next.id)) next = job;
      if (!next || next.at > end) { now = end; return called }
      now = Math.max(now, next.at);
      if (next.every) next.at = now + next.every; else due.delete(next.id);
      try {
        if (typeof next.call === 'function') next.call(...next.args); else (0, eval)(String(next.call));
      } catch (error) { console.error(error) }
    }
    now = end;
    return MOST;
  };
  class FrozenDate extends RealDate {
    constructor(...args) { if (args.length) super(...args); else super(EPOCH + now) }
    static now() { return EPOCH + now }
  }
  window.Date = new Proxy(FrozenDate, {apply: () => new FrozenDate().toString()});
  performance.now = () => now;
  window.setTimeout = (call, delay, ...args) => later(call, delay, false, args);
  window.setInterval = (call, delay, ...args) => later(call, delay, true, args);
  window.clearTimeout = window.clearInterval = window.cancelAnimationFrame = window.cancelIdleCallback = forget;
  window.requestAnimationFrame = call => later(() => call(now), 16, false, []);
  window.requestIdleCallback = call => later(() => call({didTimeout: false, timeRemaining: () => 10}), 1, false, []);
  addEventListener('DOMContentLoaded', () => {
    const still = document.createElement('style');
    still.textContent = '*, *::before, *::after { transition: none !important; animation: none !important; caret-color: transparent !important }';
    document.head && document.head.append(still);
  });
  // A task after the load event: what the page itself does at `load` has then been done, whoever listened first.
  const ready = new Promise(done => addEventListener('load', () => {
    const channel = new MessageChannel(); channel.port1.onmessage = () => done(true); channel.port2.postMessage(0);
  }));
  Object.defineProperty(window, '__treewright', {value: Object.freeze({run, ready, now: () => now})});
})()"""  # noqa: E501
