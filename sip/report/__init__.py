"""Reports of finished runs: a summary, tables and plots.

outputs     writes summary.json and the plots, prints the table
summary     figures of all runs of a config
tables      tables for the terminal
plots       metrics over training steps
journeys    figures from pretraining to RLHF, stage by stage
statistics  means, standard deviations and paired differences over seeds
__main__    `python -m sip.report`
"""
