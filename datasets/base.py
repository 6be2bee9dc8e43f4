"""What a dataset is: a plain sequence of samples whose inputs are still raw; pipelines alone make maps."""

from typing import Any, NamedTuple, Protocol


class Sample(NamedTuple):
    """One example. `id` names it for ever: a file, or a position in the published order."""

    input: Any
    target: Any
    id: str


class SampleSet(Protocol):
    """A sized, indexable set of samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...
