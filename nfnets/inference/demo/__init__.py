"""The page of `python -m nfnets.demo`: a network, its answers, and why.

`server` starts and ends it, `page` lays it out, `answers` says what is on it;
`guard` and `uploads` keep it within bounds.
"""
