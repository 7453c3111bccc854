"""Rounding a model's matrices by what goes through them.

`reading` says what goes through, `layers` takes one layer after another, `gptq` rounds one matrix.
"""
