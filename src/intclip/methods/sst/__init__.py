"""SST (AAAI 2022): structured semantic transfer."""
