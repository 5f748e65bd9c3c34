"""Image data sets for tests: pictures, archives, and a writer for every layout, each in that layout's own format."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from metarl_l2f.supervised.data.images import SPLITS, Omniglot

CLASSES = {"train": ("apple", "bear"), "val": ("cup",), "test": ("dog",)}
NUMBERS = {"train": (3, 8), "val": (12,), "test": (70,)}
PER_CLASS = 2


def picture(seed: int, size: int = 4) -> np.ndarray:
    """(size, size, 3) bytes, different for every seed."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def encoded(pixels: np.ndarray, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_pickle(path: Path, content: Any, protocol: int = 2) -> None:
    write(path, pickle.dumps(content, protocol))


def zipped(root: Path, to: Path) -> Path:
    with zipfile.ZipFile(to, "w") as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, path.relative_to(root.parent))
    return to


def samples(split, names=CLASSES):
    """Seeds of a split's pictures, each with its class: apple 100, apple 101, bear 110, bear 111."""
    start = 100 * (1 + SPLITS.index(split))
    return [(start + 10 * c + i, name) for c, name in enumerate(names[split]) for i in range(PER_CLASS)]


def arrays(split):
    return np.stack([picture(seed) for seed, _ in samples(split)])


def write_folder(root):
    for split in SPLITS:
        for seed, name in samples(split):
            write(root / split / name / f"{seed}.png", encoded(picture(seed)))


def write_csv(root):
    for split in SPLITS:
        rows = [(f"{name}_{seed}.png", name) for seed, name in samples(split)]
        write(root / f"{split}.csv", "\r\n".join(["filename,label", *map(",".join, rows), ""]))
        for (seed, _), (file, _) in zip(samples(split), rows, strict=True):
            write(root / "images" / file, encoded(picture(seed)))


def write_cache(root):
    for split in SPLITS:
        names = [name for _, name in samples(split)]
        indices = {name: [i for i, other in enumerate(names) if other == name] for name in names}
        write_pickle(root / f"mini-imagenet-cache-{split}.pkl", {"image_data": arrays(split), "class_dict": indices})


def labelled(split):
    return {"data": arrays(split), "labels": [number for _, number in samples(split, NUMBERS)]}


def write_category_split(root):
    for split, name in zip(SPLITS, ("train_phase_train", "val", "test"), strict=True):
        write_pickle(root / f"miniImageNet_category_split_{name}.pickle", labelled(split))


def write_cifar_fs_pickles(root):
    for split in SPLITS:
        write_pickle(root / f"CIFAR_FS_{split}.pickle", labelled(split))


def write_fc100_pickles(root):
    for split in SPLITS:
        write_pickle(root / f"FC100_{split}.pickle", labelled(split), protocol=4)


def write_fc100_npz(root):
    for split in SPLITS:
        np.savez(root / f"FC100_{split}.npz", features=arrays(split), targets=np.array(labelled(split)["labels"]))


def write_fc100_npz_of_images(root):
    for split in SPLITS:
        np.savez(root / f"FC100_{split}.npz", images=arrays(split), labels=np.array(labelled(split)["labels"]))


def write_tiered_labels(root):
    for split in SPLITS:
        numbers = [CLASSES[split].index(name) for _, name in samples(split)]  # from 0 in every split
        write_pickle(
            root / f"{split}_labels.pkl",
            {"label_specific": np.array(numbers, np.int32), "label_specific_str": list(CLASSES[split])},
        )


def write_tiered_png(root):
    write_tiered_labels(root)
    for split in SPLITS:
        files = [np.frombuffer(encoded(picture(seed)), np.uint8)[:, None] for seed, _ in samples(split)]
        write_pickle(root / f"{split}_images_png.pkl", files)


def write_tiered_png_as_text(root):
    """As Python 2 pickled byte strings."""
    write_tiered_labels(root)
    for split in SPLITS:
        content = b"]("
        for seed, _ in samples(split):
            file = encoded(picture(seed))
            content += b"T" + len(file).to_bytes(4, "little") + file  # BINSTRING
        write(root / f"{split}_images_png.pkl", b"\x80\x02" + content + b"e.")


def write_tiered_npz(root):
    write_tiered_labels(root)
    for split in SPLITS:
        np.savez(root / f"{split}_images.npz", images=arrays(split)[..., ::-1])  # blue first


def write_cifar_fs(root, inside=""):
    for split in SPLITS:
        write(root / "splits" / "bertinetto" / f"{split}.txt", "\n".join([*CLASSES[split], ""]))
        for seed, name in samples(split):
            write(root / inside / name / f"{seed}.png", encoded(picture(seed)))


def write_cifar_fs_data(root):
    write_cifar_fs(root, "data")


WRITERS = {
    write_folder: CLASSES,
    write_csv: CLASSES,
    write_cache: CLASSES,
    write_category_split: NUMBERS,
    write_tiered_png: CLASSES,
    write_tiered_png_as_text: CLASSES,
    write_tiered_npz: CLASSES,
    write_cifar_fs: CLASSES,
    write_cifar_fs_data: CLASSES,
    write_cifar_fs_pickles: NUMBERS,
    write_fc100_pickles: NUMBERS,
    write_fc100_npz: NUMBERS,
    write_fc100_npz_of_images: NUMBERS,
}
"""Every layout but Omniglot's, with the classes it names."""


def assert_complete(found, classes):
    assert list(found) == ["train", "val", "test"]
    for split in SPLITS:
        assert found[split].classes == tuple(map(str, classes[split]))
        assert found[split].labels.tolist() == [c for c in range(len(classes[split])) for _ in range(PER_CLASS)]
        assert torch.equal(found[split].pixels, torch.tensor(arrays(split)).permute(0, 3, 1, 2))


def character(seed: int, size: int = 105) -> bytes:
    """Black ink on white, one bit a pixel: a bar whose place depends on the seed."""
    paper = np.ones((size, size), bool)
    paper[15 + 7 * (seed % 10) : 22 + 7 * (seed % 10), 15:60] = False
    return encoded(paper)


def write_omniglot(root, alphabets=("Greek", "Latin", "Tagalog"), drawers=(1, 2)):
    for a, alphabet in enumerate(alphabets):
        for c in (1, 2):
            for drawer in drawers:
                name = f"{10 * a + c:04}_{drawer:02}.png"
                write(root / alphabet / f"character{c:02}" / name, character(2 * a + c + drawer))


BY_ALPHABETS = Omniglot(val_alphabets=["Latin"], test_alphabets=["Tagalog"], rotations=())
