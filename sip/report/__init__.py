"""What a finished recipe shows.

outputs     writes summary.json, prints the table, draws the plots
summary     the figures of a recipe
tables      tables on the terminal
plots       plots over steps
statistics  means, deviations and paired differences over seeds
__main__    `python -m sip.report`
"""
