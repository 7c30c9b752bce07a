"""Photos and labels: one sample type, every dataset through `load_dataset`, reading, augmentation and batches."""

from intclip.data.registry import DATASETS, load_dataset
from intclip.data.sample import Dataset, ImageSource, Sample, TarMember

__all__ = ["DATASETS", "Dataset", "ImageSource", "Sample", "TarMember", "load_dataset"]
