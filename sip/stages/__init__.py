"""Training: three loops and the recipe that runs them.

recipe       a config as a list of runs, checked as a whole
supervised   the loop with known targets
selfimprove  the self-improving loop; `collect` is its part on the host
rl           the policy-gradient loop
watch        decides if a policy-gradient run ends early
session      what the loops share: opening, logging, evaluating, saving, stopping
seeds        a recipe for several seeds
clock        seconds and lost steps of a run over all attempts
"""
