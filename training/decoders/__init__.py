"""transformers' decoders on packed trees: attention, masks, recurrent layers, output layers, and what is refused."""
