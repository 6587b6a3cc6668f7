"""Images in, arrays out: what the commands on finished networks have in common.

Of the rest of `nfnets`, only `nfnets.data` imports from here: `images`, which
decodes the pictures of a folder in training as it does for the commands.
"""
