"""Any data set laid out as domain/class/image, the layout of DomainBed."""

import difflib
import fnmatch
import os
import re
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from sklearn.utils import Bunch

from skclip_icm._containers import entries
from skclip_icm._estimators import validate_params
from skclip_icm._images.reading import local_path
from skclip_icm.datasets._alike import warnings_of_alike

# Every format of `decoding.FORMATS`, also those that an older Pillow cannot
# decode: such a file is then reported, where an unknown suffix would be passed over.
SUFFIXES = frozenset(
    ".apng .avif .avifs .bmp .gif .heic .heics .heif .heifs .hif .ico .j2c .j2k .jfif "
    ".jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .mpo .pbm .pfm .pgm .png .pnm .ppm .tif .tiff "
    ".webp".split()
)
# What systems put beside images. Hidden files and folders are skipped as well.
_JUNK = ("Thumbs.db", "desktop.ini", "__MACOSX")
_MAX_LISTED = 20  # names in a message


@validate_params(
    {
        "root": [str, os.PathLike],
        "domains": "no_validation",
        "class_names": "no_validation",
        "skip": "no_validation",
        "return_X_y": ["boolean"],
        "as_frame": ["boolean"],
    },
    prefer_skip_nested_validation=True,
)
def load_domain_folder(
    root,
    *,
    domains=None,
    class_names=None,
    skip=(),
    return_X_y=False,
    as_frame=False,
):
    """List the images of a data set laid out as ``root/domain/class/image``.

    This is the layout of PACS, VLCS, OfficeHome, TerraIncognita and DomainNet as
    DomainBed arranges them. A folder of classes, such as ImageNet-R, ImageNet-A,
    ImageNet-Sketch or ImageNet-V2, is one domain of the folder that holds it.

    Images are told by their suffix and are not opened. A warning counts the other
    files beside them by suffix. Hidden files and folders, and what systems put there
    ("Thumbs.db", "desktop.ini", "__MACOSX"), are skipped.

    Parameters
    ----------
    root : str or path
        The folder that holds the domains.
    domains : sequence of str, default=None
        Names of the domains to list, in this order. None is all, by name.
    class_names : sequence of str, default=None
        Names of the classes to list, in this order. None is all that some listed
        domain has, by name.
    skip : sequence of str, default=()
        Names of more files and folders to skip, at any level, such as "masks", or
        patterns such as ``"*.txt"``, in upper or lower case alike.
    return_X_y : bool, default=False
        Whether to return ``(images, target)`` in place of a Bunch.
    as_frame : bool, default=False
        Whether ``images``, ``target`` and ``domains`` are pandas Series, and ``frame``
        the frame of all three.

    Returns
    -------
    data : Bunch
        ``images``: array of n absolute paths, by domain, class and file name;
        ``target``: int array (n,), index into ``target_names``; ``domains``: int array
        (n,), index into ``domain_names``; ``target_names``, ``domain_names``: lists of
        str; ``not_listed``: dict of suffix to number of files beside the images that
        are no images by their suffix; ``DESCR``: str, the number of images in each
        domain and the classes that some domain lacks.
    (images, target) : tuple
        With ``return_X_y=True``.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If ``root`` does not exist or is a file, or a link among the folders leads to
        nothing.
    ValueError
        If a name is unknown or given twice, a folder is empty, or an image or a folder
        lies at a level where it does not belong.
    TypeError
        If ``skip`` holds something else than names.
    ImportError
        If pandas is missing, with ``as_frame=True``.

    Warns
    -----
    UserWarning
        If there are files beside the images that are not listed, or names of domains
        or classes differ by upper and lower case, the form of their Unicode, blanks, or
        characters that are not seen only.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from skclip_icm.datasets import load_domain_folder
    >>> root = tempfile.TemporaryDirectory()
    >>> for path in ["photo/dog", "photo/horse", "sketch/dog"]:
    ...     folder = Path(root.name, path)
    ...     folder.mkdir(parents=True)
    ...     (folder / "1.jpg").touch()
    >>> data = load_domain_folder(root.name)
    >>> data.domain_names, data.target_names
    (['photo', 'sketch'], ['dog', 'horse'])
    >>> data.domains, data.target
    (array([0, 0, 1]), array([0, 1, 0]))
    >>> root.cleanup()
    """
    if not os.fspath(root):
        raise ValueError("root is empty, expected the path of a folder, such as '.'.")
    root = Path(local_path(root)).absolute()
    scan = _Scan({*_JUNK, *_check_skip(skip)})
    domain_names = _select(domains, _find_domains(root, scan), "domains", root)
    classes = _find_classes(root, domain_names, scan)
    union = sorted(set().union(*classes.values()))
    target_names = _select(class_names, union, "class_names", root)

    images = []
    counts = np.zeros((len(domain_names), len(target_names)), dtype=int)
    for i, domain in enumerate(domain_names):
        for j, name in enumerate(target_names):
            if name in classes[domain]:
                paths = _find_images(root, root / domain / name, scan)
                counts[i, j] = len(paths)
                images += paths
        if not counts[i].any():
            raise ValueError(
                f"{root / domain} has none of the class_names. It has: "
                f"{_listing(sorted(classes[domain]))}. Leave {domain!r} out of domains."
            )
    not_listed = dict(sorted(scan.others.items(), key=lambda kv: (-kv[1], kv[0])))
    if not_listed:
        warnings.warn(_tell_not_listed(root, not_listed), UserWarning, stacklevel=3)
    for names, kind in (domain_names, "domains"), (target_names, "classes"):
        for message in warnings_of_alike(root, names, kind):
            warnings.warn(message, UserWarning, stacklevel=3)
    domain, target = np.indices(counts.shape).reshape(2, -1)
    rows = {
        "images": np.array(images, dtype=object),
        "target": np.repeat(target, counts.ravel()),
        "domains": np.repeat(domain, counts.ravel()),
    }
    if as_frame:
        frame = _as_frame(rows)
        rows = {name: frame[name] for name in rows} | {"frame": frame}
    if return_X_y:
        return rows["images"], rows["target"]
    return Bunch(
        **rows,
        target_names=target_names,
        domain_names=domain_names,
        not_listed=not_listed,
        DESCR=_describe(root, domain_names, target_names, counts, not_listed),
    )


def _check_skip(skip):
    if isinstance(skip, str):
        raise ValueError(
            f"skip is the string {skip!r}, expected a list of names. Write "
            f"skip=[{skip!r}]."
        )
    if skip is not None and not np.iterable(skip):
        raise TypeError(f"skip is {skip!r}, expected a list of names.")
    for name in () if skip is None else skip:
        if not isinstance(name, str | os.PathLike):
            raise TypeError(
                f"skip holds {name!r} of type {type(name).__name__}, expected names of "
                "files and folders."
            )
        name = os.fspath(name)
        if os.path.basename(name) != name:
            raise ValueError(
                f"skip holds the path {name!r}, expected names, which are skipped at "
                f"any level. Write {os.path.basename(name.rstrip('/'))!r}; to leave a "
                "domain or a class out, name the others in domains or class_names."
            )
        yield name


def _as_frame(rows):
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(
            "as_frame=True makes a frame of pandas. Run: pip install pandas"
        ) from error
    # As objects: pandas' strings must be Unicode, names of files need not be.
    return pd.DataFrame({k: pd.Series(v, dtype=v.dtype) for k, v in rows.items()})


def _tell_not_listed(root, counts):
    return (
        f"{root}: {sum(counts.values())} files beside the images are not listed, as "
        "their suffix is not that of an image that can be read: "
        f"{_tell_counts(counts)}. Convert those that are images, such as raw files of "
        "cameras, to PNG or TIFF; to skip others without this warning, name them in "
        "skip, such as skip=['*.txt']."
    )


def _tell_counts(counts):
    return ", ".join(f"{n} {suffix}" for suffix, n in counts.items())


def _find_domains(root, scan):
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist. {_layout(root)}")
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is a file, not a folder. {_layout(root)}")
    folders, images = scan(root)
    if images:
        raise ValueError(
            f"{root / images[0]} is an image where a folder is expected, one per "
            f"domain. {_layout(root)}"
        )
    if not folders:
        raise ValueError(f"{root} holds no folders. {_layout(root)}")
    return folders


def _find_classes(root, domain_names, scan):
    """Names of the class folders of each domain, {domain: set of names}."""
    scans = {name: scan(root / name) for name in domain_names}
    if all(images and not folders for folders, images in scans.values()):
        raise ValueError(
            f"{root} is laid out as class/image, which is one domain. Give the folder "
            f"that holds it: load_domain_folder({str(root.parent)!r}, "
            f"domains=[{root.name!r}]). {_layout(root)}"
        )
    for name, (folders, images) in scans.items():
        if images:
            raise ValueError(
                f"{root / name / images[0]} is an image where a folder is expected, "
                f"one per class. {_layout(root)} Move or remove it."
            )
        if not folders:
            raise ValueError(
                f"{root / name} holds no folders. {_layout(root)} If it is not a "
                "domain, select the others with domains=[...]."
            )
    return {name: set(folders) for name, (folders, _) in scans.items()}


def _find_images(root, folder, scan):
    """Paths of a class folder's images, sorted."""
    before = scan.others.copy()
    folders, images = scan(folder, count_others=True)
    if folders:
        raise ValueError(
            f"{folder / folders[0]} is a folder where images are expected. "
            f"{_layout(root)} If the domains lie in a folder of {root}, give that one. "
            "To leave the folder out, name it in skip."
        )
    if not images:
        others = _tell_counts(scan.others - before)
        raise ValueError(
            f"{folder} holds no images{', but ' * bool(others)}{others}: no file ends "
            f"in {', '.join(sorted(SUFFIXES))}. {_layout(root)} If the domain lacks "
            "this class, remove the folder, or name it in skip."
        )
    # Joined as strings, since a Path for each of 600,000 files takes seconds.
    prefix = os.path.join(folder, "")
    return [prefix + name for name in images]


class _Scan:
    """Lists folders, but for what is skipped, and counts files that are no images."""

    def __init__(self, skip):
        patterns = "|".join(map(fnmatch.translate, sorted(skip)))
        # In any case, since the suffixes that are reported are in lower case.
        self._skips = re.compile(patterns, re.IGNORECASE).match
        self.others = Counter()

    def __call__(self, folder, count_others=False):
        """Names of the folders and of the images in a folder, each sorted."""
        folders, images = [], []
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(".") or self._skips(name):
                    continue
                suffix = os.path.splitext(name)[1].lower()
                if entry.is_dir():  # known from the listing: asks the disk for links
                    folders.append(name)
                elif suffix in SUFFIXES:
                    images.append(name)
                elif count_others:
                    self.others[suffix or "without a suffix"] += 1
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    raise FileNotFoundError(
                        f"{entry.path} is a link to nothing, where folders are "
                        "expected. Mend or remove it, or name it in skip."
                    )
        return sorted(folders), sorted(images)


def _select(wanted, found, parameter, root):
    if wanted is None:
        return found
    if isinstance(wanted, str):
        raise ValueError(
            f"{parameter} is the string {wanted!r}, expected a list of names. Write "
            f"{parameter}=[{wanted!r}]."
        )
    wanted = [str(name) for name in entries(wanted, parameter, "a list of names")]
    if not wanted:
        raise ValueError(
            f"{parameter} is empty, expected names among {_listing(found)}, or None "
            "for all."
        )
    for position, name in enumerate(wanted):
        if name not in found:
            raise ValueError(
                f"{parameter} holds {name!r}, which is not in {root}."
                f"{_suggestion(name, found)} There are: {_listing(found)}."
            )
        if name in wanted[:position]:
            raise ValueError(f"{parameter} holds {name!r} twice. Name it once.")
    return wanted


def _suggestion(name, found):
    names = {other.casefold(): other for other in found}
    close = difflib.get_close_matches(name.casefold(), names)
    if not close:
        return ""
    return f" Did you mean {' or '.join(repr(names[key]) for key in close)}?"


def _listing(names):
    listed = ", ".join(names[:_MAX_LISTED])
    more = len(names) - _MAX_LISTED
    return f"{listed} and {more} more" if more > 0 else listed


def _layout(root):
    return f"Expected: {root / 'domain' / 'class' / 'image.jpg'}, and so on."


def _describe(root, domain_names, target_names, counts, not_listed):
    n_domains, n_classes = counts.shape
    lines = [
        f"{root.name}: {n_domains} domains, {n_classes} classes",
        f"{counts.sum():,} images, listed from {root}.",
        "",
    ]
    for name, row in zip(domain_names, counts, strict=True):
        line = f"- {name}: {row.sum():,} images"
        lacking = [target_names[j] for j in np.flatnonzero(row == 0)]
        if lacking:
            line += f", {n_classes - len(lacking)} classes; lacks {_listing(lacking)}"
        lines.append(line)
    single = np.flatnonzero((counts > 0).sum(axis=0) == 1)
    if n_domains > 1 and len(single):
        listed = _listing([target_names[j] for j in single])
        lines += ["", f"Classes in one domain only: {listed}."]
    if not_listed:
        found = _tell_counts(not_listed)
        lines += ["", f"Files beside the images that are not listed: {found}."]
    return "\n".join(lines) + "\n"
