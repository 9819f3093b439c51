"""How fast it is on this machine, beside others and beside the machine's own bounds."""
