"""DRAM caches of units: one for each group of each layer, or shared; the compiled scan through them."""
