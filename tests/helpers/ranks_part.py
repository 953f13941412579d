"""One process of the loops of ranks_loop.py: `collector` and its settings, or the words of any other command."""

from __future__ import annotations

import sys

from treewright.agent.cli.main import main
from treewright.agent.config import load_config
from treewright.agent.runs import collectors, workers

POLL_SECONDS = 0.1  # in place of what suits rounds that take minutes

for module in (collectors, workers):
    vars(module)["POLL_SECONDS"] = POLL_SECONDS
if sys.argv[1] == "collector":
    config = load_config(None, sys.argv[2:], {"worlds.suites": ["kg"]})
    collectors.collector(config.model_dump_json(), config.store_at, config.loop.lease)
else:
    main()
