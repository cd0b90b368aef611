"""Where bytes lie: the groups of a policy made concrete, placement in DRAM and Flash, shares, neuron order."""
