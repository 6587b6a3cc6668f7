"""The page of `python -m nfnets.demo`: a network, its answers, and why.

`server` starts and ends it, `page` lays it out, `pictures` reads what comes in,
`answers` computes, with `attention` and `neighbours`.
"""
