"""Imported first where processes of the command line are forked from: what they import is as small as the command's."""

from treewright.agent.cli.lean import leave_out_sklearn

leave_out_sklearn()
