"""Training by many processes: forests shared out by cost, weights sharded by FSDP2, one gradient for all."""
