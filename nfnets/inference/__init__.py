"""Images in, arrays out: what the commands on finished networks have in common.

Nothing of `nfnets` outside the commands imports it.
"""
