"""Tasks define what a run learns; the training loops are in sip/stages.

    labelled      labelled examples, shared by both kinds of judge training
    pairs         preference pairs, shared by DPO and reward models
    ranked        rows of several answers to a prompt, for reward models
    questions     questions about a generated world, and the evaluation of answers to them
    sampled       answers to problems that a frozen model samples once, kept in the run's directory
    shown         greedy answers to a few held-out prompts, to be read
    thoughts      annotated texts, answers and the probe, shared by the tasks of thoughts
    supervised/   tasks of the supervised loop
    rl/           tasks of the policy-gradient loop

A task is a module with `Config`, the run's `task` section, and `build(run, c, mesh)`; its stage
lists it in TASKS.
"""
