"""Data sets as they come from their publishers, read as COCO dicts.

published.py  what a reader returns; AI-TOD, AI-TODv2 and COCO, which come as COCO JSON
visdrone.py   VisDrone-DET's folders of txt files
sodad.py      SODA-D: its regions to ignore, its tiles written and read
tiles.py      the geometry of tiles, and the merging of what was detected on them
named.py      each data set by name: where its files lie, and the paper's schedule
"""
