"""Agents by base URL: an HTTP server in front of any policy, recordings of what it answered, and agents as worlds."""
