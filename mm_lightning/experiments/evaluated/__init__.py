"""Evaluated networks in the paper's forms: tables and figures from what `mm evaluate` wrote."""
