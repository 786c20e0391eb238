"""Where the parts of a run are computed: by Ray, by Slurm, or by whoever is given the folder.

A run is a map over parts in a folder. A worker is a process that has opened the folder, loaded the
model once, and computes the parts that it is told or finds missing. Nothing else knows of engines.
"""
