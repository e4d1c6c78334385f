"""The report of evaluated networks: the paper's tables and figures from the results of `mm evaluate`."""
