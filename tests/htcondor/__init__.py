"""HTCondor, unmodified: real daemons in the laboratory."""
