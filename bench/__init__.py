"""Benchmarks: ``scripts/bench issue|ocsp|hsm|sm2|crl``. Each ends with one line of JSON: figures, and ratios to baselines."""
