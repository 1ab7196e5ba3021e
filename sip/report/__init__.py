"""Reports of runs, finished or not: a summary, tables, plots and one HTML page.

outputs     writes summary.json and the plots, prints the table
summary     figures of all runs of a config
tables      tables for the terminal
panels      the lines of metrics over steps, for plots and page
plots       the panels as PNG
journeys    figures from pretraining to RLHF, stage by stage
statistics  means, standard deviations and paired differences over seeds
differences confidence intervals of differences
contents    reads a workdir for the page, with what is missing
verdict     did a run help, was its judge fooled, in words
costs       time by phase, tokens and price of judging
candidates  reads the logged candidates and samples, marks differences
page        the HTML page: report.html.jinja, report.css, report.js
__main__    `python -m sip.report`
"""
