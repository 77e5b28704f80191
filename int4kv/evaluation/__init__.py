"""Recipes side by side on a model and a text: predictions through the packed cache (evaluate), needles, divergence; findings as rows, tables
and plots. assessment puts the parts together; command is `int4kv eval`."""
