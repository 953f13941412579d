"""Puzzles whose answers are checked exactly: built-in ones, and those of the package reasoning-gym."""
