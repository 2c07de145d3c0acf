"""The data sets that have a name: what each is, where its files are, what they must hash to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from secateur.core.errors import SecateurError, lookup
from secateur.data import decode, files
from secateur.data.examples import Dataset, Examples
from secateur.data.fetch import Download, Unreachable, fetch
from secateur.data.files import Raw
from secateur.data.folder import Archive, Directory, Source
from secateur.data.normalisation import normalised

Parts = tuple[Examples, Examples]  # train, test
Raws = Mapping[str, Raw]

INSIDE = "inside the package"
TERMS = "https://image-net.org/download.php"
_PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Images:
    """A data set that is a folder of images, decoded once (`secateur.data.decode`).

    Attributes:
        rule: what is stored of an image.
        train, test: how many images there must be.
        own: whether mean and std are those of the images as stored; else the row's.
    """

    rule: decode.Rule
    train: int
    test: int
    own: bool


@dataclass(frozen=True)
class Entry:
    """One data set.

    Attributes:
        files: name -> SHA-256 of the published files, uncompressed. Packed files are checked after
            unpacking, so that every packing of the same content is the same data.
        read: interprets the verified files; None for a folder of images.
        downloads: what the publisher offers; empty for data inside the package, and where the
            publisher gives it to people and not to programs.
        folders: where the files may be under a data directory, the first for downloads;
            ``MNIST/raw`` and the like are where torchvision puts them.
        inside: the folder of the archive that holds the files, where they come in one.
        mean, std: of each channel of the training part, on the [0, 1] scale.
        images: how a folder of images is read; None for files with a format of their own.
        classes, shape: of a folder of images, the classes' numbers (their names are read with
            them), and the shape as stored.
    """

    name: str
    title: str
    licence: str
    citation: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shape: tuple[int, int, int]
    files: Mapping[str, str]
    read: Callable[[Raws], Parts] | None = None
    downloads: tuple[Download, ...] = ()
    folders: tuple[str, ...] = ()
    inside: str = ""
    images: Images | None = None

    @property
    def sha256(self) -> str:
        """The identity of the data, known without reading them: over the name and all hashes.

        Of a folder of images it is the identity of what should be read: name, rule and counts. What
        was read is in `Dataset.sha256`.
        """
        lines = [self.name, *(f"{name} {sha256}" for name, sha256 in self.files.items())]
        if self.images is not None:
            lines.append(f"{self.images.rule} {self.images.train} {self.images.test}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def load(
    name: str, data_dir: str | None = None, download: bool = True, normalisation: str = "own"
) -> Dataset:
    """A data set by name, found or downloaded, verified and read.

    Looked for in the directories of ``data_dir`` (several as in PATH), else of the environment
    variable ``SECATEUR_DATA``, then in the per-user cache: the first that holds all files wanted
    counts. Then downloaded, into the first directory of ``data_dir``, else the per-user cache.

    Args:
        name: a key of `DATASETS`.
        download: whether files that are nowhere may be downloaded.
        normalisation: whose mean and std (`secateur.data.normalisation`): ``"own"``, or the name of
            a published code such as ``"synflow"`` or ``"grasp"``.

    Returns:
        The data; images uint8 ``(n, height, width, channels)``, not writeable. Those of a folder of
        images (tiny-imagenet, imagenet) are decoded once, into the first directory of ``data_dir``,
        else the per-user cache, and read from there as they are needed.

    Raises:
        SecateurError: the name is unknown, the files are neither here nor to be had, or a file is
            damaged or not the publisher's.
    """
    entry = lookup("data set", name, DATASETS)
    place = find(entry, data_dir)
    if place is None:
        place = _download(entry, data_dir) if download else None
    if place is None:
        raise SecateurError(
            f"{_absent(entry, data_dir)}, and downloading is off; {_remedy(entry)}."
        )
    if entry.images is not None:
        return normalised(_decoded(entry, place, data_dir), normalisation)
    stamp = tuple((p.stat().st_size, p.stat().st_mtime_ns) for p in place.values())
    return normalised(_read(entry.name, entry.sha256, tuple(place.items()), stamp), normalisation)


def describe(data_dir: str | None = None) -> list[dict[str, Any]]:
    """What ``secateur data`` lists: one row a data set, without reading or verifying anything.

    Returns:
        Rows with name, title, found (bool), where (directory or None), bytes (to download; for
        data inside the package its size), licence, citation, classes (number), shape, and
        fetched (bool): whether it is downloaded where it is not found.
    """
    rows = []
    for entry in DATASETS.values():
        place = find(entry, data_dir)
        inside = sum(p.stat().st_size for p in (place or {}).values())
        rows.append(
            {
                "name": entry.name,
                "title": entry.title,
                "found": place is not None,
                "where": _source(entry, place) if place else None,
                "bytes": sum(d.bytes for d in entry.downloads) or inside,
                "fetched": bool(entry.downloads),
                "licence": entry.licence,
                "citation": entry.citation,
                "classes": len(entry.classes),
                "shape": entry.shape,
            }
        )
    return rows


# --- where the files are --------------------------------------------------------------------------

Place = dict[str, Path]  # file of the entry -> where it is; an archive stands for all its files


def directories(data_dir: str | None = None) -> list[Path]:
    """Where data are looked for, in order; the per-user cache always last."""
    given = data_dir or os.environ.get("SECATEUR_DATA", "")
    return [*(Path(part).expanduser() for part in given.split(os.pathsep) if part), cache()]


def cache() -> Path:
    """The per-user directory for downloads (``~/.cache/secateur/data`` on Linux)."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("secateur")) / "data"


def find(entry: Entry, data_dir: str | None = None) -> Place | None:
    """Where the files of ``entry`` are: the first directory that holds them all, or None."""
    if not entry.downloads and entry.images is None:
        return {name: _PACKAGE / entry.name / f"{name}.gz" for name in entry.files}
    for directory in directories(data_dir):
        for folder in entry.folders:
            if place := _held(entry, directory / folder):
                return place
    return None


def _held(entry: Entry, folder: Path) -> Place | None:
    """Where in ``folder`` all files of ``entry`` are, unpacked before packed; None if one lacks."""
    if entry.images is not None:
        named = [folder] if folder.name in entry.folders else []  # not whatever holds a train/
        for root in (folder / entry.inside, *named):
            if (root / "train").is_dir():
                return {"": root}
        packed = [folder / d.name for d in entry.downloads if (folder / d.name).is_file()]
        return {"": packed[0]} if packed else None
    if entry.inside:
        unpacked = {name: folder / entry.inside / name for name in entry.files}
        if all(path.is_file() for path in unpacked.values()):
            return unpacked
        archive = folder / entry.downloads[0].name
        return dict.fromkeys(entry.files, archive) if archive.is_file() else None
    place: Place = {}
    for name in entry.files:
        forms = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
        if not forms:
            return None
        place[name] = forms[0]
    return place


def _source(entry: Entry, place: Place) -> str:
    if entry.images is not None:
        return str(place[""])
    return str(next(iter(place.values())).parent) if entry.downloads else INSIDE


def _download(entry: Entry, data_dir: str | None) -> Place:
    if not entry.downloads:
        raise SecateurError(f"{_absent(entry, data_dir)}; {_remedy(entry)}.")
    folder = _base(data_dir) / entry.folders[0]
    for wanted in entry.downloads:
        if (folder / wanted.name.removesuffix(".gz")).is_file():
            continue  # a file of the set that is there unpacked
        try:
            fetch(wanted, folder)
        except Unreachable as reasons:
            raise SecateurError(
                f"{_absent(entry, data_dir)}, and {wanted.name} could not be downloaded "
                f"({reasons}); {_remedy(entry, folder)}."
            ) from None
    place = _held(entry, folder)
    if place is None:
        raise SecateurError(f"{_absent(entry, data_dir)}; {_remedy(entry, folder)}.")
    return place


def _base(data_dir: str | None) -> Path:
    """Where something new is put: the first directory that was named, else the per-user cache."""
    return directories(data_dir)[0] if data_dir else cache()


def _absent(entry: Entry, data_dir: str | None) -> str:
    looked = ", ".join(str(directory) for directory in directories(data_dir))
    return f"the files of {entry.title} ({entry.name}) are not in {looked}"


def _remedy(entry: Entry, folder: Path | None = None) -> str:
    """What to do about a data set that is not here."""
    if not entry.downloads:
        return (
            f"its publisher gives it to registered people alone ({TERMS}): unpack it so that a "
            f"directory holds {entry.folders[0]}/train/CLASS/*.JPEG and {entry.folders[0]}/val/"
            f"CLASS/*.JPEG, and name that directory with --data-dir or SECATEUR_DATA"
        )
    names = ", ".join(d.name for d in entry.downloads)
    mirror = entry.downloads[0].mirrors[0]
    where = folder or f"a folder {entry.folders[0]}"
    return (
        f"put {names} from {mirror} into {where}, or name the directory that holds "
        f"{entry.folders[0]}/ with --data-dir or SECATEUR_DATA"
    )


# --- folders of images ----------------------------------------------------------------------------


def _decoded(entry: Entry, place: Place, data_dir: str | None) -> Dataset:
    assert entry.images is not None
    where, wanted = place[""], entry.images
    stamp = where.stat().st_mtime_ns
    source = _opened(
        where, entry.inside, entry.downloads[0].sha256 if entry.downloads else "", stamp
    )
    held = decode.decoded(
        source, wanted.rule, directories(data_dir), _base(data_dir), entry.name, test="val"
    )
    found = (len(held.classes), len(held.train), len(held.test))
    if found != (len(entry.classes), wanted.train, wanted.test):
        raise SecateurError(
            f"{where} holds {found[1]:,} training and {found[2]:,} test images of {found[0]:,} "
            f"classes, where {entry.title} has {wanted.train:,} and {wanted.test:,} of "
            f"{len(entry.classes):,}; unpack the publisher's archive again."
        )
    return Dataset(
        name=entry.name,
        train=held.train,
        test=held.test,
        classes=held.classes,
        mean=held.mean if wanted.own else entry.mean,
        std=held.std if wanted.own else entry.std,
        sha256=held.sha256,
        source=_source(entry, place),
        citation=entry.citation,
        licence=entry.licence,
        title=entry.title,
    )


@lru_cache(maxsize=2)
def _opened(where: Path, inside: str, sha256: str, stamp: int) -> Source:
    """A directory, or the publisher's archive once its hash is right."""
    if where.is_dir():
        return Directory(where)
    with where.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise SecateurError(
            f"{where} is not the publisher's archive: its SHA-256 is {found[:16]}..., expected "
            f"{sha256[:16]}...; delete it and get it again."
        )
    return Archive(where, inside)


# --- reading --------------------------------------------------------------------------------------


# Two data sets stay in memory: a worker that trains many cells on one of them reads it once. The
# sizes and times of the files are in the key, so that a file that was replaced is read again.
@lru_cache(maxsize=2)
def _read(
    name: str, sha256: str, place: tuple[tuple[str, Path], ...], stamp: tuple[tuple[int, int], ...]
) -> Dataset:
    entry = DATASETS[name]
    assert entry.read is not None
    train, test = entry.read(_verified(entry, dict(place)))
    for part in (train, test):
        assert isinstance(part.images, np.ndarray)
        part.images.flags.writeable = False
        part.labels.flags.writeable = False
    return Dataset(
        name=entry.name,
        train=train,
        test=test,
        classes=entry.classes,
        mean=entry.mean,
        std=entry.std,
        sha256=sha256,
        source=_source(entry, dict(place)),
        citation=entry.citation,
        licence=entry.licence,
        title=entry.title,
    )


def _verified(entry: Entry, place: Place) -> dict[str, Raw]:
    """The bytes of all files, each with the SHA-256 that it must have (0.04 s for MNIST)."""
    archive = next(iter(place.values()))
    if entry.inside and archive.name == entry.downloads[0].name:
        held = files.read_tar(archive, [f"{entry.inside}/{name}" for name in entry.files])
        raws = {name: held[f"{entry.inside}/{name}"] for name in entry.files}
    else:
        raws = {name: files.read_file(path) for name, path in place.items()}
    for name, raw in raws.items():
        found, wanted = hashlib.sha256(raw.data).hexdigest(), entry.files[name]
        if found != wanted:
            again = _remedy(entry) if entry.downloads else "install secateur again"
            raise SecateurError(
                f"{raw.where} is not the publisher's {name} of {entry.title}: its SHA-256 "
                f"(uncompressed) is {found[:16]}..., expected {wanted[:16]}...; delete it and "
                f"{again}."
            )
    return raws


def _idx(raws: Mapping[str, Raw]) -> Parts:
    train_images, train_labels, test_images, test_labels = raws.values()
    return (
        files.idx_examples(train_images, train_labels),
        files.idx_examples(test_images, test_labels),
    )


def _mnist5k(raws: Mapping[str, Raw]) -> Parts:
    """The first 400 of each class train, the last 100 test; both in file order."""
    every = files.idx_examples(*raws.values())
    rank = np.empty(len(every), int)  # how many of the same class come before
    for label in range(10):
        rows = np.flatnonzero(every.labels == label)
        rank[rows] = np.arange(len(rows))
    return every.take(np.flatnonzero(rank < 400)), every.take(np.flatnonzero(rank >= 400))


def _cifar(labels: str) -> Callable[[Mapping[str, Raw]], Parts]:
    def read(raws: Mapping[str, Raw]) -> Parts:
        def part(kind: str) -> Examples:
            chosen = [raw for name, raw in raws.items() if name.startswith(kind)]
            return files.concatenate([files.cifar_examples(raw, labels) for raw in chosen])

        train = "data_batch" if "test_batch" in raws else "train"
        return part(train), part("test")

    return read


def _svhn(raws: Mapping[str, Raw]) -> Parts:
    train, test = raws.values()
    return files.svhn_examples(train), files.svhn_examples(test)


# --- the rows -------------------------------------------------------------------------------------

_IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
)
# Plain http is all that the publisher offers; the hash is the protection.
_FASHION_MIRRORS = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
_CIFAR_MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)
_SVHN_MIRRORS = ("http://ufldl.stanford.edu/housenumbers/",)

_MNIST_CITATION = (
    "Y. LeCun, L. Bottou, Y. Bengio, P. Haffner. Gradient-based learning applied to document "
    "recognition. Proceedings of the IEEE 86(11), 1998"
)
_MNIST_LICENCE = (
    "CC BY-SA 3.0 as commonly stated; Yann LeCun, Corinna Cortes, Christopher J. C. Burges"
)
_CIFAR_CITATION = (
    "A. Krizhevsky. Learning multiple layers of features from tiny images. Technical report, "
    "University of Toronto, 2009"
)
_CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100_CLASSES = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy "
    "bridge bus butterfly camel can castle caterpillar cattle chair chimpanzee "
    "clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower "
    "leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom "
    "oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain "
    "plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal "
    "shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower "
    "sweet_pepper table tank telephone television tiger tractor train trout tulip "
    "turtle wardrobe whale willow_tree wolf woman worm"
)
_DIGITS = tuple("0123456789")
# SVHN is published uncompressed: the hash of the download is that of the file.
_SVHN_TRAIN = "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"
_SVHN_TEST = "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"


def _idx_downloads(
    mirrors: tuple[str, ...], sizes: tuple[int, ...], hashes: tuple[str, ...]
) -> tuple[Download, ...]:
    return tuple(
        Download(f"{name}.gz", size, sha256, mirrors)
        for name, size, sha256 in zip(_IDX, sizes, hashes)
    )


DATASETS: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="mnist5k",
            title="MNIST, the first 500 training images of each digit",
            licence=_MNIST_LICENCE,
            citation=_MNIST_CITATION,
            classes=_DIGITS,
            mean=(0.13086,),
            std=(0.30802,),
            shape=(28, 28, 1),
            files={
                "images-idx3-ubyte": (
                    "a4a9358b9ba319305e7cd69b2c7410e463401e152d7e9e60189b94a3f159d012"
                ),
                "labels-idx1-ubyte": (
                    "704256e87519240fd1d7ecdf681fe209864691e252c6642aeadc21f3c4d44b41"
                ),
            },
            read=_mnist5k,
        ),
        Entry(
            name="mnist",
            title="MNIST handwritten digits",
            licence=_MNIST_LICENCE,
            citation=_MNIST_CITATION,
            classes=_DIGITS,
            mean=(0.13066,),
            std=(0.30811,),
            shape=(28, 28, 1),
            files=dict(
                zip(
                    _IDX,
                    (
                        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
                    ),
                )
            ),
            read=_idx,
            downloads=_idx_downloads(
                _MNIST_MIRRORS,
                (9_912_422, 28_881, 1_648_877, 4_542),
                (
                    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                ),
            ),
            folders=("mnist", "MNIST/raw"),
        ),
        Entry(
            name="fashion-mnist",
            title="Fashion-MNIST",
            licence="MIT; copyright 2017 Zalando SE",
            citation="H. Xiao, K. Rasul, R. Vollgraf. Fashion-MNIST: a novel image dataset for "
            "benchmarking machine learning algorithms. arXiv:1708.07747, 2017",
            classes=(
                "T-shirt/top",
                "Trouser",
                "Pullover",
                "Dress",
                "Coat",
                "Sandal",
                "Shirt",
                "Sneaker",
                "Bag",
                "Ankle boot",
            ),
            mean=(0.28604,),
            std=(0.35302,),
            shape=(28, 28, 1),
            files=dict(
                zip(
                    _IDX,
                    (
                        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
                    ),
                )
            ),
            read=_idx,
            downloads=_idx_downloads(
                _FASHION_MIRRORS,
                (26_421_880, 29_515, 4_422_102, 5_148),
                (
                    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                ),
            ),
            folders=("fashion-mnist", "FashionMNIST/raw"),
        ),
        Entry(
            name="cifar10",
            title="CIFAR-10",
            licence="none stated by the publisher",
            citation=_CIFAR_CITATION,
            classes=tuple(_CIFAR10_CLASSES.split()),
            mean=(0.49140, 0.48216, 0.44653),
            std=(0.24703, 0.24349, 0.26159),
            shape=(32, 32, 3),
            files={
                "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
                "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
                "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
                "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
                "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
                "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
            },
            read=_cifar("labels"),
            downloads=(
                Download(
                    "cifar-10-python.tar.gz",
                    170_498_071,
                    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
                    (
                        *_CIFAR_MIRRORS,
                        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
                    ),
                ),
            ),
            folders=("cifar10", "."),
            inside="cifar-10-batches-py",
        ),
        Entry(
            name="cifar100",
            title="CIFAR-100",
            licence="none stated by the publisher",
            citation=_CIFAR_CITATION,
            classes=tuple(_CIFAR100_CLASSES.split()),
            mean=(0.50708, 0.48655, 0.44092),
            std=(0.26733, 0.25644, 0.27615),
            shape=(32, 32, 3),
            files={
                "train": "735e79b04f092ca3d2e6d07f368c0a7d70d48c48d28865950cc24454cf45129b",
                "test": "4b67687d9933c4db8f0831104447f15b93774f4f464bd0516f0f0f2ac83b7864",
            },
            read=_cifar("fine_labels"),
            downloads=(
                Download(
                    "cifar-100-python.tar.gz",
                    169_001_437,
                    "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
                    _CIFAR_MIRRORS,
                ),
            ),
            folders=("cifar100", "."),
            inside="cifar-100-python",
        ),
        Entry(
            name="svhn",
            title="SVHN house numbers, cropped digits",
            licence="for non-commercial use only",
            citation="Y. Netzer, T. Wang, A. Coates, A. Bissacco, B. Wu, A. Y. Ng. Reading digits "
            "in natural images with unsupervised feature learning. NIPS workshop on deep learning "
            "and unsupervised feature learning, 2011",
            classes=_DIGITS,
            # As used by most published code; not yet computed here from the publisher's files.
            mean=(0.43768, 0.44377, 0.47280),
            std=(0.19803, 0.20102, 0.19704),
            shape=(32, 32, 3),
            files={
                "train_32x32.mat": _SVHN_TRAIN,
                "test_32x32.mat": _SVHN_TEST,
            },
            read=_svhn,
            downloads=(
                Download(
                    "train_32x32.mat",
                    182_040_794,
                    _SVHN_TRAIN,
                    _SVHN_MIRRORS,
                ),
                Download(
                    "test_32x32.mat",
                    64_275_384,
                    _SVHN_TEST,
                    _SVHN_MIRRORS,
                ),
            ),
            folders=("svhn", "."),
        ),
        Entry(
            name="tiny-imagenet",
            title="Tiny-ImageNet, its published validation images as the test set",
            licence="ImageNet's terms: non-commercial research and education",
            citation="Y. Le, X. Yang. Tiny ImageNet visual recognition challenge. CS 231N report, "
            "Stanford University, 2015",
            classes=tuple(map(str, range(200))),
            # As GraSP has them; what is used is computed when the images are decoded.
            mean=(0.48025, 0.44807, 0.39755),
            std=(0.27699, 0.26906, 0.28208),
            shape=(64, 64, 3),
            files={},
            downloads=(
                Download(
                    "tiny-imagenet-200.zip",
                    248_100_043,
                    "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
                    ("http://cs231n.stanford.edu/",),
                ),
            ),
            folders=("tiny-imagenet", "."),
            inside="tiny-imagenet-200",
            images=Images(decode.Rule(64, 64), train=100_000, test=10_000, own=True),
        ),
        Entry(
            name="imagenet",
            title="ImageNet (ILSVRC 2012), its published validation images as the test set",
            licence="ImageNet's terms: non-commercial research and education",
            citation="O. Russakovsky et al. ImageNet large scale visual recognition challenge. "
            "International Journal of Computer Vision 115, 2015",
            classes=tuple(map(str, range(1000))),
            mean=(0.485, 0.456, 0.406),  # of the published images; all codes use these
            std=(0.229, 0.224, 0.225),
            shape=(256, 256, 3),  # 257 GB; a network takes the central, or a random, 224 x 224
            files={},
            folders=("imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC"),
            images=Images(decode.Rule(256, 256), train=1_281_167, test=50_000, own=False),
        ),
    )
}
