"""The site: static pages of decisions, experiments and runs, that work from a file, without a network. No torch.

build.py        what is made of which runs, and what need not be made again
pages.py        what all pages share: templates, the policy, plots with their pictures
decisions.py    the matrix, and a page for each decision
experiments.py  a page for each suite and model of GPU: its answer, its evidence, its boundary
runs.py         a page for each run and each of its cases, with every record; the files themselves
comparing.py    any two runs, row by row
findings.py, provenance.py      what an experiment found, and where its figures come from
sizes.py, heatmap.py, series.py plots over shapes and over time; stack.py puts facets into one chart
"""
