"""Costs of compiled programs.

compiling   compiles a program and measures it
hlo         parses compiled HLO text
flops       counts FLOPs of matrix products
traffic     counts bytes moved in memory and between devices
roofline    minimum seconds on a chip
chips       peak figures of TPU chips
"""
