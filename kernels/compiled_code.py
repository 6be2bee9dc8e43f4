"""An on-disk cache of compiled kernels: each is compiled once per user, not once per process."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from uuid import uuid4

from unipercept.kernels.measured import cache_folder

DIGEST_BYTES = 32  # SHA-256, after the code: a damaged file would end the process that runs it


def kept(made_of: tuple[str, ...], suffix: str, compile_it: Callable[[], bytes]) -> bytes:
    """The machine code from the cache folder, else what `compile_it` gives, which is then kept there.

    Args:
        made_of: all that decides what the code is: source, options, compiler, processor.
        suffix: of the file, "cubin".
    """
    path = cache_folder() / f"{hashlib.sha256(chr(0).join(made_of).encode()).hexdigest()[:40]}.{suffix}"
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    code, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if code and hashlib.sha256(code).digest() == digest:
        return code
    code = compile_it()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{uuid4().hex[:8]}.{suffix}")
        temporary.write_bytes(code + hashlib.sha256(code).digest())
        os.replace(temporary, path)
    except OSError:
        pass  # a read-only home costs a compilation in each process, no more
    return code
