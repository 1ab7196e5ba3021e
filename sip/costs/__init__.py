"""Costs of compiled programs.

compiling   compiles a program and measures it
hlo         parsing of compiled HLO text
flops, traffic   operations; bytes moved and sent
roofline    minimum seconds on a chip
chips       figures of TPU chips
"""
