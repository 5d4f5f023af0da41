"""SalUn for classifiers, the paper's other half: the same masks and optimisers, on any network that gives logits.

Data flow: sources and examples → nets and training → methods (with boundary, influence, smoothing) → metrics → table.
"""
