"""Worlds in which the policy writes programs: the suite `code`, and the sandbox that runs what was written."""
