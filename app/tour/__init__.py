"""The offline tour behind `unipercept demo`: six kinds of recordings through one network, into a report that stands alone."""
