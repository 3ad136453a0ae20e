"""What comes before the first run: a params.yaml for a folder of yours, and all that is wrong with one.

begin    writes params.yaml for a folder that it looks at
verify   names every mistake of params.yaml, and what its parts hold
costs    memory and time that refining a model takes, calculated
"""
