"""What the three jobs do: grow trees of many tasks, train on them, loop, evaluate, lease to workers, the demo."""
