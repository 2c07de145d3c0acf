"""Data sets by name, verified, as three sets; a user's own arrays and folders of images."""

from secateur.data.decode import read_folder as read_folder
from secateur.data.examples import Dataset as Dataset
from secateur.data.examples import Examples as Examples
from secateur.data.examples import Sets as Sets
from secateur.data.normalisation import normalised as normalised
from secateur.data.registry import DATASETS as DATASETS
from secateur.data.registry import describe as describe
from secateur.data.registry import load as load
from secateur.data.splits import from_arrays as from_arrays
from secateur.data.splits import split as split
