"""Photos and labels: one sample type, every dataset through `load_dataset`, reading, augmentation and batches.

Names are imported on first use: reading photos does not need the datasets.
"""

from typing import TYPE_CHECKING

from intclip.lazy import lazy_names

if TYPE_CHECKING:
    from intclip.data.registry import DATASETS, load_dataset
    from intclip.data.sample import Dataset, ImageSource, Sample, TarMember

__all__ = ["DATASETS", "Dataset", "ImageSource", "Sample", "TarMember", "load_dataset"]

__getattr__ = lazy_names(
    __name__,
    {
        "DATASETS": "registry",
        "Dataset": "sample",
        "ImageSource": "sample",
        "Sample": "sample",
        "TarMember": "sample",
        "load_dataset": "registry",
    },
)
