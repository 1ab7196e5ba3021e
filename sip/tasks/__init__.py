"""What a run learns. The loops in sip/stages say how.

    labelled      labelled verdicts of a run, shared by both kinds of judge training
    supervised/   tasks of the supervised loop
    rl/           tasks of the policy-gradient loop

A task is a module with `Config`, the run's `task` section, and `build(run, c, mesh)`; its stage
lists it in TASKS.
"""
