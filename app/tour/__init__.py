"""The offline tour behind `unipercept demo`: six kinds of recordings through one network,
into a self-contained report.
"""
