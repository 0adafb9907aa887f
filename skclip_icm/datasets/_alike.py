"""Names of folders that look the same, though they are not."""

import unicodedata
from collections import defaultdict


def warnings_of_alike(root, names, kind):
    """Yield a message for each group of `names` in `root` that look the same."""
    groups = defaultdict(list)
    for name in names:
        groups[_as_seen(name)].append(name)
    for alike in groups.values():
        if len(alike) > 1:
            # In ASCII, which shows how those differ that are printed alike.
            yield (
                f"{root}: the folders {', '.join(map(ascii, alike))} are different "
                f"{kind}, though their names differ by upper and lower case, the form "
                "of their Unicode (such as wide letters), blanks, or characters that "
                "are not seen only. If they mean the same, give their folders one name."
            )


def _as_seen(name):
    """Return what a reader makes of a name."""
    # Twice, as lower case may leave letters and accents in another form.
    text = unicodedata.normalize("NFKC", name).casefold()
    text = unicodedata.normalize("NFKC", text)
    # Without marks of no width, of direction, and the like.
    hidden = ("Cc", "Cf")
    seen = (c for c in text if c.isspace() or unicodedata.category(c) not in hidden)
    return " ".join("".join(seen).split())
