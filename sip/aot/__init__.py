"""`python -m sip.aot`: compiles a run's programs for a TPU topology without a TPU.

plan       a compile plan: programs, argument shapes, model bytes on each device
programs   the plan of a run, by its stage
parts      programs that several stages have: updates, sampling, a judge's
selfimprove, rl, supervised   the programs of each stage, and the shapes that they meet
questions  sizes of the prompts of judge and rewriter
__main__   the command: compiles, predicts, prints
"""
