"""Where npm installed a package, or the command that installs it."""

from pathlib import Path


def package_folders(node_modules, *names):
    """Find installed npm packages.

    Parameters
    ----------
    node_modules : str or path
        Folder in which npm installed the packages.
    *names : str
        Names of the packages, all of which are needed.

    Returns
    -------
    list of Path
        Absolute, one per name.

    Raises
    ------
    FileNotFoundError
        If one is missing; holds the command that installs them all.
    """
    root = Path(node_modules).absolute()
    missing = [name for name in names if not (root / name).is_dir()]
    if missing:
        packages = "packages" if len(missing) > 1 else "package"
        raise FileNotFoundError(
            f"{root} lacks the npm {packages} {', '.join(missing)}. Run in "
            f"{root.parent}: npm install {' '.join(names)}"
        )
    return [root / name for name in names]
