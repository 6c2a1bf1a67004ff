"""The report on a dataset: what is wrong with its rows, each finding with its rows and what would mend it.

`python -m studio.datasets.report OPTIONS OUT` makes one in a process of its own (see making.py); `checks` names what is looked for.
"""
