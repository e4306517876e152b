"""The net: recorded answers on a fixed set of inputs, so that a change says which of them it changes, and by how much.

``inputs.py`` makes the inputs from seeds, ``answers.py`` is the one place that calls risfast, ``recorded/`` holds the
answers, ``comparison.py`` says how close is close and why, ``record.py`` is the command and ``tests/test_net.py`` the
test.
"""
