"""Beyond one tree: repair after a divergence, AND/OR graphs, equal states."""
